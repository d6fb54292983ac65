import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lesson import export_files, network
from torch import nn

from labkit import export
from labkit.export import ExportError, TensorRTUnavailable
from labkit.runtime import Floats, load_runner, probe_images


def tiny_net(seed: int = 0) -> nn.Module:
    """The lab's network with few channels, and batch norms that have seen something."""
    torch.manual_seed(seed)
    model = network((4, 8, 8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_net()


@pytest.fixture(scope="module")
def images() -> Floats:
    return probe_images(64)


def save_all(model: nn.Module, folder: Path) -> list[Path]:
    export_files(model, folder)
    return [folder / name for name in ("model.pt", "model_optimized.pt", "model.onnx")]


def test_every_file_computes_what_pytorch_computes(
    model: nn.Module, images: Floats, tmp_path: Path
) -> None:
    for path in save_all(model, tmp_path):
        rows = export.parity(model, load_runner(path), images, name=path.name)
        assert [row.batch for row in rows] == [1, 7, 64]
        assert max(row.max_abs_diff for row in rows) < 1e-4
        assert all(row.agreement == 1 for row in rows)


def test_only_the_files_asked_for_are_written(model: nn.Module, tmp_path: Path) -> None:
    paths = save_all(model, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_file_does_not_depend_on_the_temporary_name(model: nn.Module, tmp_path: Path) -> None:
    module = export_files(model, tmp_path / "one", "trace", "onnx").traced
    export_files(model, tmp_path / "two", "onnx")
    export.save_torchscript(module, tmp_path / "two" / "model.pt")
    for name in ("model.pt", "model.onnx"):
        first, second = ((tmp_path / folder / name) for folder in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_torchscript_runs_where_labkit_cannot_be_imported(model: nn.Module, tmp_path: Path) -> None:
    path = save_all(model, tmp_path)[1]
    program = (
        "import sys; sys.modules['labkit'] = None\n"
        "import torch; print(tuple(torch.jit.load(sys.argv[1])(torch.zeros(3, 3, 32, 32)).shape))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "(3, 10)"


def test_freezing_folds_every_batch_norm(model: nn.Module, tmp_path: Path) -> None:
    made = export_files(model, tmp_path)
    before, after = (export.torchscript_operators(m) for m in (made.traced, made.optimized))
    assert before["aten::batch_norm"] == 6
    assert after["aten::batch_norm"] == 0
    assert before["aten::_convolution"] == after["aten::_convolution"] == 7


def test_a_batch_norm_that_cannot_fold_is_refused(tmp_path: Path) -> None:
    wrong_order = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="1 batch norms did not fold"):
        export_files(wrong_order, tmp_path, "optimize")
    assert list(tmp_path.iterdir()) == []


def test_the_original_model_is_left_alone(model: nn.Module, images: Floats, tmp_path: Path) -> None:
    before = model(torch.from_numpy(images[:2])).detach()
    strides = [weight.stride() for weight in model.parameters()]
    export_files(model, tmp_path)
    assert [weight.stride() for weight in model.parameters()] == strides
    torch.testing.assert_close(model(torch.from_numpy(images[:2])).detach(), before)


def test_onnx_is_what_the_server_needs(model: nn.Module, tmp_path: Path) -> None:
    graph = export_files(model, tmp_path, "onnx").graph
    assert graph.opset_import[0].version == 17
    assert graph.ir_version <= 10
    for value, name, rest in (
        (graph.graph.input[0], "input", [3, 32, 32]),
        (graph.graph.output[0], "logits", [10]),
    ):
        dims = value.type.tensor_type.shape.dim
        assert value.name == name
        assert dims[0].dim_param == "batch"
        assert [dim.dim_value for dim in dims[1:]] == rest
    assert export.onnx_operators(graph)["BatchNormalization"] == 0
    inferred = {value.name for value in graph.graph.value_info}
    assert {node.output[0] for node in graph.graph.node[:-1]} <= inferred


def test_a_failed_export_leaves_the_former_file(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("former")

    def broken(*arguments: object, **options: object) -> None:
        raise onnx.checker.ValidationError("not valid")

    monkeypatch.setattr("onnx.checker.check_model", broken)
    with pytest.raises(onnx.checker.ValidationError):
        export_files(model, tmp_path, "onnx")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_parity_fails_on_other_weights(model: nn.Module, images: Floats, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    export_files(tiny_net(seed=1), path.parent, "trace")
    with pytest.raises(ExportError, match=r"other at batch 1: got logits up to .* away"):
        export.parity(model, load_runner(path), images, name="other")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parity_fails_on_what_is_no_number(model: nn.Module, images: Floats, bad: float) -> None:
    def candidate(part: Floats) -> Floats:
        logits = model(torch.from_numpy(part)).detach().numpy()
        logits[-1, -1] = bad
        return logits

    with pytest.raises(ExportError, match="away from PyTorch's"):
        export.parity(model, candidate, images)


def test_parity_finds_an_error_of_one_batch_size(model: nn.Module, images: Floats) -> None:
    def candidate(part: Floats) -> Floats:
        logits = model(torch.from_numpy(part)).detach().numpy()
        return logits + (0.01 if len(part) == 7 else 0)

    with pytest.raises(ExportError, match="at batch 7"):
        export.parity(model, candidate, images)
    assert len(export.parity(model, candidate, images, tolerance=0.02)) == 3


def test_parity_refuses_too_few_images_and_other_shapes(model: nn.Module, images: Floats) -> None:
    with pytest.raises(ExportError, match="batch 64: got 10 images"):
        export.parity(model, lambda part: np.zeros((len(part), 10), np.float32), images[:10], [64])
    with pytest.raises(ExportError, match=r"got shape \(1, 9\), expected \(1, 10\)"):
        export.parity(model, lambda part: np.zeros((len(part), 9), np.float32), images)


class FakeTensorRT(ModuleType):
    """Stands for the `tensorrt` package and notes what is asked of it."""

    def __init__(self, parses: bool = True, builds: bool = True) -> None:
        super().__init__("tensorrt")
        self.calls: list[tuple[Any, ...]] = []
        note = self.calls.append
        self.Logger = lambda level: f"logger {level}"
        self.Logger.WARNING = "warning"  # type: ignore[attr-defined]
        profile = SimpleNamespace(set_shape=lambda *shapes: note(("set_shape", *shapes)))
        config = SimpleNamespace(
            add_optimization_profile=lambda added: note(("add_profile", added is profile))
        )
        plan = bytearray(b"engine") if builds else None
        self.Builder = lambda logger: SimpleNamespace(
            create_network=lambda flags: "network",
            create_optimization_profile=lambda: profile,
            create_builder_config=lambda: config,
            build_serialized_network=lambda network, given: plan if given is config else None,
        )
        self.OnnxParser = lambda network, logger: SimpleNamespace(
            parse=lambda content: note(("parse", len(content))) or parses,
            num_errors=2,
            get_error=lambda index: f"error {index}",
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "has_nvidia_gpu", lambda: True)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"graph")
    return path


@pytest.mark.parametrize(("max_batch", "usual"), [(64, 32), (8, 8), (1, 1)])
def test_the_tensorrt_profile_covers_one_to_max_batch(
    gpu: None, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, max_batch: int, usual: int
) -> None:
    package = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    plan = onnx_file.with_suffix(".plan")
    export.build_tensorrt(onnx_file, plan, max_batch)
    image = (3, 32, 32)
    assert package.calls == [
        ("parse", 5),
        ("set_shape", "input", (1, *image), (usual, *image), (max_batch, *image)),
        ("add_profile", True),
    ]
    assert plan.read_bytes() == b"engine"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (FakeTensorRT(parses=False), "cannot parse m.onnx: error 0; error 1"),
        (FakeTensorRT(builds=False), "built no engine from m.onnx"),
    ],
)
def test_a_failed_build_leaves_no_plan(
    gpu: None,
    onnx_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: FakeTensorRT,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    with pytest.raises(ExportError, match=message):
        export.build_tensorrt(onnx_file, onnx_file.with_suffix(".plan"))
    assert list(onnx_file.parent.iterdir()) == [onnx_file]


def test_without_the_package_or_the_gpu_a_sentence_says_so(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = onnx_file.with_suffix(".plan")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(export, "has_nvidia_gpu", lambda: True)
    with pytest.raises(TensorRTUnavailable, match="package tensorrt is not installed"):
        export.build_tensorrt(onnx_file, plan)
    monkeypatch.setattr(export, "has_nvidia_gpu", lambda: False)
    with pytest.raises(TensorRTUnavailable, match="this machine has no NVIDIA GPU"):
        export.build_tensorrt(onnx_file, plan)
    with pytest.raises(ExportError, match="max_batch=0"):
        export.build_tensorrt(onnx_file, plan, max_batch=0)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: x)'", True),
        ("echo 'No devices found'", False),
        ("echo 'GPU 0: gone' >&2; exit 9", False),
    ],
)
def test_a_gpu_is_what_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: bool
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert export.has_nvidia_gpu() is found
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not export.has_nvidia_gpu()
