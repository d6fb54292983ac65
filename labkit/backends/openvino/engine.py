"""OpenVINO models: settings and the static batch of the native backend."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino

from labkit.backends.openvino_engine import OpenVINOEngine, match, read, signature
from labkit.backends.rules import complete
from labkit.backends.settings import (
    INTERNAL,
    ConfigError,
    Engine,
    EngineError,
    Settings,
)

HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")


def load(settings: Settings) -> Engine:
    """Load the model: with a static batch, as the native backend does, when it is batched."""
    engine = OpenVINOEngine(verify(settings), settings, properties(settings))
    if not settings.batched:
        return engine
    return StaticBatch(engine, settings.max_batch_size, padded(settings))


def verify(settings: Settings) -> Any:
    """Return the model, held against its configuration."""
    properties(settings)
    model = match(_read(settings), settings)
    if settings.native and str(settings.config.get("default_model_filename")).endswith(".onnx"):
        _refuse_lost_names(model, settings)
    return model


def _refuse_lost_names(model: Any, settings: Settings) -> None:
    """Refuse a model whose tensors lose their names when it is compiled: natively by name only."""
    compiled = openvino.Core().compile_model(model, "CPU")
    kept = {name for port in (*compiled.inputs, *compiled.outputs) for name in port.names}
    for tensor in (*settings.inputs, *settings.outputs):
        if tensor.name not in kept:
            raise ConfigError(
                f"Port for tensor name {tensor.name} was not found.",
                "leave out the operator that does nothing to it, or use the onnxruntime backend",
                INTERNAL,
                ours=True,
            )


def completed(settings: Settings) -> dict[str, Any]:
    """Return what the native backend adds to a configuration."""
    return complete(settings, signature(_read(settings)), "openvino")


def _read(settings: Settings) -> Any:
    missing = "{path.parent.name}/{path.name} is missing"
    return read(settings.file("model.xml", missing, INTERNAL, ours=True))


def padded(settings: Settings) -> bool:
    """Say whether short batches are filled up; this backend knows one word for it."""
    return settings.parameters.get("ENABLE_BATCH_PADDING", "").lower() == "yes"


def properties(settings: Settings) -> dict[str, Any]:
    """Return OpenVINO's properties for a model's configuration; threads are always explicit."""
    chosen: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": _number(settings, "INFERENCE_NUM_THREADS")
        or len(os.sched_getaffinity(0))
    }
    if compilation := _number(settings, "COMPILATION_NUM_THREADS"):
        chosen["COMPILATION_NUM_THREADS"] = compilation
    if text := settings.parameters.get("HINT_BF16"):
        if text.lower() != "yes":
            raise _unexpected("HINT_BF16", "YES", text)
        chosen["INFERENCE_PRECISION_HINT"] = "bf16"
    if hint := settings.parameters.get("PERFORMANCE_HINT"):
        if hint.upper() not in HINTS:
            raise _unexpected("PERFORMANCE_HINT", "/".join(HINTS), hint)
        chosen["PERFORMANCE_HINT"] = hint.upper()
    if streams := settings.parameters.get("NUM_STREAMS"):
        if streams.lower() in ("auto", "numa"):
            chosen["NUM_STREAMS"] = streams.upper()
        elif streams.isdecimal():
            chosen["NUM_STREAMS"] = int(streams)
        else:
            raise ConfigError(
                "expected the parameter 'NUM_STREAMS' to be either AUTO/NUMA/<int_value>, got "
                f"{streams.lower()}",
                "write AUTO, NUMA or a whole number",
            )
    return chosen


def _number(settings: Settings, name: str) -> int:
    text = settings.parameters.get(name) or "0"
    if not text.isdecimal():
        raise _unexpected(name, "a non-negative number", text)
    return int(text)


def _unexpected(name: str, expected: str, got: str) -> ConfigError:
    return ConfigError(
        f"expected the parameter '{name}' to be {expected}, got {got.lower()}",
        f"write {name} as {expected}",
    )


class StaticBatch:
    """The native backend's rule: a batch has exactly `max_batch_size` rows, or is padded to it."""

    def __init__(self, engine: Engine, rows: int, padded: bool) -> None:
        self._engine, self._rows, self._padded = engine, rows, padded

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch of the static size."""
        rows = len(next(iter(inputs.values())))
        if rows == self._rows:
            return self._engine.run(inputs, outputs)
        if not self._padded:
            raise EngineError(
                f"expected requests with batch size '{self._rows}', got '{rows}'... this error can "
                "be avoided by setting 'ENABLE_BATCH_PADDING' parameter in model configuration to "
                "'YES' at a performance cost. → or write max_batch_size: 0 with a variable first "
                "dimension: natively, padding corrupts memory"
            )
        full = {
            name: np.concatenate([a, np.zeros((self._rows - rows, *a.shape[1:]), a.dtype)])
            for name, a in inputs.items()
        }
        return [array[:rows] for array in self._engine.run(full, outputs)]
