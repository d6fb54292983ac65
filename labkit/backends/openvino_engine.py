"""A model compiled by OpenVINO, for the openvino stand-in and onnxruntime's accelerator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from labkit.backends.settings import Settings, Tensor

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

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference."""
        # Inputs are copied: a shared one would be held, in Triton's memory, until the next request.
        result = self._request.infer(inputs, share_outputs=True)
        return [result[name] for name in outputs]


def _tensors(ports: Sequence[Any]) -> list[Tensor]:
    """Describe a model's ports; one with several names appears under each of them."""
    return [
        Tensor(name, TYPES.get(port.element_type.get_type_name()), _shape(port))
        for port in ports
        for name in sorted(port.names)
    ]


def _with_batch(port: Any, batch: int) -> Any:
    shape = port.partial_shape
    shape[0] = batch
    return shape


def _shape(port: Any) -> tuple[int, ...] | None:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return None
    return tuple(-1 if size.is_dynamic else size.get_length() for size in shape)
