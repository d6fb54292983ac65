"""Hidden cases for the exercises of notebooks 07 and 08: statistics, load, tables, predictions."""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.random import Generator

from labkit.grading.exercises.case import (
    HiddenCase,
    Oracle,
    array,
    close,
    each,
    equals,
    numbers,
    tuple_of,
)

Row = tuple[str, float, float]
Runs = list[tuple[float, float | None]]  # (images/s, p99 in ms) of each round

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
LATE_MS = 200.0  # what a busy machine may add to a latency; the cases differ by three times as much

_WORDS = ("maple", "cedar", "aspen", "birch", "larch", "rowan", "alder", "hazel", "elm", "oak")


def stats_cases(rng: Generator) -> list[HiddenCase]:
    """`bottleneck(before, after)`: largest part of the time, its share, images per execution."""

    def reading(images: int, executions: int, ns: Sequence[int]) -> dict[str, Any]:
        """Write a model's statistics as Triton does."""
        parts = dict(zip(PARTS, ns, strict=True))
        counted = {part: {"count": images, "ns": value} for part, value in parts.items()}
        total = {"count": images, "ns": sum(ns)}
        return {
            "name": "net",
            "version": "1",
            "inference_count": images,
            "execution_count": executions,
            "inference_stats": {"success": total, "fail": {"count": 0, "ns": 0}, **counted},
            "batch_stats": [],
        }

    def case(label: str, largest: str, old: Sequence[int], executions: int = 0) -> HiddenCase:
        before = int(rng.integers(50, 500))
        executions = executions or int(rng.integers(10, 90))
        images = executions * int(rng.integers(1, 9)) + int(rng.integers(0, executions))
        spent = [int(ns) for ns in rng.integers(1_000_000, 90_000_000, 4)]
        spent[PARTS.index(largest)] = int(1.5 * max(spent))
        earlier = reading(before, before, old)
        later = [a + b for a, b in zip(old, spent, strict=True)]
        wanted = (equals(largest), close(max(spent) / sum(spent)), close(images / executions))
        after = reading(before + images, before + executions, later)
        return HiddenCase(label, [earlier, after], each(*wanted))

    idle = reading(70, 40, [5_000_000] * 4)
    few = [int(ns) for ns in rng.integers(1_000, 9_000, 4)]
    misleading = [10**10, 10**7, 10**9, 10**7]  # since the start nearly all was waiting
    return [
        case("the requests wait", "queue", few),
        case("the model takes the time", "compute_infer", few),
        case("the server had waited before", "compute_infer", misleading),
        case("answers are copied for long", "compute_output", misleading),
        case("there was one execution", "compute_input", few, executions=1),
        HiddenCase(
            "nothing was executed", [idle, idle], each(equals(None), close(0.0), close(0.0))
        ),
    ]


def open_loop_cases(rng: Generator) -> list[HiddenCase]:
    """`open_loop(send, due_s)`: latency in ms of each request, from when it was due.

    `send` stands for a service whose instances compute a request each and take the next one in the
    order of arrival; so what each request meets is known beforehand.
    """

    def case(
        label: str, due_s: np.ndarray, durations_s: np.ndarray, instances: int = 1
    ) -> HiddenCase:
        free = [0.0] * instances  # when each instance is free again
        wanted_ms = []
        for due, duration in zip(due_s, durations_s, strict=True):
            begin = max(due, heapq.heappop(free), 0.0)  # nothing is sent before the call
            heapq.heappush(free, begin + duration)
            wanted_ms.append(1e3 * (begin + duration - due))
        service = {"$service": durations_s.tolist(), "instances": instances}
        return HiddenCase(label, [service, array(due_s)], _near(wanted_ms))

    def arrivals(count: int, seconds: float) -> np.ndarray:
        return np.sort(rng.uniform(0, seconds, count))

    stalled = np.full(80, 0.002)
    stalled[int(rng.integers(15, 25))] = 0.9
    past = np.concatenate([[-0.8, -0.7, -0.6], arrivals(10, 0.4)])
    return [
        case("the service is fast", arrivals(60, 0.9), np.full(60, 0.003)),
        case("the service stalls once", arrivals(80, 1.2), stalled),
        case("requests are under way together", arrivals(20, 0.2), np.full(20, 0.6), 32),
        case("the moment of some has passed already", past, np.full(13, 0.002)),
    ]


def _near(wanted_ms: Sequence[float]) -> Oracle:
    """Accept times that a busy machine may lengthen a little, for nearly all requests."""

    def right(answer: Any) -> bool:
        values = numbers(answer, (len(wanted_ms),))
        if values is None:
            return False
        late = values - np.array(wanted_ms)
        return bool(np.mean((late > -20) & (late < LATE_MS)) >= 0.9)

    return right


