"""Hidden cases for the exercises of notebooks 07 and 08: plain numbers and tables."""

import numpy as np

from labkit.grading.exercises.case import Case, close, equals, generator, tuple_of

Row = tuple[str, float, float]
Table = dict[str, tuple[float, float | None]]

_WORDS = ("maple", "cedar", "aspen", "birch", "larch", "rowan", "alder", "hazel", "elm", "oak")


def little_cases(seed: int) -> list[Case]:
    """`little(clients, latency_ms)`: requests per second."""
    rng = generator(seed, "ex-07-little")

    def case(label: str, clients: int, latency_ms: float) -> Case:
        wanted = 1000 * clients / latency_ms
        return Case(label, [clients, latency_ms], close(wanted, relative=1e-6))

    return [
        case("there is one client", 1, float(rng.uniform(3, 40))),
        case("there are many clients", int(rng.integers(20, 90)), float(rng.uniform(50, 300))),
        case("the latency is below 1 ms", int(rng.integers(2, 9)), float(rng.uniform(0.2, 0.9))),
        case("the latency is above 1 s", int(rng.integers(2, 9)), float(rng.uniform(1100, 4000))),
    ]


def choose_cases(seed: int) -> list[Case]:
    """`choose(table, limit_ms)`: the fastest of those whose p99 is known and at most the limit."""
    rng = generator(seed, "ex-07-choose")
    names = [str(word) for word in rng.permutation(_WORDS)]
    limit = float(rng.integers(30, 90))
    rates = [
        float(rate) for rate in rng.permutation(np.arange(200, 1200, 100) + rng.uniform(0, 90))
    ]
    below = [float(rng.uniform(0.2, 0.9) * limit) for _ in names]

    def case(label: str, table: Table) -> Case:
        allowed = {n: rate for n, (rate, p99) in table.items() if p99 is not None and p99 <= limit}
        wanted = max(allowed, key=lambda name: allowed[name]) if allowed else None
        rows = {name: tuple_of(*row) for name, row in table.items()}
        return Case(label, [rows, limit], equals(wanted))

    plain: Table = {n: (r, p) for n, r, p in zip(names, rates, below, strict=True)}
    fastest = max(plain, key=lambda name: plain[name][0])
    slow: Table = {
        name: (rate, limit * 1.2) for name, (rate, _) in plain.items() if name != fastest
    }
    return [
        case("every candidate is within the limit", plain),
        case("the fastest is too late", plain | {fastest: (9_000.0, limit * 1.5)}),
        case("the fastest has no p99", plain | {fastest: (9_000.0, None)}),
        case("a p99 is exactly the limit", plain | {fastest: (9_000.0, limit)}),
        case("one candidate alone qualifies", slow | {fastest: (1.0, below[0])}),
        case("no candidate qualifies", {**slow, fastest: (5_000.0, None)}),
        case("the table is empty", {}),
    ]


def front_cases(seed: int) -> list[Case]:
    """`front(rows)`: the names that nobody dominates, in the order given."""
    rng = generator(seed, "ex-08-front")
    names = [str(word) for word in rng.permutation(_WORDS)]
    good, fair = float(rng.uniform(0.88, 0.92)), float(rng.uniform(0.7, 0.8))
    fast, slow = float(rng.integers(600, 900)), float(rng.integers(100, 300))

    def case(label: str, points: list[tuple[float, float]]) -> Case:
        rows = [(name, *point) for name, point in zip(names, points, strict=False)]
        return Case(label, [[tuple_of(*row) for row in rows]], equals(_undominated(rows)))

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


def error_cases(seed: int) -> list[Case]:
    """`standard_error(p, n)`: in the unit of p."""
    rng = generator(seed, "ex-08-error")

    def case(label: str, p: float, n: int) -> Case:
        wanted = float(np.sqrt(p * (1 - p) / n))
        return Case(label, [p, n], close(wanted, relative=1e-6, absolute=1e-9))

    return [
        case(
            "p is near 1 and n large", float(rng.uniform(0.93, 0.98)), int(rng.integers(3000, 9000))
        ),
        case("p is below one half", float(rng.uniform(0.1, 0.4)), int(rng.integers(200, 900))),
        case("n is small", float(rng.uniform(0.6, 0.8)), int(rng.integers(5, 30))),
        case("every answer is right (p is 1)", 1.0, int(rng.integers(50, 500))),
    ]
