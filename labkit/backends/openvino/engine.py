"""OpenVINO models: settings and the static batch of the native backend."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.backends.openvino_engine import OpenVINOEngine
from labkit.backends.settings import Engine, RequestError, Settings

PARAMETERS = (
    "NUM_STREAMS",
    "INFERENCE_NUM_THREADS",
    "PERFORMANCE_HINT",
    "ENABLE_BATCH_PADDING",
)
REFUSED = {
    "CPU_EXTENSION_PATH": "the stand-in loads no extension libraries",
    "RESHAPE_IO_LAYERS": "the stand-in takes the model's layers as they are",
    "TARGET_DEVICE": "the stand-in computes on the CPU",
}


def load(settings: Settings) -> Engine:
    """Load the model: with a static batch, as the native backend does, when it is batched."""
    settings.check_parameters(PARAMETERS, REFUSED)
    path = settings.file("model.xml")
    if settings.max_batch_size == 0:
        return OpenVINOEngine(path, settings, properties(settings))
    engine = OpenVINOEngine(path, settings, properties(settings), settings.max_batch_size)
    padded = settings.boolean("ENABLE_BATCH_PADDING", default=False)
    return StaticBatch(engine, settings.max_batch_size, padded)


def properties(settings: Settings) -> dict[str, Any]:
    """Return OpenVINO's properties for a model's configuration; threads are always explicit."""
    chosen: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": settings.integer("INFERENCE_NUM_THREADS")
        or len(os.sched_getaffinity(0))
    }
    hint = settings.choice(
        "PERFORMANCE_HINT", ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT", "UNDEFINED")
    )
    if hint and hint != "UNDEFINED":
        chosen["PERFORMANCE_HINT"] = hint
    streams = settings.parameters.get("NUM_STREAMS")
    if streams in ("AUTO", "NUMA"):
        chosen["NUM_STREAMS"] = streams
    elif streams is not None:
        chosen["NUM_STREAMS"] = settings.integer("NUM_STREAMS", minimum=1)
    return chosen


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
            raise RequestError(
                f"got a batch of {rows}, expected exactly {self._rows}: the openvino backend "
                "compiles max_batch_size as a static batch; use max_batch_size: 0 with a variable "
                "first dimension, or parameter ENABLE_BATCH_PADDING"
            )
        full = {
            name: np.concatenate([a, np.zeros((self._rows - rows, *a.shape[1:]), a.dtype)])
            for name, a in inputs.items()
        }
        return [array[:rows] for array in self._engine.run(full, outputs)]
