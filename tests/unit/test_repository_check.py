"""Each way in which a repository can be wrong, one fault at a time."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from labkit.repository import VARIANTS, to_config, to_text, write_config
from labkit.repository_check import ERROR, WARNING, Finding, check_repository

ONNX = VARIANTS["cifar10_onnx"]


def save_onnx(path: Path, batch: str | int = "batch", ir_version: int = 8, opset: int = 17) -> None:
    """A model of the lab's shapes: flatten, then multiply."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3072, 10], [0.0] * 30720)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [weights],
    )
    model = helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_config(tmp_path, ONNX)
    save_onnx(tmp_path / ONNX.name / "1" / "model.onnx")
    return tmp_path


def rewrite(repository: Path, change: Callable[[str], str]) -> None:
    path = repository / ONNX.name / "config.pbtxt"
    text = path.read_text()
    assert change(text) != text, "the fault was not made"
    path.write_text(change(text))


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [str(finding) for finding in findings]
    return findings[0]


def test_a_good_repository_has_no_findings(repository: Path) -> None:
    assert check_repository(repository, cores=1) == []


@pytest.mark.parametrize(
    ("old", "new", "message", "fix"),
    [
        ("max_batch_size", "max_batchsize", "no field named", "did you mean max_batch_size?"),
        ('name: "input"', 'name: "image"', "unexpected inference input 'image'", "input"),
        ("TYPE_FP32", "TYPE_FP16", "expects datatype TYPE_FP16", "write data_type: TYPE_FP32"),
        ("dims: [3, 32, 32]", "dims: [1, 3, 32, 32]", "\\[-1,1,3,32,32\\]", "batch axis"),
        ("dims: [3, 32, 32]", "dims: [3, 32, 0]", "must be integer >= 1", "≥ 1, or -1"),
        ("dims: [10]", "dims: [11]", "has 10 lines, .* 11 classes", "exactly 11 lines"),
        ('backend: "onnxruntime"', 'backend: "onnx"', "'onnx' is not one", "onnxruntime"),
        ('name: "cifar10_onnx"', 'name: "other"', "name is 'other'", 'write name: "cifar10_onnx"'),
        ("labels.txt", "classes.txt", "read classes.txt", "one class per line"),
        ('string_value: "1"', 'string_value: "two"', "convert 'two'", "whole number"),
        ("dynamic_batching {", "dynamic_batching { preferred_batch_size: 128", "128", "leave"),
        ("max_batch_size: 64", "max_batch_size: 0", r"shape \[3,32,32\]", "dims: [-1, 3, 32, 32]"),
        ("}", "}}", "does not fit Triton's schema", "line and column"),
    ],
)
def test_a_fault_is_found_with_its_fix(
    repository: Path, old: str, new: str, message: str, fix: str
) -> None:
    rewrite(repository, lambda text: text.replace(old, new, 1))
    errors = [f for f in check_repository(repository, cores=1) if f.severity == ERROR]
    assert errors
    hits = [f for f in errors if re.search(message, f.message)]
    assert hits, [str(finding) for finding in errors]
    assert any(fix in finding.fix for finding in hits), [finding.fix for finding in hits]


def test_too_many_threads_is_a_warning_with_the_sum(repository: Path) -> None:
    rewrite(repository, lambda text: text.replace("count: 1", "count: 4"))
    finding = only(check_repository(repository, cores=2))
    assert finding.severity == WARNING
    assert "1 threads × 4 instances = 4, on 2 cores" in finding.message


def test_missing_thread_count_is_a_warning(repository: Path) -> None:
    rewrite(repository, lambda text: text[: text.index("parameters")] + 'backend: "onnxruntime"')
    finding = only(check_repository(repository, cores=2))
    assert finding.severity == WARNING
    assert "as many threads as there are cores" in finding.message


def test_unknown_accelerator(repository: Path) -> None:
    text = to_text(to_config(replace(ONNX, accelerator="mkldnn")))
    (repository / ONNX.name / "config.pbtxt").write_text(text)
    assert "unknown Execution Accelerator 'mkldnn'" in only(check_repository(repository)).message


def test_a_fixed_batch_axis_does_not_go_with_batching(repository: Path) -> None:
    save_onnx(repository / ONNX.name / "1" / "model.onnx", batch=1)
    messages = [f.message for f in check_repository(repository, cores=1)]
    assert len(messages) == 1
    assert (
        "the first dimension must be -1; but shape expected by the model is [1,3,32,32]"
        in (messages[0])
    )


