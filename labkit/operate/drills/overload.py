"""Ten times more requests than the replicas can compute: the queue policy says no at once."""

import http.client
from collections.abc import Sequence
from dataclasses import replace

from labkit.bench import Percentiles
from labkit.client.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment, Queue
from labkit.operate.drills.outcome import Moment, Number, Outcome
from labkit.operate.load import Answer, Load, LoadProfile, Record, Second

BATCH = 8
FACTOR = 10.0
SECONDS, SHORT_SECONDS = 30.0, 8.0
CALM_S = 8.0  # how long recovery is watched
QUEUE = Queue(size=16, timeout_ms=500.0)
# Beyond the time in the queue: one batch that is being computed, the request's own, and the way.
COMPUTE_MS = 1_500.0
RECOVERY_S = 5.0
TOLERATED = 0.05  # of a second's requests


def run(lab: DrillEnvironment) -> Outcome:
    """Measure the capacity, send ten times as much in an open loop, and watch the recovery."""
    seconds = SHORT_SECONDS if lab.short else SECONDS
    with (
        lab.replicas(lab.repository(queue=QUEUE)) as replicas,
        lab.gateway(replicas) as gateway,
    ):
        target = lab.target(replicas["one"].http, gateway, BATCH)
        lab.say("measuring the capacity")
        with Load(target, LoadProfile(clients=32, seconds=4)) as load:
            capacity = load.finish().rate_per_s
        before = lab.counters(replicas)
        rate = FACTOR * capacity
        lab.say(f"{rate:,.0f} requests/s for {seconds:.0f} s, {FACTOR:g} × capacity")
        with Load(target, LoadProfile(rate_per_s=rate, seconds=seconds)) as load:
            storm = load.finish()
        counted = lab.counters(replicas) - before
        lab.say("watching the recovery")
        with Load(target, LoadProfile(clients=2, seconds=CALM_S)) as load:
            calm = load.finish()
    return _outcome(storm, calm, counted, capacity, rate, seconds)


def _outcome(
    storm: Record, calm: Record, counted: Counters, capacity: float, rate: float, seconds: float
) -> Outcome:
    accepted = Percentiles.of([answer.latency_ms for answer in storm.answered])
    refused = [
        answer for answer in storm.failed if answer.status == http.client.SERVICE_UNAVAILABLE
    ]
    by_gateway = sum("no replica" in answer.error for answer in refused)
    hung = len(storm.failed) - len(refused)
    drained = max(0.0, storm.seconds - seconds)  # until the storm's last answer
    recovered = drained + recovery_s(calm)
    slowest = max(answer.latency_ms for answer in storm.answers)
    good = len(storm.answered) / seconds / capacity
    p99 = accepted.max if accepted.p99 is None else accepted.p99
    return Outcome(
        done=f"{rate:,.0f} requests of {BATCH} images per second for {seconds:.0f} s in an open "
        f"loop, {FACTOR:g} times the {capacity:.0f} that two replicas answer; queue of "
        f"{QUEUE.size}, {QUEUE.timeout_ms:.0f} ms at most",
        client=f"{len(storm.answered):,} answers, {len(refused):,} times 503 at once (median "
        f"{_median(refused):.0f} ms), {by_gateway:,} of them by the gateway; {hung} hung "
        "or were cut off",
        metrics=f"{counted.text()}. What a full queue refuses is not counted in "
        "nv_inference_request_failure, only what waited too long: the gateway's log has all of it",
        lost=f"{len(storm.failed):,} requests, refused; throughput falls to {100 * good:.0f} % of "
        "what it was, as refusing costs time on the same cores",
        cause="A full queue refuses at once, and a request that waited too long is dropped before "
        "it is computed. So what is accepted keeps its latency. Without a policy the queue would "
        "grow for as long as the storm lasts, and answer requests whose clients have long gone.",
        numbers=[
            Number("accepted: 99th percentile", p99, "ms", at_most=QUEUE.timeout_ms + COMPUTE_MS,
                   n=accepted.n),
            Number("until all is answered again", recovered, "s", at_most=RECOVERY_S,
                   n=len(calm.answers)),
            Number("refused afterwards, one by one", len(calm.failed), n=len(calm.answers)),
            Number("accepted: median", accepted.p50, "ms"),
            Number("load against capacity", len(storm.answers) / seconds / capacity, "×",
                   at_least=0.8 * FACTOR, n=len(storm.answers)),
            Number("answered during the storm, against capacity", good, "×"),
            Number("neither answered nor refused", hung, at_most=0),
            Number("refusals in the gateway's words: it took busy replicas for dead ones",
                   by_gateway / max(len(refused), 1), "×", at_most=0.5, n=len(refused)),
            Number("slowest answer or refusal", slowest, "ms", at_most=10_000),
        ],
        seconds=[*storm.per_second(), *_shifted(calm, seconds)],
        moments=[Moment(seconds, "load back to normal")],
        evidence={
            "errors": storm.errors,
            "errors_afterwards": calm.errors,
            "sent_late_ms": storm.late_ms,
            "not_sent": storm.dropped,
        },
    )  # fmt: skip


def recovery_s(calm: Record) -> float:
    """Return the end of the last second in which more than `TOLERATED` failed; 0 without one.

    A single request may still be refused much later: with a queue timeout this release now and
    then lets one wait its time out although the server idles. That is counted by itself.
    """
    bad = [
        row.second
        for row in calm.per_second()
        if row.failed + row.refused > TOLERATED * (row.answered + row.failed + row.refused)
    ]
    return float(bad[-1] + 1) if bad else 0.0


def _shifted(record: Record, seconds: float) -> list[Second]:
    """Return a later load's rows, counted from the beginning of the one before it."""
    return [replace(row, second=row.second + 1 + int(seconds)) for row in record.per_second()]


def _median(answers: Sequence[Answer]) -> float:
    times = sorted(answer.latency_ms for answer in answers)
    return times[len(times) // 2] if times else 0.0


DRILL = Drill("overload", "Ten times more requests than can be computed", run)
