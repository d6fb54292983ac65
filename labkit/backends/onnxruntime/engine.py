"""ONNX models in ONNX Runtime: settings as the native backend reads them."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from labkit.backends.rules import complete, match_onnx
from labkit.backends.settings import (
    INTERNAL,
    ConfigError,
    Engine,
    EngineError,
    RequestError,
    Settings,
    Signature,
    Tensor,
)

GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
    "tensor(bfloat16)": "TYPE_BF16",
}
OTHER_TYPES = {
    "seq": "ONNX_TYPE_SEQUENCE",
    "map": "ONNX_TYPE_MAP",
    "optional": "ONNX_TYPE_OPTIONAL",
    "sparse_tensor": "ONNX_TYPE_SPARSETENSOR",
}


def load(settings: Settings) -> Engine:
    """Load the model with the accelerator that its configuration asks for."""
    options, accelerated = session_options(settings), wants_openvino(settings)
    path = model_file(settings)
    if accelerated:
        available = ort.get_available_providers()
        if "OpenVINOExecutionProvider" in available:
            return _matched(open_session(path, options, "OpenVINOExecutionProvider"), settings)
        try:
            return _in_openvino(path, settings)
        except (ConfigError, RuntimeError) as error:  # an operator that OpenVINO lacks
            why = str(error).strip().splitlines()[-1]
            print(
                f"model '{settings.model}': OpenVINO does not take this model, ONNX Runtime's CPU "
                f"provider does: {why}",
                file=sys.stderr,
                flush=True,
            )
    return _matched(open_session(path, options), settings)


def _matched(session: ort.InferenceSession, settings: Settings) -> Engine:
    """Return an engine for a session whose model fits its configuration."""
    found = signature(session)
    match_onnx(settings, found)
    return Shaped(ONNXEngine(session, settings), settings, found)


def _in_openvino(path: Path, settings: Settings) -> Engine:
    """Load the model into OpenVINO as its execution provider would."""
    from labkit.backends.openvino_engine import OpenVINOEngine, read

    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain.intra_op_num_threads = 1
    session = open_session(path, plain)  # whose reading of the file decides, as natively
    match_onnx(settings, signature(session))
    # The accelerator ignores every thread parameter and uses the whole machine, in full precision.
    properties = {
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return Shaped(OpenVINOEngine(read(path), settings, properties), settings, signature(session))


def verify(settings: Settings) -> None:
    """Hold the model against its configuration, without preparing it for use."""
    session_options(settings)
    wants_openvino(settings)
    match_onnx(settings, signature(_open_to_read(settings)))


def completed(settings: Settings) -> dict[str, Any]:
    """Return what the native backend adds to a configuration."""
    return complete(settings, signature(_open_to_read(settings)), "onnxruntime")


def _open_to_read(settings: Settings) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return open_session(model_file(settings), options)


def model_file(settings: Settings) -> Path:
    """Return the file; a folder `model.onnx` holds one of that name, and whatever it needs."""
    path = settings.file("model.onnx", "failed to stat file {path}", INTERNAL)
    if not path.is_dir():
        return path
    if not (path / "model.onnx").is_file():
        raise ConfigError(f"failed to stat file {path}/model.onnx", "put the model there", INTERNAL)
    return path / "model.onnx"


def open_session(path: Path, options: ort.SessionOptions, *providers: str) -> ort.InferenceSession:
    """Open a file.

    Raises:
        ConfigError: ONNX Runtime cannot.
    """
    try:
        return ort.InferenceSession(path, options, [*providers, "CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise ConfigError(_native(error), _fix(str(error)), INTERNAL) from error


def _native(error: Exception) -> str:
    """Return ONNX Runtime's message as the native backend gives it."""
    return re.sub(
        r"^\[ONNXRuntimeError\] : (\d+) : \w+ : ", r"onnx runtime error \1: ", str(error).strip()
    )


def _fix(message: str) -> str:
    """Say what to do about a file that cannot be opened."""
    if re.search("external data path does not exist|cannot get file size", message, re.I):
        name = re.split(r'[/"\]\[]+', message.strip().rstrip('"]'))[-1]
        return f"put {name}, which holds the model's weights, beside the .onnx file"
    return "export the model again"


def session_options(settings: Settings) -> ort.SessionOptions:
    """Return ONNX Runtime's options for a model's configuration."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(settings.integer("intra_op_thread_count"), 0)  # 0: all cores
    options.inter_op_num_threads = max(settings.integer("inter_op_thread_count"), 0)
    mode = settings.integer("execution_mode")
    if mode not in (0, 1):
        raise ConfigError(
            "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 "
            f"but got {mode} .",
            "write 0 or 1",
        )
    if mode == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = settings.boolean("enable_mem_arena", default=True)
    options.enable_mem_pattern = settings.boolean("enable_mem_pattern", default=True)
    level = int(settings.config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, GRAPH_LEVELS[0])
    return options


def wants_openvino(settings: Settings) -> bool:
    """Say whether the configuration asks for OpenVINO; refuse any other CPU accelerator."""
    optimization = settings.config.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {})
    names = [entry["name"] for entry in accelerators.get("cpu_execution_accelerator", [])]
    for name in names:
        if name != "openvino":
            raise ConfigError(
                f"unknown Execution Accelerator '{name}' is requested",
                'the only one is name: "openvino"',
            )
    return bool(names)


class Shaped:
    """An engine whose scalars Triton sends and takes as tensors of shape [1]."""

    def __init__(self, engine: Engine, settings: Settings, found: Signature) -> None:
        known = {t.name: t for t in (*found.initializers, *found.inputs)}
        self._engine = engine
        self._scalars = [t.name for t in settings.inputs if known[t.name].shape == ()]
        shapes = {t.name: t.shape for t in settings.outputs}
        scalars = {t.name for t in found.outputs if t.shape == ()}
        self._outputs = {n: shape for n, shape in shapes.items() if n in scalars and shape}

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference."""
        scalars = {name: inputs[name].reshape(()) for name in self._scalars if name in inputs}
        arrays = self._engine.run(inputs | scalars, outputs)
        return [
            array.reshape(self._outputs[name]) if name in self._outputs else array
            for name, array in zip(outputs, arrays, strict=True)
        ]


class ONNXEngine:
    """A session of ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession, settings: Settings) -> None:
        self._session = session
        self._strings = [t.name for t in settings.inputs if t.dtype == "TYPE_STRING"]

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference."""
        for name in self._strings:
            if name in inputs:  # ONNX strings are text, Triton's are bytes
                inputs[name] = _decode(inputs[name])
        try:
            return self._session.run(outputs, inputs)
        except Exception as error:  # its exceptions have no common base of their own
            raise EngineError(_native(error)) from error


def _decode(array: np.ndarray) -> np.ndarray:
    try:
        text = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise RequestError(f"got a string that is not UTF-8: {error}") from error
    return np.array(text, dtype=np.object_).reshape(array.shape)


def signature(session: ort.InferenceSession) -> Signature:
    """Describe a session's inputs and outputs."""
    return Signature(
        tuple(map(_tensor, session.get_inputs())),
        tuple(map(_tensor, session.get_outputs())),
        tuple(map(_tensor, session.get_overridable_initializers())),
    )


def _tensor(port: ort.NodeArg) -> Tensor:
    kind = port.type.partition("(")[0]
    if kind != "tensor":
        return Tensor(port.name, OTHER_TYPES.get(kind, "ONNX_TYPE_UNKNOWN"), None)
    shape = tuple(size if isinstance(size, int) else -1 for size in port.shape)
    return Tensor(port.name, TYPES.get(port.type, "TYPE_<invalid>"), shape)
