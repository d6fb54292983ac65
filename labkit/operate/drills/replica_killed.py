"""A replica dies under load: SIGKILL, as the kernel does when memory runs out."""

from labkit.client.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Moment, Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record

CLIENTS = 8
REQUESTS, SHORT_REQUESTS = 6_000, 1_200
LIMIT_S = 180.0


def run(lab: DrillEnvironment) -> Outcome:
    """Kill one of two replicas in the middle of the load, and let the other one do all the work."""
    wanted = SHORT_REQUESTS if lab.short else REQUESTS
    with (
        lab.replicas(lab.repository()) as replicas,
        lab.gateway(replicas) as gateway,
    ):
        one, two = replicas["one"], replicas["two"]
        target = lab.target(one.http, gateway)
        before = Counters.read(two.metrics, lab.name)
        lab.say(f"{wanted:,} requests from {CLIENTS} clients")
        with Load(target, LoadProfile(CLIENTS, seconds=LIMIT_S, requests=wanted)) as load:
            load.reached(wanted // 3, LIMIT_S)
            last = Counters.read(one.metrics, lab.name)
            killed_s = load.now_s
            lab.say("kill -9 of replica one")
            one.kill()
            record = load.finish()
        survivor = Counters.read(two.metrics, lab.name) - before
        retried = gateway.access_log.read_text().count('", "upstream_status": "502, 200"')
    return _outcome(record, killed_s, last, survivor, retried, wanted)


def _outcome(
    record: Record,
    killed_s: float,
    last: Counters,
    survivor: Counters,
    retried: int,
    wanted: int,
) -> Outcome:
    slowest = max(answer.latency_ms for answer in record.answered)
    return Outcome(
        done=f"kill -9 of one of two replicas after {killed_s:.1f} s of load by {CLIENTS} clients",
        client=f"{len(record.answered):,} answers, {len(record.failed)} errors; "
        f"the slowest took {slowest:.0f} ms",
        metrics=f"the dead replica's page is gone with its last {last.success:,.0f} answers; the "
        f"other one: {survivor.text()}",
        lost="the work in progress of the dead replica, done again by the other one, and its "
        "counters",
        cause="The gateway keeps each request until it is answered. A broken connection to a "
        f"replica makes it ask the other one: {retried} requests here. The dead replica is then "
        "left out for a second at a time.",
        numbers=[
            Number("failed requests", len(record.failed), at_most=0, n=len(record.answers)),
            Number("requests", len(record.answers), at_least=wanted),
            Number("sent again by the client, its connection was closed", record.resent, at_most=0),
            Number("requests that the gateway asked a second time", retried),
            Number("slowest answer", slowest, "ms", at_most=10_000),
            Number("longest time without an answer", record.longest_gap_s(), "s", at_most=5),
        ],
        seconds=record.per_second(),
        moments=[Moment(killed_s, "kill -9")],
        evidence={"errors": record.errors},
    )


DRILL = Drill("replica-killed", "A replica is killed under load", run)
