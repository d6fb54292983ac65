"""What a drill brings back: what was done, seen, measured and lost, and the cause; with limits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from labkit.errors import LabError
from labkit.operate.load import Second

PASSED, FAILED, NOT_MEASURED = "passed", "failed", "not measured"


class NotMeasured(LabError):
    """A drill that cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Number:
    """One measured value, with the limit that it was held against.

    Attributes:
        name: What was measured, in plain words.
        value: The value; the median where there are several.
        unit: Such as `s` or `MiB`; empty for counts and ratios.
        at_most: The greatest value that passes; None for no such limit.
        at_least: The smallest value that passes; None for no such limit.
        n: How many requests or rounds stand behind it; None where that says nothing.
        low: Smallest of several values.
        high: Greatest of several values.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.at_most is not None or self.at_least is not None

    @property
    def passed(self) -> bool:
        """Whether the value keeps to its limits; true without any."""
        below = self.at_most is None or self.value <= self.at_most
        above = self.at_least is None or self.value >= self.at_least
        return below and above

    @property
    def limit_text(self) -> str:
        """The limit in signs, such as `≤ 5 s`; empty without one."""
        parts = []
        if self.at_least is not None:
            parts.append(f"≥ {plain_number(self.at_least)}")
        if self.at_most is not None:
            parts.append(f"≤ {plain_number(self.at_most)}")
        if self.at_least is not None and self.at_least == self.at_most:
            parts = [f"= {plain_number(self.at_most)}"]
        return " and ".join(parts) + (f" {self.unit}" if parts and self.unit else "")

    @property
    def value_text(self) -> str:
        """The value with its unit."""
        return plain_number(self.value) + (f" {self.unit}" if self.unit else "")

    @property
    def text(self) -> str:
        """The value as a person reads it, with n and spread where there are any."""
        text = self.value_text
        more = []
        if self.low is not None and self.high is not None:
            more.append(f"{plain_number(self.low)} to {plain_number(self.high)}")
        if self.n is not None:
            more.append(f"n = {self.n:,}")
        return text + (f" ({', '.join(more)})" if more else "")


@dataclass(frozen=True)
class Moment:
    """Something that happened during a load, for the figure."""

    at_s: float
    label: str


@dataclass(frozen=True)
class Outcome:
    """What a drill found.

    Attributes:
        done: What was done to the system.
        client: What its clients saw.
        metrics: What the servers' metrics show of it.
        lost: What was lost for good.
        cause: Why it went like this.
        numbers: The measured values with their limits.
        seconds: What came back in each second, where time matters.
        moments: What happened when, in the same seconds.
        evidence: Further counts by name, as they were read.
    """

    done: str
    client: str
    metrics: str
    lost: str
    cause: str
    numbers: Sequence[Number]
    seconds: Sequence[Second] = ()
    moments: Sequence[Moment] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every number keeps to its limits."""
        return all(number.passed for number in self.numbers)


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        name: Of the drill.
        title: What goes wrong in it, one line.
        status: `passed`, `failed` or `not measured`.
        took_s: How long it took, in seconds.
        outcome: What it found; None where it did not run to its end.
        reason: Why it failed or was not measured; empty when it passed.
    """

    name: str
    title: str
    status: str
    took_s: float
    outcome: Outcome | None = None
    reason: str = ""

    @classmethod
    def of(cls, name: str, title: str, took_s: float, outcome: Outcome) -> "Result":
        """Judge an outcome by its numbers."""
        missed = [number for number in outcome.numbers if not number.passed]
        reason = "; ".join(f"{n.name}: {n.text}, expected {n.limit_text}" for n in missed)
        return cls(name, title, FAILED if missed else PASSED, took_s, outcome, reason)

    @property
    def summary(self) -> str:
        """Why it failed or was not measured, such as a missed limit; else what clients saw."""
        return self.reason or (self.outcome.client if self.outcome else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, as JSON has them."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.outcome is not None:
            for number, entry in zip(
                self.outcome.numbers, values["outcome"]["numbers"], strict=True
            ):
                entry["passed"] = number.passed if number.limited else None
        return values


def plain_number(value: float) -> str:
    """Print a number with separators and no more digits than mean something."""
    if float(value).is_integer():
        return f"{value:,.0f}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"
