"""Compare runners within one run: interleaved, repeated, given as ratios with n and spread.

On a shared machine the speed of everything drifts by tens of percent within a minute. Runners
measured in turn, in short slices, drift together, so their ratio holds still.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from labkit.errors import LabError
from labkit.runtime import WARM_UP_CALLS, Runner, load_runner, probe_images, throughput

Key = TypeVar("Key")  # whatever names a case
Value = TypeVar("Value")


class ComparisonError(LabError):
    """Runners that cannot be compared fairly."""


@dataclass(frozen=True)
class Spread:
    """A median, with what is needed to judge it.

    Attributes:
        median: Of `n` values.
        low: The smallest value.
        high: The largest value.
        n: How many values.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        """Such as `1.95 (1.90 to 2.01, n = 5)`."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


@dataclass(frozen=True)
class Comparison:
    """Rates of several runners, measured in turn.

    Attributes:
        batch: Images per call.
        threads: Threads of each call, the same for all.
        baseline: Name of the runner that the others are divided by.
        images_per_s: Runner → rate, one value per round.
        ratio: Runner → its rate divided by the baseline's of the same round.
    """

    batch: int
    threads: int
    baseline: str
    images_per_s: dict[str, Spread]
    ratio: dict[str, Spread]

    def best(self) -> str:
        """Return the name of the fastest runner."""
        return max(self.ratio, key=lambda name: self.ratio[name].median)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return asdict(self)


def in_turn(
    cases: Mapping[Key, Callable[[], Value]],
    rounds: int,
    progress: Callable[[str], None] | None = None,
) -> dict[Key, list[Value]]:
    """Call every case once per round, every other round backwards.

    So no case always follows the same one, and where everything drifts, all drift together.

    Raises:
        ComparisonError: no rounds.
    """
    if rounds < 1:
        raise ComparisonError(f"got rounds={rounds}, expected at least 1")
    values: dict[Key, list[Value]] = {name: [] for name in cases}
    for index in range(rounds):
        for name in list(cases)[:: 1 if index % 2 == 0 else -1]:
            values[name].append(cases[name]())
        if progress:
            progress(f"round {index + 1} of {rounds}")
    return values


def compare(
    runners: Mapping[str, Runner],
    baseline: str,
    batch: int = 32,
    rounds: int = 5,
    seconds: float = 0.3,
) -> Comparison:
    """Measure runners in turn, `rounds` times, `seconds` each time; see `in_turn`.

    Args:
        runners: Name → runner, all with the same number of threads.
        baseline: The name of the one to divide by.
        batch: Images per call.
        rounds: Values per runner.
        seconds: Length of one slice.

    Raises:
        ComparisonError: unknown baseline, no rounds, or differing thread counts.
    """
    if baseline not in runners:
        raise ComparisonError(f"baseline {baseline!r} is not among {', '.join(runners)}")
    threads = {name: runner.threads for name, runner in runners.items()}
    if len(set(threads.values())) > 1:
        raise ComparisonError(f"thread counts differ, so rates would not compare: {threads}")
    rates = in_turn(
        {name: partial(throughput, runner, batch, seconds) for name, runner in runners.items()},
        rounds,
    )
    ratios = {
        name: [own / base for own, base in zip(values, rates[baseline], strict=True)]
        for name, values in rates.items()
    }
    return Comparison(
        batch,
        next(iter(threads.values())),
        baseline,
        {name: Spread.of(values) for name, values in rates.items()},
        {name: Spread.of(values) for name, values in ratios.items()},
    )


@dataclass(frozen=True)
class Latency:
    """Times of single calls, in milliseconds.

    Attributes:
        batch: Images per call.
        n: Calls.
        p50: Median.
        p95: 95th percentile.
    """

    batch: int
    n: int
    p50: float
    p95: float


def latency_ms(runner: Runner, batch: int = 1, calls: int = 100) -> Latency:
    """Time `calls` single calls, after a few calls that do not count.

    Raises:
        ComparisonError: fewer than 20 calls, which have no 5th and 95th percentile.
    """
    if calls < 20:
        raise ComparisonError(f"got calls={calls}, expected at least 20 for percentiles")
    images = probe_images(batch)
    for _ in range(WARM_UP_CALLS):
        runner(images)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        runner(images)
        times.append(1e3 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times, [50, 95])
    return Latency(batch, calls, float(p50), float(p95))


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that does nothing but run one model, in MiB.

    Attributes:
        runtime: With the runtime loaded, before the model.
        loaded: With the model.
        running: After it has run one batch; runtimes keep the memory of their activations.
    """

    runtime: float
    loaded: float
    running: float


def memory_mib(path: Path, batch: int = 32) -> Memory:
    """Measure a model's memory in a child process of its own.

    Raises:
        ComparisonError: the child fails.
    """
    command = [sys.executable, "-m", "labkit.compare", str(path), str(batch)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ComparisonError(f"measuring the memory of {path.name} failed: {last}")
    return Memory(*json.loads(child.stdout))


def _memory_child(path: str, batch: str) -> None:
    """Print the three numbers of `Memory`; the body of the child process."""
    resident = psutil.Process().memory_info
    import_module({".pt": "torch", ".onnx": "onnxruntime", ".xml": "openvino"}[Path(path).suffix])
    sizes = [resident().rss]
    runner = load_runner(path)
    sizes.append(resident().rss)
    runner(probe_images(int(batch)))
    sizes.append(resident().rss)
    print(json.dumps([size / 2**20 for size in sizes]))


if __name__ == "__main__":
    _memory_child(*sys.argv[1:])