def test_a_symbolic_batch_axis_is_written_out_without_batching(repository: Path) -> None:
    spec = replace(ONNX, max_batch_size=0, dynamic_batching=False)
    (repository / ONNX.name / "config.pbtxt").write_text(to_text(to_config(spec)))
    assert check_repository(repository, cores=1) == []


def test_a_model_too_new_for_the_server(repository: Path) -> None:
    save_onnx(repository / ONNX.name / "1" / "model.onnx", ir_version=11, opset=22)
    for runtime, severity in (("container", ERROR), ("stand-in", WARNING)):
        found = check_repository(repository, cores=1, runtime=runtime)
        messages = " ".join(f.message for f in found if f.severity == severity)
        assert "IR version 11" in messages
        assert "opset 22" in messages


def test_missing_version_and_missing_file(repository: Path) -> None:
    file = repository / ONNX.name / "1" / "model.onnx"
    file.rename(file.with_name("net.onnx"))
    assert only(check_repository(repository, cores=1)).fix == "found net.onnx: rename it"
    file.with_name("net.onnx").unlink()
    file.parent.rmdir()
    assert "no version folder" in only(check_repository(repository, cores=1)).message


def test_a_damaged_model_file(repository: Path) -> None:
    (repository / ONNX.name / "1" / "model.onnx").write_bytes(b"\x00garbage")
    assert "onnx runtime error 7" in only(check_repository(repository, cores=1)).message


def test_default_model_filename_is_followed(repository: Path) -> None:
    file = repository / ONNX.name / "1" / "model.onnx"
    file.rename(file.with_name("net.onnx"))
    rewrite(repository, lambda text: text + 'default_model_filename: "net.onnx"\n')
    assert check_repository(repository, cores=1) == []


def test_missing_config_and_missing_folder(repository: Path) -> None:
    (repository / ONNX.name / "config.pbtxt").unlink()
    found = check_repository(repository)
    assert all(finding.severity == WARNING for finding in found)  # Triton completes it
    assert "config.pbtxt is missing" in found[0].message
    (repository / ONNX.name / "1" / "model.onnx").unlink()
    assert "config.pbtxt is missing" in only(check_repository(repository)).message
    finding = only(check_repository(repository, ["cifar10_onx"]))
    assert finding.fix == "did you mean cifar10_onnx?"


def test_no_repository_and_an_empty_one(tmp_path: Path) -> None:
    assert "is not a folder" in only(check_repository(tmp_path / "nowhere")).message
    assert "holds no model" in only(check_repository(tmp_path)).message


