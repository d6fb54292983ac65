"""Two ways to serve the same load, measured in turn: their ratio holds still on a busy machine."""

from collections.abc import Mapping, Sequence
from functools import partial

from labkit.bench.loops import in_turn
from labkit.bench.target import Target
from labkit.compare import Spread
from labkit.operate.drills.lab import Lab
from labkit.operate.load import Load, Record, Shape

ROUNDS, SHORT_ROUNDS = 9, 3
SECONDS, SHORT_SECONDS = 4.0, 1.0
WARM_UP_S = 1.0


def measure(lab: Lab, targets: Mapping[str, Target], clients: int) -> dict[str, list[Record]]:
    """Put the same closed loop on every target in turn, for several rounds.

    Args:
        lab: Says whether it must be short, and is told of the rounds.
        targets: Name → requests.
        clients: Concurrent clients.
    """
    rounds, seconds = (SHORT_ROUNDS, SHORT_SECONDS) if lab.short else (ROUNDS, SECONDS)

    def case(target: Target, seconds: float) -> Record:
        with Load(target, Shape(clients, seconds=seconds)) as load:
            return load.finish()

    for target in targets.values():
        case(target, WARM_UP_S)
    return in_turn(
        {name: partial(case, target, seconds) for name, target in targets.items()},
        rounds,
        lab.say,
    )


def images_per_s(records: Sequence[Record], batch: int) -> Spread:
    """Return the throughput over the rounds."""
    return Spread.of([batch * record.rate_per_s for record in records])


def ratio(records: Sequence[Record], baseline: Sequence[Record]) -> Spread:
    """Return throughput against the baseline's of the same round."""
    return Spread.of(
        [own.rate_per_s / base.rate_per_s for own, base in zip(records, baseline, strict=True)]
    )


def failed(records: Mapping[str, Sequence[Record]]) -> int:
    """Return how many requests failed in all rounds together."""
    return sum(len(record.failed) for rounds in records.values() for record in rounds)
