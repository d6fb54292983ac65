"""What replicas did over some minutes, read from Prometheus: the dashboard's questions, to draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_api import PrometheusClient

Lines = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

# The dashboard's and alerts.yml's own expressions; a drill of seconds shortens the minute in them.
WINDOW: Final = "[1m]"
_PER_REQUEST: Final = (
    "clamp_min(sum(rate(nv_inference_request_success[1m])) by (job, model), 0.001)"
)
EXPRESSIONS: Final = {
    "requests_per_s": "sum(rate(nv_inference_request_success[1m])) by (instance)",
    "queue_us": f"sum(rate(nv_inference_queue_duration_us[1m])) by (job, model) / {_PER_REQUEST}",
    "compute_us": (
        "( sum(rate(nv_inference_compute_input_duration_us[1m])) by (job, model)"
        " + sum(rate(nv_inference_compute_infer_duration_us[1m])) by (job, model)"
        " + sum(rate(nv_inference_compute_output_duration_us[1m])) by (job, model) )"
        f" / {_PER_REQUEST}"
    ),
    "batch": (
        "sum(rate(nv_inference_count[1m])) by (job, model)"
        " / (sum(rate(nv_inference_exec_count[1m])) by (job, model) > 0)"
    ),
    "failures_per_s": "sum(rate(nv_inference_request_failure[1m])) by (model, reason)",
}
LABELS: Final = {
    "requests_per_s": ("instance",),
    "queue_us": ("model",),
    "compute_us": ("model",),
    "batch": ("model",),
    "failures_per_s": ("model", "reason"),
}


@dataclass(frozen=True)
class Timeline:
    """Label → (times in seconds since 1970, values), each of shape (n,).

    Attributes:
        requests_per_s: Answered requests per second, of each replica.
        queue_us: Mean wait of a request in µs, of each model over all replicas.
        compute_us: Mean time of computing it in µs, copying in and out included.
        batch: Images per execution; no point where a model did not run.
        failures_per_s: Failed requests per second, by model and reason; only what failed at all.
    """

    requests_per_s: Lines
    queue_us: Lines
    compute_us: Lines
    batch: Lines
    failures_per_s: Lines

    @classmethod
    def read(
        cls,
        prometheus: PrometheusClient,
        start_s: float,
        end_s: float,
        step_s: float = 1.0,
        window_s: int = 5,
    ) -> "Timeline":
        """Ask Prometheus for everything between two times.

        Args:
            prometheus: Running; it has scraped for a while.
            start_s: In seconds since 1970, as `time.time()` gives.
            end_s: As `start_s`.
            step_s: Between two points.
            window_s: Each point is the mean of so many seconds before it; at least two scrapes
                must lie within.

        Raises:
            PrometheusError: It does not answer.
        """

        def lines(name: str) -> Lines:
            expression = EXPRESSIONS[name].replace(WINDOW, f"[{window_s}s]")
            return {
                " ".join(series.labels.get(label, "") for label in LABELS[name]): (
                    series.times_s,
                    series.values,
                )
                for series in prometheus.series(expression, start_s, end_s, step_s)
            }

        found = {name: lines(name) for name in EXPRESSIONS}
        failed = {k: v for k, v in found["failures_per_s"].items() if v[1].any()}
        return cls(**found | {"failures_per_s": failed})
