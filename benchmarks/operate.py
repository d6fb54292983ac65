"""What a deployment costs: replicas or threads, the gateway's share, memory over many requests.

    python benchmarks/operate.py scaling    two replicas of one thread against one of two threads
    python benchmarks/operate.py gateway    the same replica, through nginx and directly
    python benchmarks/operate.py soak       100,000 requests: does the server's memory grow?

Both sides of a comparison take turns, several rounds long. `--short` is for a first look.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from serve import cpu_seconds, machine, warn_if_busy

from labkit.bench import in_turn
from labkit.bench.target import Target
from labkit.client.counters import Counters
from labkit.compare import Spread
from labkit.operate.drills import DrillEnvironment, Number, find_model
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.processes import family

BATCH = 8
SOAK_CLIENTS, SOAK_LIMIT_S, SOAK_STEPS = 16, 600.0, 18
MIB = 2**20


def rounds(
    lab: DrillEnvironment, targets: Mapping[str, Target], clients: int
) -> dict[str, list[Record]]:
    """Put the same closed loop on every target in turn, for several rounds."""
    count, seconds = (3, 1.0) if lab.short else (9, 4.0)

    def case(target: Target, seconds: float) -> Record:
        with Load(target, LoadProfile(clients, seconds=seconds)) as load:
            return load.finish()

    for target in targets.values():
        case(target, 1.0)  # warm-up
    cases = {name: partial(case, target, seconds) for name, target in targets.items()}
    return in_turn(cases, count, lab.say)


def compared(records: Mapping[str, Sequence[Record]], at_least: float) -> list[Number]:
    """Return the throughput of both sides, and the ratio of the first to the second by rounds."""
    (name, mine), (other, base) = records.items()
    ratio = Spread.of([a.rate_per_s / b.rate_per_s for a, b in zip(mine, base, strict=True)])
    rates = {n: Spread.of([BATCH * r.rate_per_s for r in part]) for n, part in records.items()}
    lost = sum(len(record.failed) for part in records.values() for record in part)
    rows: list[tuple[str, Spread, str, float | None]] = [
        (f"{name} against {other}", ratio, "×", at_least)
    ]
    rows += [(n, rate, "images/s", None) for n, rate in rates.items()]
    return [
        Number(title, found.median, unit, at_least=least, n=found.n, low=found.low, high=found.high)
        for title, found, unit, least in rows
    ] + [Number("failed requests", lost, at_most=0)]


def scaling(lab: DrillEnvironment) -> list[Number]:
    """Two replicas run side by side and never wait for each other, but each sees half the load."""
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
            "two replicas of one thread": lab.target(pair["one"].http, before_pair, BATCH),
            "one replica of two threads": lab.target(big["big"].http, before_big, BATCH),
        }
        return compared(rounds(lab, targets, clients=8), at_least=0.9)


def gateway(lab: DrillEnvironment) -> list[Number]:
    """The gateway reads each request in full, looks at key and path, and sends it on."""
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as nginx:
        one = replicas["one"]
        targets = {
            "through the gateway": lab.target(one.http, nginx, BATCH),
            "directly": lab.target(one.http, batch=BATCH),
        }
        before = cpu_seconds(nginx.pid)
        records = rounds(lab, targets, clients=4)
        spent = cpu_seconds(nginx.pid) - before
    answered = sum(len(record.answered) for record in records["through the gateway"])
    share = Number("processor time of the gateway", 1e3 * spent / answered, "ms", n=answered)
    return [*compared(records, at_least=0.9), share]


def soak(lab: DrillEnvironment) -> list[Number]:
    """A server that grew with every request would end one day without any other reason."""
    first, last = (1_000, 4_000) if lab.short else (10_000, 100_000)
    readings: list[float] = []
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as nginx:
        one, begin = replicas["one"], time.monotonic()
        shape = LoadProfile(SOAK_CLIENTS, seconds=SOAK_LIMIT_S, requests=last)
        with Load(lab.target(one.http, nginx), shape) as load:
            for step in range(SOAK_STEPS + 1):
                wanted = min(first + step * (last - first) // SOAK_STEPS, last - SOAK_CLIENTS)
                if not load.reached(wanted, SOAK_LIMIT_S):
                    break
                readings.append(sum(p.memory_info().rss for p in family(one.pid)) / MIB)
                lab.say(f"{len(load.answers):,} requests, {readings[-1]:.0f} MiB")
            record = load.finish()
        took, counted = time.monotonic() - begin, Counters.read(one.metrics, lab.name)
    print(counted.text())
    return [
        Number("memory at the end against that at the beginning", readings[-1] / readings[0], "×",
               at_least=0.95, at_most=1.05, n=len(record.answers)),
        Number("memory", statistics.median(readings), "MiB", n=len(readings), low=min(readings),
               high=max(readings)),
        Number("requests", len(record.answers), at_least=last),
        Number("failed requests", len(record.failed), at_most=0),
        Number("time", took, "s"),
    ]  # fmt: skip


def main() -> int:
    programs = {"scaling": scaling, "gateway": gateway, "soak": soak}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=programs)
    parser.add_argument("--run", type=Path, help="whose model is served; else the newest run's")
    parser.add_argument("--short", action="store_true", help="fewer requests and seconds")
    args = parser.parse_args()
    warn_if_busy()
    with tempfile.TemporaryDirectory() as folder:
        say = partial(print, file=sys.stderr)
        lab = DrillEnvironment(find_model(args.run), Path(folder), args.short, say=say)
        numbers = programs[args.what](lab)
    for number in numbers:
        verdict = "" if not number.limited else "reached" if number.passed else "MISSED"
        print(f"{number.name:52}{number.text:>36}  {number.limit_text:20}{verdict}")
    print(machine())
    return 0 if all(number.passed for number in numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
