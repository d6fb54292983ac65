"""TorchScript models: settings and tensor names of the native backend."""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from labkit.backends.settings import Engine, RequestError, Settings, Tensor

PARAMETERS = (
    "INFERENCE_MODE",
    "DISABLE_OPTIMIZED_EXECUTION",
    "INTRA_OP_THREAD_COUNT",
    "INTER_OP_THREAD_COUNT",
)
REFUSED = {
    "ENABLE_WEIGHT_SHARING": "each instance of a stand-in is a process of its own",
    "ENABLE_CACHE_CLEANING": "it frees GPU memory, and the stand-in computes on the CPU",
}
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
_NUMBERED = re.compile(r".+__(\d+)$")


def load(settings: Settings) -> Engine:
    """Load the model and try it once on zeros of the configured shapes."""
    settings.check_parameters(PARAMETERS, REFUSED)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(settings.integer("INTRA_OP_THREAD_COUNT") or cores)
    between = settings.integer("INTER_OP_THREAD_COUNT") or cores
    if torch.get_num_interop_threads() != between:  # PyTorch takes it once in a process
        torch.set_num_interop_threads(between)
    if settings.boolean("DISABLE_OPTIMIZED_EXECUTION", default=False):
        torch._C._set_graph_executor_optimize(False)
    return TorchEngine(settings)


class TorchEngine:
    """A TorchScript module."""

    def __init__(self, settings: Settings) -> None:
        path = settings.file("model.pt")
        self._settings = settings
        self._module = torch.jit.load(path, map_location="cpu").eval()
        arguments = [a.name for a in self._module.forward.schema.arguments][1:]  # without self
        self._order = input_order(settings, arguments)
        self._index = output_indices(settings)
        self._inference_mode = settings.boolean("INFERENCE_MODE", default=True)
        self._try_once()

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference.

        TorchScript raises the same `RuntimeError` for every failure of an operator, so a size or
        a value that the model cannot take counts as an internal error, as in the native backend.
        """
        results = self._forward([_to_torch(inputs[name]) for name in self._order])
        return [_to_numpy(results[self._index[name]]) for name in outputs]

    def _forward(self, tensors: list[Any]) -> Sequence[Any]:
        with torch.inference_mode(self._inference_mode), torch.no_grad():
            result = self._module(*tensors)
        if isinstance(result, torch.Tensor) or (
            isinstance(result, list) and all(isinstance(item, str) for item in result)
        ):
            return [result]
        return result

    def _try_once(self) -> None:
        """Hold outputs against the configuration, where its dims leave only the batch open."""
        settings = self._settings
        shapes = [tensor.shape or () for tensor in settings.inputs]
        open_dims = any(-1 in shape[settings.max_batch_size > 0 :] for shape in shapes)
        if open_dims or any(tensor.dtype == "TYPE_STRING" for tensor in settings.inputs):
            return
        zeros = {
            tensor.name: np.zeros([max(size, 1) for size in tensor.shape or ()], tensor.numpy_dtype)
            for tensor in settings.inputs
        }
        try:
            results = self._forward([_to_torch(zeros[name]) for name in self._order])
        except Exception as error:
            dims = {name: list(array.shape) for name, array in zeros.items()}
            raise settings.error(
                f"model.pt does not take the configured inputs, tried with shapes {dims}: {error}"
            ) from error
        found = []
        for name, index in self._index.items():
            if index >= len(results):
                raise settings.error(
                    f"output '{name}' is number {index}, but model.pt returns {len(results)}: "
                    f"expected a number below {len(results)}"
                )
            value = results[index]
            if isinstance(value, torch.Tensor):
                shape = list(value.shape)
                if settings.max_batch_size > 0 and shape:
                    shape[0] = -1
                found.append(Tensor(name, TYPES.get(value.dtype), tuple(shape)))
        listed = [t for t in settings.outputs if t.name in {entry.name for entry in found}]
        if listed:
            settings.match("output", listed, found, "model.pt", need_all=False)


def input_order(settings: Settings, arguments: Sequence[str]) -> list[str]:
    """Return the configured input names in the order of `forward`'s arguments.

    A name is that of an argument, or `<anything>__<index>`.
    """
    names = [tensor.name for tensor in settings.inputs]
    positions: dict[int, str] = {}
    for name in names:
        numbered = _NUMBERED.fullmatch(name)
        if name in arguments:
            position = arguments.index(name)
        elif numbered:
            position = int(numbered[1])
        else:
            raise settings.error(
                f"input '{name}' is no argument of forward({', '.join(arguments)}), expected one "
                "of those names or <name>__<index>"
            )
        if position >= len(arguments) or position in positions:
            raise settings.error(
                f"inputs {', '.join(names)} do not match forward({', '.join(arguments)})"
            )
        positions[position] = name
    if sorted(positions) != list(range(len(positions))) or not positions:
        raise settings.error(
            f"inputs {', '.join(names) or '(none)'} leave out an argument of "
            f"forward({', '.join(arguments)})"
        )
    return [positions[position] for position in sorted(positions)]


def output_indices(settings: Settings) -> dict[str, int]:
    """Return output name → its position in what `forward` returns."""
    if not settings.outputs:
        raise settings.error("config.pbtxt lists no output, expected names like OUTPUT__0")
    indices = {}
    for tensor in settings.outputs:
        numbered = _NUMBERED.fullmatch(tensor.name)
        if not numbered:
            raise settings.error(
                f"output '{tensor.name}' has no position, expected <name>__<index>: a TorchScript "
                "model's outputs have no names"
            )
        indices[tensor.name] = int(numbered[1])
    return indices


def _to_torch(array: np.ndarray) -> Any:
    if array.dtype == np.object_:
        try:
            return [i.decode() if isinstance(i, bytes) else str(i) for i in array.ravel()]
        except UnicodeDecodeError as error:
            raise RequestError(f"got a string that is not UTF-8: {error}") from error
    return torch.from_numpy(array)


def _to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return np.array(value, dtype=np.object_)
