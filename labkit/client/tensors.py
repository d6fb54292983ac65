"""Arrays against the model's metadata: what fits, what does not, and how to cut a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from labkit.client.errors import BadInput

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the model's metadata describes it; -1 in `shape` means any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelCard:
    """What the client must know of a model before it can ask: read from the server, once."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_batch_size: int  # 0: the config leaves batching to the model

    @classmethod
    def parse(cls, metadata: dict[str, Any], config: dict[str, Any]) -> ModelCard:
        """Build the card from the two answers of `/v2/models/<m>` and `/v2/models/<m>/config`."""

        def tensors(kind: str) -> tuple[TensorInfo, ...]:
            return tuple(
                TensorInfo(t["name"], t["datatype"], tuple(int(d) for d in t["shape"]))
                for t in metadata.get(kind, [])
            )

        return cls(
            name=metadata["name"],
            inputs=tensors("inputs"),
            outputs=tensors("outputs"),
            max_batch_size=int(config.get("max_batch_size", 0)),
        )


def check_inputs(card: ModelCard, arrays: Mapping[str, np.ndarray]) -> None:
    """Hold names, dtypes and shapes against the model's metadata.

    Raises:
        BadInput: one sentence: what was got, what was expected, what to do.
    """
    expected = {t.name: t for t in card.inputs}
    for name, array in arrays.items():
        if name not in expected:
            raise BadInput(f"{card.name} has no input {name!r}; its inputs: {', '.join(expected)}")
        _check_dtype(card, expected[name], array)
        _check_shape(card, expected[name], array)
    if card.max_batch_size and len({len(a) for a in arrays.values()}) > 1:
        sizes = ", ".join(f"{name}: {len(a)}" for name, a in arrays.items())
        raise BadInput(f"the inputs of {card.name} differ in batch size ({sizes})")


def _check_dtype(card: ModelCard, tensor: TensorInfo, array: np.ndarray) -> None:
    got = np_to_triton_dtype(array.dtype)
    if got == tensor.datatype:
        return
    want = np.dtype(triton_to_np_dtype(tensor.datatype)).name
    fix = f"use .astype(np.{want})"
    if array.dtype == np.uint8 and tensor.datatype == "FP32":
        fix = "pass raw pixels through labkit.data.preprocess"
    raise BadInput(
        f"input {tensor.name!r} of {card.name} takes {tensor.datatype} (numpy {want}), "
        f"got {array.dtype}; {fix}"
    )


def _check_shape(card: ModelCard, tensor: TensorInfo, array: np.ndarray) -> None:
    fits = array.ndim == len(tensor.shape) and all(
        want in (-1, got) for want, got in zip(tensor.shape, array.shape, strict=True)
    )
    if fits and array.size:
        return
    want = "(" + ", ".join("N" if d == -1 else str(d) for d in tensor.shape) + ")"
    fix = ""
    if fits:
        fix = "; there is nothing in it"
    elif array.ndim == len(tensor.shape) - 1 and array.shape == tensor.shape[1:]:
        fix = "; a single image needs a batch axis: images[None]"
    elif array.ndim == 4 and array.shape[3:] + array.shape[1:3] == tensor.shape[1:]:
        fix = "; channels come first: images.transpose(0, 3, 1, 2)"
    raise BadInput(
        f"input {tensor.name!r} of {card.name} takes shape {want}, got {array.shape}{fix}"
    )


def check_range(card: ModelCard, images: np.ndarray) -> None:
    """Hold float images against [0, 1]; the models normalize inside.

    Raises:
        BadInput: a value outside, or not a number.
    """
    if images.dtype.kind != "f" or not images.size:
        return
    low, high = float(images.min()), float(images.max())  # NaN spreads through both
    if not (low >= 0.0 and high <= 1.0):
        got = "values that are not numbers" if low != low else f"values from {low:g} to {high:g}"
        raise BadInput(
            f"{card.name} takes images in [0, 1], got {got}; "
            "use labkit.data.preprocess on raw pixels, and do not normalize: the model does"
        )


def split(arrays: Arrays, limit: int) -> Iterator[Arrays]:
    """Yield the arrays cut along axis 0 into pieces of at most `limit` rows; 0 means whole."""
    rows = len(next(iter(arrays.values()))) if arrays and limit else 0
    if rows <= limit:
        yield arrays
        return
    for start in range(0, rows, limit):
        yield {name: array[start : start + limit] for name, array in arrays.items()}


def named(card: ModelCard, inputs: np.ndarray | Mapping[str, np.ndarray]) -> Arrays:
    """Return {input name: contiguous array}; a single array belongs to a model with one input.

    Raises:
        BadInput: no array, or one array for a model with several inputs.
    """
    if isinstance(inputs, Mapping):
        if not inputs:
            raise BadInput(f"no arrays given; {card.name} takes {[t.name for t in card.inputs]}")
        return {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    if not isinstance(inputs, np.ndarray):
        raise BadInput(f"got {type(inputs).__name__}; expected a numpy array of images")
    if len(card.inputs) != 1:
        names = ", ".join(t.name for t in card.inputs)
        raise BadInput(f"{card.name} has several inputs: pass a dict with the keys {names}")
    return {card.inputs[0].name: np.ascontiguousarray(inputs)}


def join(answers: list[Arrays]) -> Arrays:
    """Put the answers to the pieces of a batch together again."""
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
