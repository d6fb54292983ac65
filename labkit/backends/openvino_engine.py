"""A model compiled by OpenVINO, for the openvino stand-in and onnxruntime's accelerator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from labkit.backends.settings import RequestError, Settings, Tensor, fits

TYPES = {
    "boolean": "TYPE_BOOL",
    "u8": "TYPE_UINT8",
    "u16": "TYPE_UINT16",
    "u32": "TYPE_UINT32",
    "u64": "TYPE_UINT64",
    "i8": "TYPE_INT8",
    "i16": "TYPE_INT16",
    "i32": "TYPE_INT32",
    "i64": "TYPE_INT64",
    "f16": "TYPE_FP16",
    "f32": "TYPE_FP32",
    "f64": "TYPE_FP64",
    "string": "TYPE_STRING",
}


class OpenVINOEngine:
    """An IR or ONNX model on OpenVINO's CPU device."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        properties: Mapping[str, Any],
        batch: int | None = None,
    ) -> None:
        model = openvino.Core().read_model(path)
        settings.match("input", settings.inputs, _tensors(model.inputs), path.name, need_all=True)
        settings.match(
            "output", settings.outputs, _tensors(model.outputs), path.name, need_all=False
        )
        if batch is not None:
            model.reshape({port: _with_batch(port, batch) for port in model.inputs})
        self._compiled = openvino.Core().compile_model(model, "CPU", dict(properties))
        self._request = self._compiled.create_infer_request()
        self._shapes = {name: _shape(port) for port in self._compiled.inputs for name in port.names}

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference."""
        # Inputs are copied: a shared one would be held, in Triton's memory, until the next request.
        self._check_shapes(inputs)
        result = self._request.infer(inputs, share_outputs=True)
        return [result[name] for name in outputs]

    def _check_shapes(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuse a shape that the model cannot take.

        OpenVINO 2026.4 refuses it only with two threads or more; with INFERENCE_NUM_THREADS 1 it
        says nothing and leaves the outputs of the request before.
        """
        for name, array in inputs.items():
            expected = self._shapes[name]
            if expected is not None and not fits(array.shape, expected):
                raise RequestError(
                    f"input '{name}' has shape {list(array.shape)}, expected {list(expected)}"
                )


def _tensors(ports: Sequence[Any]) -> list[Tensor]:
    """Describe a model's named ports; one with several names is still one tensor."""
    tensors = []
    for port in ports:
        if port.names:
            name, *aliases = sorted(port.names)
            dtype = TYPES.get(port.element_type.get_type_name())
            tensors.append(Tensor(name, dtype, _shape(port), aliases=tuple(aliases)))
    return tensors


def _with_batch(port: Any, batch: int) -> Any:
    shape = port.partial_shape
    shape[0] = batch
    return shape


def _shape(port: Any) -> tuple[int, ...] | None:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return None
    return tuple(-1 if size.is_dynamic else size.get_length() for size in shape)
