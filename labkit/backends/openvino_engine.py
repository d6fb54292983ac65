"""A model compiled by OpenVINO, for the openvino stand-in and onnxruntime's accelerator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from labkit.backends.rules import match_openvino_inputs, match_openvino_outputs
from labkit.backends.settings import (
    INTERNAL,
    ConfigError,
    EngineError,
    Settings,
    Signature,
    Tensor,
)

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
    "bf16": "TYPE_BF16",
    "string": "TYPE_STRING",
}


class OpenVINOEngine:
    """An IR or ONNX model on OpenVINO's CPU device."""

    def __init__(self, model: Any, settings: Settings, properties: Mapping[str, Any]) -> None:
        """Compile a model that was matched.

        Args:
            model: As `read` and `match` left it.
            settings: The configuration.
            properties: OpenVINO's, with explicit threads and precision.
        """
        self._compiled = openvino.Core().compile_model(model, "CPU", dict(properties))
        self._request = self._compiled.create_infer_request()
        # By position: compiling may leave out names, such as those of an operator of one input.
        self._inputs = {name: at for at, p in enumerate(model.inputs) for name in p.names}
        self._outputs = {name: at for at, p in enumerate(model.outputs) for name in p.names}
        self._shapes = [_shape(port) for port in model.inputs]

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs of one inference."""
        # Inputs are copied: a shared one would be held, in Triton's memory, until the next request.
        by_position = {self._inputs[name]: array for name, array in inputs.items()}
        self._check_shapes(by_position)
        try:
            result = self._request.infer(by_position, share_outputs=True)
        except RuntimeError as error:
            raise EngineError(f"openvino error in running inference - wait : {error}") from error
        return [result[self._outputs[name]] for name in outputs]

    def _check_shapes(self, inputs: Mapping[int, np.ndarray]) -> None:
        """Refuse a shape that the model cannot take.

        OpenVINO 2026.4 refuses it only with two threads or more; with INFERENCE_NUM_THREADS 1 it
        says nothing and leaves the outputs of the request before.
        """
        for at, array in inputs.items():
            expected = self._shapes[at]
            if expected is not None and not _fits(array.shape, expected):
                raise EngineError(
                    "openvino error in setting tensor : the tensor size is not compatible with "
                    f"the model's: got {list(array.shape)}, expected {list(expected)}"
                )


def _fits(given: Sequence[int], expected: Sequence[int]) -> bool:
    return len(given) == len(expected) and all(
        size in (-1, mine) for mine, size in zip(given, expected, strict=True)
    )


def read(path: Path) -> Any:
    """Read a model.

    Raises:
        ConfigError: OpenVINO cannot; natively this ends the whole server.
    """
    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(
            f"{path.parent.name}/{path.name} is damaged, OpenVINO says: {lines[-1][:200]}",
            "export the model again, with its .bin beside it",
            INTERNAL,
            ours=True,
        ) from error


def signature(model: Any) -> Signature:
    """Describe a model's named tensors."""
    return Signature(_tensors(model.inputs), _tensors(model.outputs))


def match(model: Any, settings: Settings) -> Any:
    """Hold a model against its configuration; return it with the batch and types of that.

    Raises:
        ConfigError: It does not fit.
    """
    match_openvino_inputs(settings, signature(model))
    model = _typed(model, settings)
    if settings.batched:
        model.reshape({port: _with_batch(port, settings.max_batch_size) for port in model.inputs})
    match_openvino_outputs(settings, signature(model).outputs)
    return model


def _typed(model: Any, settings: Settings) -> Any:
    """Return the model with the configured types: the native backend converts between them."""
    found = signature(model)
    types = {t.name: t.dtype for t in (*settings.inputs, *settings.outputs)}
    named = {
        name: t.dtype for t in (*found.inputs, *found.outputs) for name in (t.name, *t.aliases)
    }
    if all(named.get(name, dtype) == dtype for name, dtype in types.items()):
        return model
    steps = openvino.preprocess.PrePostProcessor(model)
    element = {dtype: getattr(openvino.Type, kind) for kind, dtype in TYPES.items()}
    for tensor in settings.inputs:
        steps.input(tensor.name).tensor().set_element_type(element[str(tensor.dtype)])
    names = {name for t in found.outputs for name in (t.name, *t.aliases)}
    for tensor in settings.outputs:
        if tensor.name in names and tensor.dtype in element:
            steps.output(tensor.name).tensor().set_element_type(element[str(tensor.dtype)])
    return steps.build()


def _tensors(ports: Sequence[Any]) -> tuple[Tensor, ...]:
    """Describe a model's named ports; one with several names is still one tensor."""
    tensors = []
    for port in ports:
        if port.names:
            name, *aliases = sorted(port.names)
            kind = port.element_type.get_type_name()
            tensors.append(Tensor(name, TYPES.get(kind), _shape(port), aliases=tuple(aliases)))
    return tuple(tensors)


def _with_batch(port: Any, batch: int) -> Any:
    shape = port.partial_shape
    shape[0] = batch
    return shape


def _shape(port: Any) -> tuple[int, ...] | None:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return None
    return tuple(-1 if size.is_dynamic else size.get_length() for size in shape)
