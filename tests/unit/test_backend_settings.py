"""Settings of config.pbtxt reach the engines: threads, graph level, accelerator, streams."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino
import pytest
from openvino import opset13

from labkit.backends.onnxruntime import engine as onnx_engine
from labkit.backends.openvino import engine as openvino_engine
from labkit.backends.openvino_engine import OpenVINOEngine, match, read
from labkit.backends.pytorch import engine as torch_engine
from labkit.backends.settings import INTERNAL, ConfigError, EngineError, Settings

CORES = len(os.sched_getaffinity(0))


def settings(folder: Path | None = None, **config: Any) -> Settings:
    parameters = config.pop("parameters", {})
    config["parameters"] = {key: {"string_value": text} for key, text in parameters.items()}
    return Settings(
        {
            "model_config": json.dumps(config),
            "model_name": "net",
            "model_repository": str(folder or "/models/net"),
            "model_version": "1",
            "model_instance_name": "net_0_0",
            "model_instance_kind": "CPU",
        }
    )


def test_onnxruntime_threads() -> None:
    options = onnx_engine.session_options(settings(parameters={"intra_op_thread_count": "3"}))
    assert options.intra_op_num_threads == 3
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert onnx_engine.session_options(settings()).intra_op_num_threads == 0  # the native default


def test_onnxruntime_parallel_mode() -> None:
    between = {"inter_op_thread_count": "2"}
    options = onnx_engine.session_options(settings(parameters=between | {"execution_mode": "1"}))
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.inter_op_num_threads == 2


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "BASIC"), (0, "ALL"), (1, "EXTENDED"), (2, "ORT_DISABLE_ALL"), (5, "ENABLE_ALL")],
)
def test_onnxruntime_graph_level(level: int, name: str) -> None:
    options = onnx_engine.session_options(settings(optimization={"graph": {"level": level}}))
    assert options.graph_optimization_level.name.endswith(name)


def test_onnxruntime_memory_settings() -> None:
    options = onnx_engine.session_options(settings(parameters={"enable_mem_arena": "0"}))
    assert not options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


def test_onnxruntime_accelerator() -> None:
    def accelerated(**lists: Any) -> Settings:
        return settings(optimization={"execution_accelerators": lists})

    assert not onnx_engine.wants_openvino(settings())
    assert onnx_engine.wants_openvino(accelerated(cpu_execution_accelerator=[{"name": "openvino"}]))
    with pytest.raises(ConfigError, match="unknown Execution Accelerator 'x'"):
        onnx_engine.wants_openvino(accelerated(cpu_execution_accelerator=[{"name": "x"}]))
    gpu = accelerated(gpu_execution_accelerator=[{"name": "tensorrt"}])
    assert not onnx_engine.wants_openvino(gpu)


def test_openvino_threads_are_always_explicit() -> None:
    assert openvino_engine.properties(settings()) == {"INFERENCE_NUM_THREADS": CORES}
    chosen = {
        "INFERENCE_NUM_THREADS": "1",
        "NUM_STREAMS": "2",
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    assert openvino_engine.properties(settings(parameters=chosen)) == {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 2,
        "PERFORMANCE_HINT": "THROUGHPUT",
    }


def test_pytorch_threads_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}
    for name in ("set_num_threads", "set_num_interop_threads", "_C._set_graph_executor_optimize"):
        monkeypatch.setattr(f"torch.{name}", lambda value, name=name: calls.update({name: value}))
    monkeypatch.setattr("torch.get_num_interop_threads", lambda: 0)
    monkeypatch.setattr(torch_engine, "TorchEngine", lambda settings: None)
    torch_engine.load(
        settings(
            parameters={"INTRA_OP_THREAD_COUNT": "3", "DISABLE_OPTIMIZED_EXECUTION": "on"},
        )
    )
    assert calls == {
        "set_num_threads": 3,
        "set_num_interop_threads": CORES,
        "_C._set_graph_executor_optimize": False,
    }


@pytest.mark.parametrize(("text", "value"), [("true", True), ("Off", False), ("1", True)])
def test_booleans_as_triton_reads_them(text: str, value: bool) -> None:
    assert settings(parameters={"INFERENCE_MODE": text}).boolean("INFERENCE_MODE", True) is value


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sequence_batching": {"state": [{}]}}, "sequence_batching with control_input or state"),
        ({"batch_input": [{}]}, "batch_input is not supported"),
        ({"model_transaction_policy": {"decoupled": True}}, "decoupled model is not supported"),
    ],
)
def test_what_no_stand_in_can_do_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(**config)


def test_shapes_after_reshape() -> None:
    entry = {"name": "x", "data_type": "TYPE_FP32", "dims": ["4"], "reshape": {"shape": [2, 2]}}
    assert settings(max_batch_size=8, input=[entry]).inputs[0].shape == (2, 2)
    assert settings(max_batch_size=0, input=[entry]).inputs[0].shape == (2, 2)
    scalar = entry | {"dims": [1], "reshape": {}}
    assert settings(max_batch_size=8, input=[scalar]).inputs[0].shape == ()


def test_the_model_file(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").touch()
    assert settings(tmp_path).file("model.onnx", "", INTERNAL).name == "model.onnx"
    named = settings(tmp_path, default_model_filename="best.onnx")
    with pytest.raises(ConfigError, match=r"no 1/best.onnx → add best\.onnx .*holds model\.onnx"):
        named.file("model.onnx", "no {path.parent.name}/{path.name}", INTERNAL)


@pytest.fixture
def two_names(tmp_path: Path) -> Path:
    """A model that doubles (n, 4); its input and its output have two names each."""
    x = opset13.parameter([-1, 4], np.float32)
    y = opset13.multiply(x, opset13.constant(np.float32(2)))
    x.output(0).set_names({"x", "x:0"})
    y.output(0).set_names({"y", "y:0"})
    openvino.save_model(openvino.Model([y], [x]), tmp_path / "model.xml", compress_to_fp16=False)
    return tmp_path / "model.xml"


def tensor(name: str) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_FP32", "dims": [-1, 4]}


@pytest.mark.parametrize("names", [("x", "y"), ("x:0", "y:0")])
def test_a_port_with_two_names_goes_by_either(two_names: Path, names: tuple[str, str]) -> None:
    config = settings(input=[tensor(names[0])], output=[tensor(names[1])])
    engine = OpenVINOEngine(match(read(two_names), config), config, {"INFERENCE_NUM_THREADS": 1})
    (doubled,) = engine.run({names[0]: np.ones((3, 4), np.float32)}, [names[1]])
    np.testing.assert_array_equal(doubled, np.full((3, 4), 2))


@pytest.mark.parametrize("shape", [(3, 5), (3,), (3, 4, 1)])
def test_openvino_never_answers_with_the_request_before(
    two_names: Path, shape: tuple[int, ...]
) -> None:
    config = settings(input=[tensor("x")], output=[tensor("y")])
    engine = OpenVINOEngine(match(read(two_names), config), config, {"INFERENCE_NUM_THREADS": 1})
    engine.run({"x": np.ones((3, 4), np.float32)}, ["y"])
    with pytest.raises(EngineError, match=r"expected \[-1, 4\]"):
        engine.run({"x": np.ones(shape, np.float32)}, ["y"])


def test_a_port_listed_under_both_names_is_refused(two_names: Path) -> None:
    config = settings(input=[tensor("x"), tensor("x:0")], output=[tensor("y")])
    with pytest.raises(ConfigError, match="configuration expects 2 inputs, model provides 1"):
        match(read(two_names), config)
