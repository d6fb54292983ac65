import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from labkit import runtime
from labkit.runtime import (
    RunnerError,
    accuracy,
    agreement,
    cpu_features,
    load_runner,
    logit_error,
    predict,
    probe_images,
    quiet_torchscript,
    throughput,
    top1,
)

CLASSES = 10


class Tiny(nn.Module):
    """Means of the three colours, then a linear layer: small enough to check by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.head(input.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import openvino

    folder = tmp_path_factory.mktemp("models")
    paths = {suffix: folder / f"tiny{suffix}" for suffix in (".pt", ".onnx", ".xml")}
    example = torch.zeros(2, 3, 32, 32)
    with quiet_torchscript():
        torch.jit.save(torch.jit.trace(model, example), str(paths[".pt"]))
        torch.onnx.export(
            model,
            (example,),
            str(paths[".onnx"]),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    openvino.save_model(
        openvino.convert_model(paths[".onnx"]), paths[".xml"], compress_to_fp16=False
    )
    return paths


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".xml"])
@pytest.mark.parametrize("batch", [1, 7])
def test_every_format_computes_what_the_model_computes(
    model: nn.Module, files: dict[str, Path], suffix: str, batch: int
) -> None:
    runner = load_runner(files[suffix], threads=1)
    images = probe_images(batch)
    logits = runner(images)
    assert runner.threads == 1
    assert runner.name == f"tiny{suffix}"
    assert logits.shape == (batch, CLASSES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model(torch.from_numpy(images)).numpy(), atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".xml"])
def test_an_answer_survives_the_next_call(files: dict[str, Path], suffix: str) -> None:
    runner = load_runner(files[suffix])
    first = runner(np.zeros((2, 3, 32, 32), np.float32))
    kept = first.copy()
    runner(np.ones((2, 3, 32, 32), np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".xml"])
def test_images_need_not_be_contiguous(files: dict[str, Path], suffix: str) -> None:
    runner = load_runner(files[suffix])
    images = probe_images(4)
    np.testing.assert_allclose(runner(images[::2]), runner(images[::2].copy()), atol=1e-6)


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".xml"])
def test_bytes_are_refused_and_not_converted(files: dict[str, Path], suffix: str) -> None:
    with pytest.raises(RunnerError, match=r"got images of uint8, expected float32.*preprocess"):
        load_runner(files[suffix])(np.zeros((1, 3, 32, 32), np.uint8))  # type: ignore[arg-type]


def test_threads_are_those_asked_for_at_every_call(files: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    try:
        one, two = (load_runner(files[".pt"], threads=count) for count in (1, 2))
        for runner in (one, two, one):
            runner(probe_images(1))
            assert torch.get_num_threads() == runner.threads
    finally:
        torch.set_num_threads(before)


def test_options_reach_the_runtime(files: dict[str, Path], model: nn.Module) -> None:
    images = probe_images(3)
    expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        load_runner(files[".pt"], optimize=True)(images), expected, atol=1e-5
    )
    with pytest.raises(TypeError, match="optimize"):
        load_runner(files[".onnx"], optimize=True)


@pytest.mark.parametrize("name", ["broken.pt", "broken.onnx", "broken.xml"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not a model")
    with pytest.raises(RunnerError, match=name) as caught:
        load_runner(path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_says_what_can(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(RunnerError, match=r"known: \.pt, \.onnx, \.xml"):
        load_runner(tmp_path / "model.plan")
    with pytest.raises(RunnerError, match="does not exist"):
        load_runner(tmp_path / "absent.onnx")
    with pytest.raises(RunnerError, match="threads=0"):
        load_runner(files[".pt"], threads=0)


def test_accuracy_counts_right_answers_over_several_batches(tmp_path: Path) -> None:
    """A model whose logits are the first ten pixels: its answer is the brightest of them."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gather", ["flat", "first"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "brightest",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [helper.make_tensor("first", TensorProto.INT64, [10], range(10))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    runner = load_runner(tmp_path / "m.onnx")
    pixels = np.zeros((25, 3, 32, 32), np.uint8)
    labels = np.arange(25) % 10
    pixels[np.arange(25), 0, 0, labels] = 255
    assert accuracy(runner, pixels, labels, batch=4) == 1.0
    wrong = labels.copy()
    wrong[:5] = (wrong[:5] + 1) % 10
    assert accuracy(runner, pixels, wrong, batch=10) == pytest.approx(20 / 25)
    np.testing.assert_allclose(predict(runner, pixels, 3).max(1), 1.0)
    with pytest.raises(RunnerError, match="0 images"):
        predict(runner, pixels[:0])


def test_agreement_and_error_of_logits() -> None:
    reference = np.eye(4, dtype=np.float32)
    other = reference.copy()
    other[0] = [0, 0, 0, 5]
    assert agreement(reference, reference) == 1.0
    assert agreement(other, reference) == 0.75
    assert top1(reference, np.array([0, 1, 2, 0])) == 0.75
    assert logit_error(reference, reference) == 0.0
    noise = np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32)
    assert logit_error(1.1 * noise, noise) == pytest.approx(0.1, rel=0.01)


def test_throughput_counts_only_what_it_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        name, threads, calls = "counting", 1, 0

        def __call__(self, images: np.ndarray) -> np.ndarray:
            self.calls += 1
            clock[0] += 0.25
            return images

    clock = [0.0]
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])
    runner = Counting()
    assert throughput(runner, batch=8, seconds=1.0, warm_up=2) == 32.0
    assert runner.calls == 6
    with pytest.raises(RunnerError, match="batch=0"):
        throughput(runner, batch=0)


def test_cpu_flags_are_read_as_words() -> None:
    text = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni_not avx_vnni\n"
    assert runtime._known_flags(text) == {"avx2", "avx512f", "avx_vnni"}
    assert runtime._known_flags("Features : asimd\n") == frozenset()


def test_without_cpuinfo_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True, "sve": True}
    )
    assert cpu_features() == {"avx2", "avx512f"}
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an older PyTorch
    assert cpu_features() == frozenset()


def test_only_the_notices_of_succession_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_torchscript():
            warnings.warn("`torch.jit.trace` is deprecated.", FutureWarning, stacklevel=1)
            warnings.warn("torch.jit is fine, your model is not", torch.jit.TracerWarning, 1)
            warnings.warn("something else", FutureWarning, stacklevel=1)
    assert [str(notice.message) for notice in caught] == [
        "torch.jit is fine, your model is not",
        "something else",
    ]
