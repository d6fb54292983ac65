"""A hundred thousand requests: does memory stay where it was after the first ten thousand?"""

import time

from labkit.operate.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.lab import Lab
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Load, Record, Shape
from labkit.operate.processes import rss_mib

FIRST, LAST = 10_000, 100_000
SHORT_FIRST, SHORT_LAST = 1_000, 4_000
CLIENTS = 16
LIMIT_S = 600.0
STEPS = 18  # readings of memory between the first and the last


def run(lab: Lab) -> Outcome:
    """Ask one replica through the gateway without pause, and read its memory on the way."""
    first, last = (SHORT_FIRST, SHORT_LAST) if lab.short else (FIRST, LAST)
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as gateway:
        one = replicas["one"]
        readings: list[tuple[int, float]] = []
        begin = time.monotonic()
        target = lab.target(one.http, gateway)
        with Load(target, Shape(CLIENTS, seconds=LIMIT_S, requests=last)) as load:
            for step in range(STEPS + 1):
                wanted = first + step * (last - first) // STEPS
                if not load.reached(min(wanted, last - CLIENTS), LIMIT_S):
                    break
                readings.append((len(load.answers), rss_mib(one.pid)))
                lab.say(f"{len(load.answers):,} requests, {readings[-1][1]:.0f} MiB")
            record = load.finish()
        readings.append((len(record.answers), rss_mib(one.pid)))
        counted = Counters.read(one.metrics, lab.name)
        took = time.monotonic() - begin
    return _outcome(record, readings, counted, took, last)


def _outcome(
    record: Record, readings: list[tuple[int, float]], counted: Counters, took: float, last: int
) -> Outcome:
    (first_n, before), (last_n, after) = readings[0], readings[-1]
    return Outcome(
        done=f"{len(record.answers):,} requests of one image from {CLIENTS} clients through the "
        f"gateway, in {took:.0f} s",
        client=f"{len(record.failed)} errors, {record.rate_per_s:,.0f} answers per second",
        metrics=f"{counted.text()}; resident memory of the server and its model's process: "
        f"{before:.1f} MiB after {first_n:,} requests, {after:.1f} MiB after {last_n:,}",
        lost="nothing",
        cause="Memory is taken for the largest batch and kept for the next one; a server that grew "
        "with every request would end one day without any other reason.",
        numbers=[
            Number("memory at the end against that at the beginning", after / before, "×",
                   at_least=0.95, at_most=1.05, n=len(record.answers)),
            Number("requests", len(record.answers), at_least=last),
            Number("failed requests", len(record.failed), at_most=0),
            Number("greatest memory", max(mib for _, mib in readings), "MiB", n=len(readings)),
            Number("time", took, "s", at_most=LIMIT_S),
        ],
        evidence={"memory_mib": {str(n): round(mib, 1) for n, mib in readings}},
    )  # fmt: skip


DRILL = Drill("soak", "A hundred thousand requests", run, usual=False)
