"""What Triton counts about one model, read from its metrics page before and after."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from labkit.client import metrics


@dataclass(frozen=True)
class Counters:
    """Counts since a server's start, or the difference of two readings.

    Attributes:
        success: Requests answered with a result.
        failures: Reason → requests answered with an error (`nv_inference_request_failure`).
        images: Rows computed.
        executions: Times the model ran.
        queue_s: Time that requests waited, all together, in seconds.
        by_version: Version → requests answered with a result.
    """

    success: float = 0.0
    failures: Mapping[str, float] = field(default_factory=dict)
    images: float = 0.0
    executions: float = 0.0
    queue_s: float = 0.0
    by_version: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, address: str, model: str) -> Self:
        """Read a metrics page.

        Args:
            address: `host:port` of the metrics endpoint.
            model: Only this model counts.

        Raises:
            Unreachable: nothing answers there.
        """
        failures: dict[str, float] = {}
        versions: dict[str, float] = {}
        sums = dict.fromkeys(("count", "exec_count", "queue_duration_us"), 0.0)
        for sample in metrics(address):
            if sample.labels.get("model") != model:
                continue
            if sample.name == "nv_inference_request_success":
                version = sample.labels.get("version", "")
                versions[version] = versions.get(version, 0.0) + sample.value
            elif sample.name == "nv_inference_request_failure":
                reason = sample.labels.get("reason", "")
                failures[reason] = failures.get(reason, 0.0) + sample.value
            elif (short := sample.name.removeprefix("nv_inference_")) in sums:
                sums[short] += sample.value
        return cls(
            sum(versions.values()),
            failures,
            sums["count"],
            sums["exec_count"],
            sums["queue_duration_us"] / 1e6,
            versions,
        )

    @property
    def failed(self) -> float:
        """Requests answered with an error, for whatever reason."""
        return sum(self.failures.values())

    @property
    def mean_batch(self) -> float:
        """Images per execution."""
        return self.images / max(self.executions, 1)

    @property
    def queue_ms(self) -> float:
        """Mean wait of an answered request, in milliseconds."""
        return 1e3 * self.queue_s / max(self.success, 1)

    def __sub__(self, before: "Counters") -> "Counters":
        """Return what was counted between two readings of one server."""
        return _combine((self, 1), (before, -1))

    @classmethod
    def total(cls, parts: "Iterable[Counters]") -> "Counters":
        """Return the sum over several servers."""
        return _combine(*((part, 1) for part in parts))

    def text(self) -> str:
        """Say in one line what was counted."""
        failed = ", ".join(f"{n:,.0f} {reason}" for reason, n in self.failures.items() if n)
        return (
            f"{self.success:,.0f} requests answered, {failed or '0'} failed, "
            f"{self.mean_batch:.1f} images per execution, {self.queue_ms:.1f} ms mean wait"
        )


def _combine(*parts: tuple[Counters, int]) -> Counters:
    def joined(name: str) -> dict[str, float]:
        result: dict[str, float] = {}
        for counters, sign in parts:
            for key, value in getattr(counters, name).items():
                result[key] = result.get(key, 0.0) + sign * value
        return result

    def total(name: str) -> float:
        return sum(sign * getattr(counters, name) for counters, sign in parts)

    return Counters(
        total("success"),
        joined("failures"),
        total("images"),
        total("executions"),
        total("queue_s"),
        joined("by_version"),
    )
