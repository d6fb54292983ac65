"""TorchScript models: settings and tensor names of the native backend."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from labkit.backends.rules import match_torch, torch_outputs
from labkit.backends.settings import (
    INTERNAL,
    UNAVAILABLE,
    ConfigError,
    Engine,
    EngineError,
    RequestError,
    Settings,
    Tensor,
)
from labkit.torchscript import open_torchscript

BOOLEANS = (
    "INFERENCE_MODE",
    "DISABLE_OPTIMIZED_EXECUTION",
    "ENABLE_WEIGHT_SHARING",
    "ENABLE_CACHE_CLEANING",
    "ENABLE_JIT_PROFILING",
    "ENABLE_JIT_EXECUTOR",
    "ENABLE_TENSOR_FUSER",
)

TYPES = {
    torch.bool: "TYPE_BOOL",
    torch.uint8: "TYPE_UINT8",
    torch.int8: "TYPE_INT8",
    torch.int16: "TYPE_INT16",
    torch.int32: "TYPE_INT32",
    torch.int64: "TYPE_INT64",
    torch.float16: "TYPE_FP16",
    torch.float32: "TYPE_FP32",
    torch.float64: "TYPE_FP64",
}
# A lone request's input is a view of Triton's memory, as in the native backend.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")


def load(settings: Settings) -> Engine:
    """Load the model, and set the threads of this process."""
    cores = len(os.sched_getaffinity(0))
    intra, between = threads(settings)
    torch.set_num_threads(intra or cores)
    if torch.get_num_interop_threads() != (between or cores):  # PyTorch takes it once in a process
        torch.set_num_interop_threads(between or cores)
    if settings.boolean("DISABLE_OPTIMIZED_EXECUTION", default=False):
        torch._C._set_graph_executor_optimize(False)
    return TorchEngine(settings)


def threads(settings: Settings) -> tuple[int, int]:
    """Return threads within an operator and between operators; 0 for the backend's default."""
    return (
        max(settings.integer("INTRA_OP_THREAD_COUNT"), 0),
        max(settings.integer("INTER_OP_THREAD_COUNT"), 0),
    )


def verify(settings: Settings) -> None:
    """Hold the model against its configuration: names and numbers of its tensors."""
    threads(settings)
    TorchEngine(settings)


def completed(settings: Settings) -> dict[str, Any]:
    """Return what the native backend adds to a configuration: nothing, for TorchScript."""
    return {}


class TorchEngine:
    """A TorchScript module."""

    def __init__(self, settings: Settings) -> None:
        for name in BOOLEANS:
            settings.boolean(name, default=False)
        self._module = _open(settings)
        schema = self._module.forward.schema
        arguments = [Tensor(a.name, str(a.type), None) for a in schema.arguments[1:]]  # not self
        self._dictionary = len(arguments) == 1 and str(arguments[0].dtype).startswith("Dict")
        self._order = match_torch(settings, arguments)
        self._index = torch_outputs(settings, _returned(schema))
        self._dtypes = {tensor.name: tensor.dtype for tensor in settings.outputs}
        self._inference_mode = settings.boolean("INFERENCE_MODE", default=True)

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference.

        TorchScript raises the same `RuntimeError` for every failure of an operator, so a size or
        a value that the model cannot take counts as an internal error, as in the native backend.
        """
        tensors = {name: _to_torch(inputs[name]) for name in self._order}
        try:
            results = self._forward([tensors] if self._dictionary else list(tensors.values()))
        except Exception as error:  # torch.jit.Error is no RuntimeError
            raise EngineError(f"PyTorch execute failure: {error}") from error
        return [self._output(name, results[self._index[name]]) for name in outputs]

    def _output(self, name: str, value: Any) -> np.ndarray:
        """Return an output; refuse what the native backend does not exchange."""
        if not isinstance(value, torch.Tensor):
            return np.array(value, dtype=np.object_)
        found = TYPES.get(value.dtype, "TYPE_<invalid>")
        if found != self._dtypes[name]:
            raise RequestError(
                f"configuration expects datatype {self._dtypes[name]} for output '{name}', model "
                f"provides {found}"
            )
        if value.dim() == 0:
            raise RequestError(f"output '{name}' is a scalar which is not supported.")
        return value.detach().numpy()

    def _forward(self, tensors: list[Any]) -> Sequence[Any]:
        with torch.inference_mode(self._inference_mode), torch.no_grad():
            result = self._module(*tensors)
        if isinstance(result, torch.Tensor) or (
            isinstance(result, list) and all(isinstance(item, str) for item in result)
        ):
            return [result]
        return result


def _open(settings: Settings) -> Any:
    path = settings.file(
        "model.pt", "unable to find '{path}' for model instance '{model}'", UNAVAILABLE
    )
    try:
        return open_torchscript(path)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"failed to load model '{settings.model}': {lines[0]}",
            "save it with torch.jit.save",
            INTERNAL,
        ) from error


def _returned(schema: Any) -> list[str] | None:
    """Return TorchScript's types of what `forward` returns, each by itself."""
    if len(schema.returns) != 1:
        return [str(value.type) for value in schema.returns]
    kind = schema.returns[0].type
    if kind.kind() == "TupleType":
        return [str(element) for element in kind.elements()]
    return [str(kind)]


def _to_torch(array: np.ndarray) -> Any:
    if array.dtype == np.object_:
        try:
            return [i.decode() if isinstance(i, bytes) else str(i) for i in array.ravel()]
        except UnicodeDecodeError as error:
            raise RequestError(f"got a string that is not UTF-8: {error}") from error
    return torch.from_numpy(array)