def choose_cases(rng: Generator) -> list[HiddenCase]:
    """`choose(rounds, limit_ms)`: the fastest that keeps the limit, and its least lead."""
    names = [str(word) for word in rng.permutation(_WORDS)]
    limit = float(rng.integers(30, 90))

    def runs(middle: float, p99: float | None = None) -> Runs:
        """Draw three rounds, all within the limit where no p99 is given."""
        rates = middle * rng.uniform(0.98, 1.02, 3)
        waits = [float(rng.uniform(0.2, 0.9) * limit) for _ in rates]
        if p99 is not None:
            waits[int(rng.integers(3))] = p99
        return [(float(rate), wait) for rate, wait in zip(rates, waits, strict=True)]

    def case(label: str, table: dict[str, Runs]) -> HiddenCase:
        kept = [n for n, own in table.items() if all(p is not None and p <= limit for _, p in own)]
        order = sorted(kept, key=lambda name: -np.median([rate for rate, _ in table[name]]))
        first, least = order[0] if order else None, None
        if len(order) > 1:
            pairs = zip(table[order[0]], table[order[1]], strict=True)
            least = min(one / two for (one, _), (two, _) in pairs)
        rows = {name: [tuple_of(*run) for run in own] for name, own in table.items()}
        right = each(equals(first), equals(None) if least is None else close(least))
        return HiddenCase(label, [rows, limit], right)

    steps = [float(rate) for rate in rng.permutation(np.arange(200, 1200, 100))]
    plain = {name: runs(rate) for name, rate in zip(names, steps, strict=True)}
    ahead = names[0]
    wavering: Runs = [
        (2_000.0, 1.0),
        (300.0, 1.0),
        (2_100.0, 1.0),
    ]  # the greatest median, one bad round
    missing: Runs = [(9_000.0, 1.0), (9_000.0, None), (9_000.0, 1.0)]
    slow = {name: runs(rate, limit * 1.2) for name, rate in zip(names[1:], steps[1:], strict=True)}
    return [
        case("every setting keeps the limit", plain),
        case("the fastest is above the limit in one round", plain | {ahead: runs(9e3, limit + 1)}),
        case("the fastest has no p99 in one round", plain | {ahead: missing}),
        case("a p99 is exactly the limit", plain | {ahead: runs(9e3, limit)}),
        case("the choice did not win every round", plain | {ahead: wavering}),
        case("one setting alone keeps the limit", slow | {ahead: runs(100.0)}),
        case("none keeps the limit", slow),
    ]


def front_cases(rng: Generator) -> list[HiddenCase]:
    """`front(rows)`: the names that nobody dominates, in the order given."""
    names = [str(word) for word in rng.permutation(_WORDS)]
    good, fair = float(rng.uniform(0.88, 0.92)), float(rng.uniform(0.7, 0.8))
    fast, slow = float(rng.integers(600, 900)), float(rng.integers(100, 300))

    def case(label: str, points: list[tuple[float, float]]) -> HiddenCase:
        rows = [(name, *point) for name, point in zip(names, points, strict=False)]
        return HiddenCase(label, [[tuple_of(*row) for row in rows]], equals(_undominated(rows)))

    trade = [float(step) for step in rng.permutation(8)]
    on_front = [(0.8 + step / 100, 900 - 100 * step) for step in trade]
    spread = [(float(a), float(r)) for a, r in zip(rng.random(10), rng.random(10), strict=True)]
    return [
        case("there are ten variants", spread),
        case("nobody dominates anybody", on_front),
        case("one variant is best in both", [(fair, slow), (good, fast), (good - 0.01, fast - 9)]),
        case("two variants are equal in both", [(good, fast), (fair, fast - 1), (good, fast)]),
        case("two variants are equally accurate", [(good, slow), (good, fast), (0.95, slow - 1)]),
        case("two variants are equally fast", [(good, fast), (fair, fast), (0.5, fast + 50)]),
    ]


def _undominated(rows: list[Row]) -> list[str]:
    """Return the names of the rows that no other row dominates."""
    accuracy, rate = (np.array([row[axis] for row in rows]) for axis in (1, 2))
    kept = []
    for name, a, r in rows:
        as_good = (accuracy >= a) & (rate >= r)
        better = (accuracy > a) | (rate > r)
        if not np.any(as_good & better):
            kept.append(name)
    return kept


def paired_cases(rng: Generator) -> list[HiddenCase]:
    """`mcnemar(first, second)`: the exact two-sided p-value of McNemar's test."""

    def case(label: str, both: int, neither: int, first_only: int, second_only: int) -> HiddenCase:
        pairs = [(1, 1)] * both + [(0, 0)] * neither
        pairs += [(1, 0)] * first_only + [(0, 1)] * second_only
        rows = rng.permutation(np.array(pairs, dtype=bool))
        n, fewer = first_only + second_only, min(first_only, second_only)
        tail = sum(math.comb(n, k) for k in range(fewer + 1))
        wanted = min(1.0, float(Fraction(2 * tail, 2**n)))
        return HiddenCase(label, [array(rows[:, 0]), array(rows[:, 1])], close(wanted, 1e-6, 1e-12))

    some, few = int(rng.integers(40, 60)), int(rng.integers(5, 9))
    return [
        case("they differ on some images, one way more often", 900, 40, some, some - 20),
        case("the second is right more often", 500, 30, few, 3 * few),
        case("one is right wherever they differ", 200, 20, 0, few),
        case("they are right equally often", 300, 30, some, some),
        case("many images and few differences", 9_000, 900, few + 4, few),
        case("they never differ", 150, 20, 0, 0),
    ]
