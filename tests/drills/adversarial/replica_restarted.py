"""A replica that was killed comes back, and the gateway sends to it again."""

from labkit.client.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Moment, Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.processes import until

CLIENTS = 8
REQUESTS, SHORT_REQUESTS = 2_000, 500  # after it has come back
LIMIT_S = 180.0


def run(lab: DrillEnvironment) -> Outcome:
    """Kill one of two replicas under load, start it again, and see it take its share."""
    after = SHORT_REQUESTS if lab.short else REQUESTS
    with lab.replicas(lab.repository()) as replicas, lab.gateway(replicas) as gateway:
        one, two = replicas["one"], replicas["two"]
        target = lab.target(one.http, gateway)
        with Load(target, LoadProfile(CLIENTS, seconds=LIMIT_S)) as load:
            load.reached(after // 4, LIMIT_S)
            one.kill()
            killed_s = load.now_s
            lab.say("killed; starting it again")
            one.start()
            ready_s = load.now_s
            idle = Counters.read(one.metrics, lab.name).success  # none: nobody but the gateway asks
            until(lambda: Counters.read(one.metrics, lab.name).success > idle, 30)
            taken_s = load.now_s
            before = [Counters.read(replica.metrics, lab.name) for replica in (one, two)]
            load.reached(len(load.answers) + after, LIMIT_S)
            now = [Counters.read(replica.metrics, lab.name) for replica in (one, two)]
            record = load.record()
    shares = [b - a for a, b in zip(before, now, strict=True)]
    return _outcome(record, shares, killed_s, ready_s, taken_s)


def _outcome(
    record: Record, shares: list[Counters], killed_s: float, ready_s: float, taken_s: float
) -> Outcome:
    total = max(sum(part.success for part in shares), 1)
    share = shares[0].success / total
    return Outcome(
        done="kill -9 of one of two replicas under load, then started again at the same port",
        client=f"{len(record.answered):,} answers, {len(record.failed)} errors",
        metrics=f"its counters begin at 0 again; of the next {total:,.0f} answers it gave "
        f"{shares[0].success:,.0f}, the other one {shares[1].success:,.0f}",
        lost="its counters up to the kill: Prometheus's rate() knows such a reset, a difference "
        "computed by hand does not",
        cause="The gateway tries a replica that failed once a second. It is ready as soon as "
        "Triton opens its port, which it does after the models are loaded; so no request meets a "
        "half started server.",
        numbers=[
            Number("failed requests", len(record.failed), at_most=0, n=len(record.answers)),
            Number("start until ready", ready_s - killed_s, "s"),
            Number("ready until it answers again", taken_s - ready_s, "s", at_most=5),
            Number(
                "its share of the load then", share, at_least=0.25, at_most=0.75, n=round(total)
            ),
            Number("sent again by the client, its connection was closed", record.resent, at_most=0),
        ],
        seconds=record.per_second(),
        moments=[
            Moment(killed_s, "kill -9"),
            Moment(ready_s, "ready"),
        ],
        evidence={"errors": record.errors},
    )


DRILL = Drill("replica-restarted", "A killed replica comes back", run)