def test_torchscript_names_go_by_position(tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(1)[:, :10]

    spec = VARIANTS["cifar10_torchscript"]
    write_config(tmp_path, spec)
    file = tmp_path / spec.name / "1" / "model.pt"
    file.parent.mkdir()
    torch.jit.script(Net()).save(str(file))
    assert check_repository(tmp_path, cores=1) == []
    for name, findings in (("pixels", 0), ("picture", 0), ("picture__1", 1)):
        write_config(tmp_path, replace(spec, input_name=name))
        assert len(check_repository(tmp_path, cores=1)) == findings
    write_config(tmp_path, replace(spec, output_name="logits__1"))
    assert "This model has 1 outputs" in only(check_repository(tmp_path, cores=1)).message


def test_a_finding_is_one_line(repository: Path) -> None:
    rewrite(repository, lambda text: text.replace("max_batch_size", "max_batchsize"))
    for finding in check_repository(repository):
        assert "\n" not in str(finding)


@pytest.mark.parametrize("settings", ["", "dynamic_batching { }"])
def test_openvino_with_a_batch_axis_is_a_warning(tmp_path: Path, settings: str) -> None:
    folder = tmp_path / "net"
    folder.mkdir()

    def warnings(config: str) -> list[Finding]:
        text = 'backend: "openvino" instance_group { count: 1 kind: KIND_CPU } '
        (folder / "config.pbtxt").write_text(text + config)
        found = check_repository(tmp_path, cores=1)
        return [f for f in found if f.severity == WARNING and "static batch" in f.message]

    padding = 'parameters { key: "ENABLE_BATCH_PADDING" value { string_value: "YES" } }'
    assert "several instances" in only(warnings(f"max_batch_size: 4 {settings}")).fix
    assert warnings(f"max_batch_size: 0 {settings}") == []
    assert warnings(f"max_batch_size: 4 {settings} {padding}") == []


def test_platform_instead_of_backend(repository: Path) -> None:
    rewrite(repository, lambda text: text.replace("backend: ", "platform: "))
    rewrite(repository, lambda text: text.replace('"onnxruntime"', '"onnxruntime_onnx"'))
    assert check_repository(repository, cores=1) == []
    rewrite(repository, lambda text: text.replace("TYPE_FP32", "TYPE_FP16", 1))
    assert "model provides TYPE_FP32" in only(check_repository(repository, cores=1)).message
    rewrite(repository, lambda text: text.replace("TYPE_FP16", "TYPE_FP32"))
    rewrite(repository, lambda text: text.replace("onnxruntime_onnx", "onnxruntime_onx"))
    finding = only(check_repository(repository, cores=1))
    assert finding.message == "platform 'onnxruntime_onx' is not known"
    assert finding.fix == 'did you mean platform: "onnxruntime_onnx"?'


def test_reshape_is_what_the_file_must_fit(repository: Path) -> None:
    rewrite(repository, lambda text: text.replace("dims: [3, 32, 32]", "dims: [3072]"))
    unfit = only(check_repository(repository, cores=1)).message
    assert "complete shape [-1,3072]" in unfit
    assert unfit.startswith("version 1: model ")
    shaped = "dims: [3072] reshape { shape: [3, 32, 32] }"
    rewrite(repository, lambda text: text.replace("dims: [3072]", shaped))
    assert check_repository(repository, cores=1) == []
    rewrite(repository, lambda text: text.replace("shape: [3, 32, 32]", "shape: [3, 1024]"))
    finding = only(check_repository(repository, cores=1))
    assert "complete shape [-1,3,1024]" in finding.message
    assert "write reshape { shape: [3, 32, 32] }" in finding.fix


def test_labels_that_are_no_utf8(repository: Path) -> None:
    (repository / ONNX.name / "labels.txt").write_bytes("café\n".encode("latin-1") * 10)
    assert only(check_repository(repository, cores=1)).message == "labels.txt is not UTF-8 text"


def test_a_configuration_that_is_a_folder(repository: Path) -> None:
    (repository / ONNX.name / "config.pbtxt").unlink()
    (repository / ONNX.name / "config.pbtxt").mkdir()
    finding = only(check_repository(repository, cores=1))
    assert finding.message == f"{ONNX.name}/config.pbtxt cannot be read: Is a directory"


@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt"])
def test_a_file_without_permission(
    repository: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(read: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(path: Path, *args: Any, **named: Any) -> Any:
            if path.name == name:  # not by chmod, which does not stop root
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, *args, **named)

        return refusing

    for method in ("read_text", "read_bytes"):
        monkeypatch.setattr(Path, method, refuse(getattr(Path, method)))
    finding = only(check_repository(repository, cores=1))
    assert finding.message == f"{ONNX.name}/{name} cannot be read: Permission denied"


def test_an_openvino_tensor_goes_by_any_of_its_names(tmp_path: Path) -> None:
    import numpy as np
    import openvino
    from openvino import opset13

    x = opset13.parameter([-1, 4], np.float32)
    y = opset13.multiply(x, opset13.constant(np.float32(2)))
    x.output(0).set_names({"x", "x:0"})
    y.output(0).set_names({"y"})
    (tmp_path / "net" / "1").mkdir(parents=True)
    openvino.save_model(openvino.Model([y], [x]), tmp_path / "net" / "1" / "model.xml")
    for name in ("x", "x:0"):
        (tmp_path / "net" / "config.pbtxt").write_text(f"""
            backend: "openvino"
            input {{ name: "{name}" data_type: TYPE_FP32 dims: [-1, 4] }}
            output {{ name: "y" data_type: TYPE_FP32 dims: [-1, 4] }}
            instance_group {{ count: 1 kind: KIND_CPU }}
            parameters {{ key: "INFERENCE_NUM_THREADS" value {{ string_value: "1" }} }}
        """)
        assert check_repository(tmp_path, cores=1) == []
