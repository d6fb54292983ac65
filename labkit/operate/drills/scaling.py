"""Two replicas with one thread each against one with two threads, through a gateway each."""

from dataclasses import replace

from labkit.compare import Spread
from labkit.operate.counters import Counters
from labkit.operate.drills.compare import failed, images_per_s, measure, ratio
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.lab import Lab
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Record

BATCH, CLIENTS = 8, 8
TWO, ONE = "two replicas of one thread", "one replica of two threads"


def run(lab: Lab) -> Outcome:
    """Measure both in turn with the same clients."""
    folders = {name: replace(lab, folder=lab.folder / name) for name in ("many", "one")}
    for part in folders.values():
        part.folder.mkdir()
    many, single = folders["many"], folders["one"]
    with (
        many.replicas(many.repository(threads=1)) as pair,
        single.replicas(single.repository(threads=2), ("big",)) as big,
        many.gateway(pair) as before_pair,
        single.gateway(big) as before_big,
    ):
        targets = {
            TWO: lab.target(pair["one"].http, before_pair, BATCH),
            ONE: lab.target(big["big"].http, before_big, BATCH),
        }
        records = measure(lab, targets, CLIENTS)
        counted = {TWO: lab.counters(pair), ONE: lab.counters(big)}
    return _outcome(records, counted)


def _outcome(records: dict[str, list[Record]], counted: dict[str, Counters]) -> Outcome:
    rates = {name: images_per_s(rounds, BATCH) for name, rounds in records.items()}
    share = ratio(records[TWO], records[ONE])
    return Outcome(
        done=f"the same {CLIENTS} clients with batches of {BATCH}, in turn, {share.n} rounds",
        client=", ".join(f"{name}: {rate.median:,.0f} images/s" for name, rate in rates.items()),
        metrics="; ".join(f"{name}: {part.text()}" for name, part in counted.items()),
        lost="with two replicas a second copy of the model in memory; larger batches with one",
        cause="One run on two threads must join them after every layer; two replicas run side by "
        "side and never wait for each other, but each sees half of the requests and batches less.",
        numbers=[
            _spread(f"{TWO} against {ONE}", share, "×", at_least=0.9),
            _spread(TWO, rates[TWO], "images/s"),
            _spread(ONE, rates[ONE], "images/s"),
            Number("failed requests", failed(records), at_most=0),
        ],
    )


def _spread(name: str, spread: Spread, unit: str, at_least: float | None = None) -> Number:
    return Number(
        name, spread.median, unit, at_least=at_least, n=spread.n, low=spread.low, high=spread.high
    )


DRILL = Drill("scaling", "Two replicas against one with twice the threads", run)
