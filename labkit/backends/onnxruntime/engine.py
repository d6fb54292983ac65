"""ONNX models in ONNX Runtime: settings as the native backend reads them."""

import os
import sys
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from labkit.backends.settings import Engine, RequestError, Settings, Tensor

PARAMETERS = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
)
REFUSED = {
    "share_session_between_instances": "each instance of a stand-in is a process of its own",
}
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
}


def load(settings: Settings) -> Engine:
    """Load the model with the accelerator that its configuration asks for."""
    settings.check_parameters(PARAMETERS, REFUSED)
    options = session_options(settings)
    path = settings.file("model.onnx")
    if not wants_openvino(settings):
        return ONNXEngine(ort.InferenceSession(path, options, ["CPUExecutionProvider"]), settings)
    if "OpenVINOExecutionProvider" in ort.get_available_providers():
        providers = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
        return ONNXEngine(ort.InferenceSession(path, options, providers), settings)
    from labkit.backends.openvino_engine import OpenVINOEngine

    # The accelerator ignores every thread parameter and uses the whole machine, in full precision.
    properties = {
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return OpenVINOEngine(path, settings, properties)


def session_options(settings: Settings) -> ort.SessionOptions:
    """Return ONNX Runtime's options for a model's configuration."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.integer("intra_op_thread_count") or 0  # 0: all cores
    options.inter_op_num_threads = settings.integer("inter_op_thread_count") or 0
    mode = settings.choice("execution_mode", ("0", "1"))
    if mode == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    elif options.inter_op_num_threads:
        print(
            f"model '{settings.model}': inter_op_thread_count has no effect unless execution_mode "
            "is 1",
            file=sys.stderr,
        )
    options.enable_cpu_mem_arena = settings.boolean("enable_mem_arena", default=True)
    options.enable_mem_pattern = settings.boolean("enable_mem_pattern", default=True)
    level = int(settings.config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise settings.error(
            f"optimization.graph.level is {level}, expected one of {sorted(GRAPH_LEVELS)}"
        )
    options.graph_optimization_level = GRAPH_LEVELS[level]
    return options


def wants_openvino(settings: Settings) -> bool:
    """Say whether the configuration asks for OpenVINO; refuse any other CPU accelerator."""
    optimization = settings.config.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {})
    for entry in accelerators.get("gpu_execution_accelerator", []):
        print(
            f"model '{settings.model}': accelerator '{entry['name']}' is for GPU instances, and is "
            "left out on the CPU",
            file=sys.stderr,
        )
    names = [entry["name"] for entry in accelerators.get("cpu_execution_accelerator", [])]
    for name in names:
        if name != "openvino":
            raise settings.error(
                f"unknown Execution Accelerator '{name}' is requested, expected 'openvino'"
            )
    return bool(names)


class ONNXEngine:
    """A session of ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession, settings: Settings) -> None:
        found = [_tensor(port) for port in session.get_inputs()]
        optional = [_tensor(port) for port in session.get_overridable_initializers()]
        file = settings.file("model.onnx").name
        listed = {tensor.name for tensor in settings.inputs}
        settings.match(
            "input",
            settings.inputs,
            found + [tensor for tensor in optional if tensor.name in listed],
            file,
            need_all=True,
        )
        outputs = [_tensor(port) for port in session.get_outputs()]
        settings.match("output", settings.outputs, outputs, file, need_all=False)
        self._session = session
        self._strings = [t.name for t in settings.inputs if t.dtype == "TYPE_STRING"]

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference."""
        for name in self._strings:
            if name in inputs:  # ONNX strings are text, Triton's are bytes
                inputs[name] = _decode(inputs[name])
        try:
            return self._session.run(outputs, inputs)
        except InvalidArgument as error:  # a size or a value that the model cannot take
            raise RequestError(str(error)) from error


def _decode(array: np.ndarray) -> np.ndarray:
    try:
        text = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise RequestError(f"got a string that is not UTF-8: {error}") from error
    return np.array(text, dtype=np.object_).reshape(array.shape)


def _tensor(port: ort.NodeArg) -> Tensor:
    shape = tuple(size if isinstance(size, int) else -1 for size in port.shape)
    return Tensor(port.name, TYPES.get(port.type), shape)
