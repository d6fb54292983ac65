"""Values of a request become Python objects, and what a function returns becomes JSON."""

import base64
import math
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

MAX_ELEMENTS = 2**20
MAX_DEPTH = 8  # lists in lists of an answer
_VIEWS: tuple[type[Collection[Any]], ...] = (type({}.keys()), type({}.values()))
_SEQUENCES: tuple[type[Collection[Any]], ...] = (list, tuple, range, *_VIEWS)


def plain(value: Any, depth: int = 0) -> Any:
    """Turn a value into what JSON knows; arrays and tuples become lists, NaN and infinity null.

    Raises:
        TypeError: it is of a kind that no exercise asks for.
        ValueError: it is too large, or nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"the answer has more than {MAX_DEPTH} lists in each other")
    if isinstance(value, torch.Tensor | np.ndarray):
        if math.prod(value.shape) > MAX_ELEMENTS:
            raise ValueError(f"the answer has shape {tuple(value.shape)}, which is too large")
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, _SEQUENCES):
        return [plain(entry, depth + 1) for entry in value]
    kind = type(value).__name__
    raise TypeError(f"the function returned a {kind}, expected numbers, text, lists or arrays")


class Reader:
    """Makes Python objects from what a request says.

    Args:
        addresses: `http`, `grpc`, `metrics` → `host:port` of the running server; may be empty.
        folder: Where a function may write.
    """

    def __init__(self, addresses: dict[str, str], folder: Path) -> None:
        self._addresses, self._folder = addresses, folder
        self._makers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "$array": read_array,
            "$tuple": lambda value: tuple(self.read(entry) for entry in value["$tuple"]),
            "$path": lambda value: folder / value["$path"],
            "$address": lambda value: addresses[value["$address"]],
            "$conv": _read_conv,
            "$norm": _read_norm,
            "$linear": _read_linear,
        }

    def read(self, value: Any) -> Any:
        """Return the object that one value of a request stands for."""
        if isinstance(value, list):
            return [self.read(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        make = self._makers.get(next(iter(value), ""))
        return make(value) if make else {key: self.read(entry) for key, entry in value.items()}

    def given(self, name: str) -> Any:
        """Return a variable that a cell before the exercise defines."""
        if name == "example":
            return torch.zeros(2, 3, 32, 32)
        if name == "server":
            return SimpleNamespace(**self._addresses)
        if name == "client":
            from labkit.client import LabClient

            return LabClient(self._addresses["http"])
        raise ValueError(f"got the variable {name}, which this program cannot make")


def read_array(value: dict[str, Any]) -> np.ndarray:
    """Return a numpy array."""
    data = np.frombuffer(base64.b64decode(value["$array"]), dtype=value["dtype"])
    return data.reshape(value["shape"]).copy()  # a student's code may write into it


def _read_tensor(value: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(read_array(value))


def _read_conv(value: dict[str, Any]) -> nn.Module:
    """Return a convolution without bias, in eval mode."""
    weight = _read_tensor(value["$conv"])
    outputs, inputs, height, width = weight.shape
    conv = nn.Conv2d(inputs, outputs, (height, width), bias=False)
    conv.weight = nn.Parameter(weight)
    return conv.eval()


def _read_norm(value: dict[str, Any]) -> nn.Module:
    """Return a batch norm in eval mode."""
    state = {name: _read_tensor(entry) for name, entry in value["$norm"].items()}
    norm = nn.BatchNorm2d(len(state["weight"]), eps=value["eps"])
    norm.load_state_dict(state, strict=False)  # without the number of batches
    return norm.eval()


def _read_linear(value: dict[str, Any]) -> nn.Module:
    """Return a network of one matrix product, (N, 3, 32, 32) → (N, classes), in eval mode."""
    weight = _read_tensor(value["$linear"])
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(_read_tensor(value["bias"]))
    return nn.Sequential(nn.Flatten(), linear).eval()
