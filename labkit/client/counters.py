"""What Triton counts about a model, read from its metrics page before and after."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from labkit.client.metrics_page import Sample, metrics

PREFIX = "nv_inference_"
COMPUTE = ("input", "infer", "output")


@dataclass(frozen=True)
class Counters:
    """Counts since a server's start, or the difference of two readings.

    Attributes:
        counts: (counter without `nv_inference_`, reason of a failure or else version) → count.
    """

    counts: Mapping[tuple[str, str], float]

    @classmethod
    def by_model(cls, samples: Iterable[Sample]) -> dict[str, Self]:
        """Return model → its counters on a metrics page."""
        found: dict[str, dict[tuple[str, str], float]] = {}
        for sample in samples:
            model = sample.labels.get("model")
            if model is not None and sample.name.startswith(PREFIX):
                part = sample.labels.get("reason") or sample.labels.get("version", "")
                key = (sample.name.removeprefix(PREFIX), part)
                counts = found.setdefault(model, {})
                counts[key] = counts.get(key, 0.0) + sample.value
        return {model: cls(counts) for model, counts in found.items()}

    @classmethod
    def read(cls, address: str, model: str) -> Self:
        """Read a metrics page.

        Args:
            address: `host:port` of the metrics endpoint.
            model: Only this model counts.

        Raises:
            Unreachable: nothing answers there.
        """
        return cls.by_model(metrics(address)).get(model) or cls({})

    @property
    def by_version(self) -> dict[str, float]:
        """Version → requests answered with a result."""
        return self._parts("request_success")

    @property
    def failures(self) -> dict[str, float]:
        """Reason → requests answered with an error."""
        return self._parts("request_failure")

    @property
    def success(self) -> float:
        """Requests answered with a result."""
        return sum(self.by_version.values())

    @property
    def failed(self) -> float:
        """Requests answered with an error, for whatever reason."""
        return sum(self.failures.values())

    @property
    def images(self) -> float:
        """Rows computed."""
        return self._sum("count")

    @property
    def mean_batch(self) -> float:
        """Images per execution; not a number without one, as the next two."""
        return _mean(self.images, self._sum("exec_count"))

    @property
    def queue_ms(self) -> float:
        """Mean wait of an answered request, in milliseconds."""
        return _mean(self._sum("queue_duration_us") / 1e3, self.success)

    @property
    def compute_ms(self) -> float:
        """Mean time of computing an answer, copying in and out included, in milliseconds."""
        spent_us = sum(self._sum(f"compute_{part}_duration_us") for part in COMPUTE)
        return _mean(spent_us / 1e3, self.success)

    def __sub__(self, before: "Counters") -> "Counters":
        """Return what was counted between two readings of one server."""
        return Counters.total([self, Counters({key: -n for key, n in before.counts.items()})])

    @classmethod
    def total(cls, parts: "Iterable[Counters]") -> "Counters":
        """Return the sum over several servers."""
        counts: dict[tuple[str, str], float] = {}
        for part in parts:
            for key, n in part.counts.items():
                counts[key] = counts.get(key, 0.0) + n
        return cls(counts)

    def text(self) -> str:
        """Say in one line what was counted."""
        failed = ", ".join(f"{n:,.0f} {reason}" for reason, n in self.failures.items() if n)
        text = f"{self.success:,.0f} requests answered, {failed or '0'} failed"
        if not self._sum("exec_count"):
            return text
        mean = f"{self.mean_batch:.1f} images per execution, {self.queue_ms:.1f} ms mean wait"
        return f"{text}, {mean}"

    def _parts(self, counter: str) -> dict[str, float]:
        return {part: n for (name, part), n in self.counts.items() if name == counter}

    def _sum(self, counter: str) -> float:
        return sum(self._parts(counter).values())


def _mean(total: float, n: float) -> float:
    return total / n if n > 0 else math.nan
