"""Two readings of a metrics page, and what happened between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from labkit.client import Sample

PREFIX: Final = "nv_inference_"
COMPUTE: Final = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Point:
    """What one model did between two readings.

    Attributes:
        at_s: Seconds since the chart began, at the later reading.
        requests_per_s: Answered requests.
        queue_ms: Mean wait per request; not a number without requests, as the next two.
        compute_ms: Mean time of computing a request, copying in and out included.
        batch: Images per execution.
    """

    at_s: float
    requests_per_s: float
    queue_ms: float
    compute_ms: float
    batch: float


def counters(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return model → counter, without `nv_inference_` → its sum over the model's versions."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        model = sample.labels.get("model")
        if model is not None and sample.name.startswith(PREFIX):
            counted = found.setdefault(model, {})
            name = sample.name.removeprefix(PREFIX)
            counted[name] = counted.get(name, 0.0) + sample.value
    return found


def between(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float, at_s: float
) -> Point:
    """Subtract two readings of one model's counters that lie some seconds apart."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    def ratio(top: float, bottom: float) -> float:
        return top / bottom if bottom > 0 else float("nan")

    requests = grown("request_success")
    compute_us = sum(grown(f"{part}_duration_us") for part in COMPUTE)
    return Point(
        at_s,
        max(requests, 0.0) / seconds,  # a server that was started again counts from 0
        ratio(grown("queue_duration_us") / 1e3, requests),
        ratio(compute_us / 1e3, requests),
        ratio(grown("count"), grown("exec_count")),
    )
