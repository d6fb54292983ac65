"""What a measurement brings back: percentiles with their n, and the server's own account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.compare import Spread
from labkit.errors import LabError

MIN_N = {95: 20, 99: 100}  # at least one sample must lie beyond a percentile for it to mean much


class BenchError(LabError):
    """A load that cannot be put on, or that brought back nothing to measure."""


@dataclass(frozen=True)
class Percentiles:
    """Times in milliseconds; a percentile is None where `n` is too small for it.

    Attributes:
        n: Samples; p95 needs 20 of them, p99 needs 100.
        mean, p50, p95, p99, max: In milliseconds.
    """

    n: int
    mean: float
    p50: float
    p95: float | None
    p99: float | None
    max: float

    @classmethod
    def of(cls, samples_ms: Sequence[float] | NDArray[np.float64]) -> Percentiles:
        """Summarize at least one sample, interpolating linearly between neighbours.

        Raises:
            BenchError: there is no sample.
        """
        values = np.asarray(samples_ms, dtype=np.float64)
        if not values.size:
            raise BenchError("no request was answered, so there is no latency to summarize")

        def at(percent: int) -> float | None:
            enough = values.size >= MIN_N.get(percent, 1)
            return float(np.percentile(values, percent)) if enough else None

        p50 = float(np.percentile(values, 50))
        return cls(values.size, float(values.mean()), p50, at(95), at(99), float(values.max()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {k: getattr(self, k) for k in ("n", "mean", "p50", "p95", "p99", "max")}


@dataclass(frozen=True)
class ServerSplit:
    """Where the server says the time went, between two readings of its counters.

    Attributes:
        requests: Answered requests.
        failures: Requests that failed inside the server.
        inferences: Images (rows) in them; a model with `max_batch_size: 0` counts one a request.
        executions: Times the model ran; fewer than requests where the server batched.
        queue_ms, compute_input_ms, compute_infer_ms, compute_output_ms: Mean per request.
        batch_histogram: Images per execution → how often.
    """

    requests: int
    failures: int
    inferences: int
    executions: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    batch_histogram: dict[int, int]

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any]) -> ServerSplit:
        """Subtract two answers of `/v2/models/<m>/stats`."""
        old, new = before["inference_stats"], after["inference_stats"]
        requests = new["success"]["count"] - old["success"]["count"]

        def mean_ms(kind: str) -> float:
            return (new[kind]["ns"] - old[kind]["ns"]) / 1e6 / max(requests, 1)

        def sizes(stats: Mapping[str, Any]) -> Counter[int]:
            rows = stats.get("batch_stats", [])
            return Counter({row["batch_size"]: row["compute_infer"]["count"] for row in rows})

        return cls(
            requests=requests,
            failures=new["fail"]["count"] - old["fail"]["count"],
            inferences=after["inference_count"] - before["inference_count"],
            executions=after["execution_count"] - before["execution_count"],
            queue_ms=mean_ms("queue"),
            compute_input_ms=mean_ms("compute_input"),
            compute_infer_ms=mean_ms("compute_infer"),
            compute_output_ms=mean_ms("compute_output"),
            batch_histogram=dict(sorted((sizes(after) - sizes(before)).items())),
        )

    @classmethod
    def merge(cls, parts: Sequence[ServerSplit]) -> ServerSplit:
        """Join the splits of several runs; means are weighted by requests."""
        requests = sum(p.requests for p in parts)
        histogram: Counter[int] = Counter()
        for part in parts:
            histogram.update(part.batch_histogram)

        def mean(name: str) -> float:
            return sum(getattr(p, name) * p.requests for p in parts) / max(requests, 1)

        return cls(
            requests,
            sum(p.failures for p in parts),
            sum(p.inferences for p in parts),
            sum(p.executions for p in parts),
            mean("queue_ms"),
            mean("compute_input_ms"),
            mean("compute_infer_ms"),
            mean("compute_output_ms"),
            dict(sorted(histogram.items())),
        )

    @property
    def mean_batch(self) -> float:
        """Images per execution."""
        return self.inferences / max(self.executions, 1)

    @property
    def compute_ms(self) -> float:
        """Input, inference and output together, mean per request."""
        return self.compute_input_ms + self.compute_infer_ms + self.compute_output_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers; histogram keys become text, as JSON wants them."""
        values = {k: v for k, v in vars(self).items() if k != "batch_histogram"}
        histogram = {str(size): count for size, count in self.batch_histogram.items()}
        return {**values, "mean_batch": self.mean_batch, "batch_histogram": histogram}


@dataclass(frozen=True)
class LoadResult:
    """One measurement.

    Attributes:
        model: What was asked.
        batch: Images per request.
        clients: Closed loop: concurrent clients; None in an open loop.
        rate_per_s: Open loop: requests due per second; None in a closed loop.
        seconds: How long requests were sent.
        images_per_s: Images answered per second.
        samples_ms: Latency of every answered request, as the client saw it, shape (n,).
        server: The server's own account of the same requests.
        errors: Kind of error → how often; not part of `n` or of the latency.
        protocol: `http` or `grpc`.
    """

    model: str
    batch: int
    clients: int | None
    rate_per_s: float | None
    seconds: float
    images_per_s: float
    samples_ms: NDArray[np.float64] = field(repr=False, compare=False)
    server: ServerSplit
    errors: Mapping[str, int] = field(default_factory=dict)
    protocol: str = "http"

    @property
    def n(self) -> int:
        """Requests answered."""
        return len(self.samples_ms)

    @property
    def latency_ms(self) -> Percentiles:
        """Per request, as the client saw it.

        Raises:
            BenchError: none was answered.
        """
        return Percentiles.of(self.samples_ms)


@dataclass(frozen=True)
class Repeated:
    """Several measurements of one setting, taken in turn with those of other settings.

    Attributes:
        runs: The measurements, in order.
        images_per_s: Median and spread over the runs.
        latency_ms: Over the requests of all runs together.
        server: The server's account of all runs together.
    """

    runs: tuple[LoadResult, ...]
    images_per_s: Spread
    latency_ms: Percentiles
    server: ServerSplit

    @classmethod
    def of(cls, runs: Sequence[LoadResult]) -> Repeated:
        """Summarize at least one measurement."""
        return cls(
            tuple(runs),
            Spread.of([r.images_per_s for r in runs]),
            Percentiles.of(np.concatenate([r.samples_ms for r in runs])),
            ServerSplit.merge([r.server for r in runs]),
        )

    @property
    def errors(self) -> dict[str, int]:
        """Kind of error → how often, over all runs."""
        total: Counter[str] = Counter()
        for run in self.runs:
            total.update(run.errors)
        return dict(total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        first = self.runs[0]
        return {
            "model": first.model,
            "protocol": first.protocol,
            "batch": first.batch,
            "clients": first.clients,
            "rate_per_s": first.rate_per_s,
            "seconds": first.seconds,
            "images_per_s": vars(self.images_per_s),
            "latency_ms": self.latency_ms.to_dict(),
            "server": self.server.to_dict(),
            "errors": self.errors,
        }
