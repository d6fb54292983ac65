"""A new model version reaches every replica under load, one replica after the other."""

from labkit.client.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Moment, Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.replicas import Replica, renew

CLIENTS = 4
BEFORE, AFTER = 600, 600  # requests before the update begins and after it is over
LIMIT_S = 180.0


def run(lab: DrillEnvironment) -> Outcome:
    """Take each replica out of the gateway, start it again with version 2, and put it back."""
    scale = 3 if lab.short else 1
    old, new = lab.repository("version_1"), lab.repository("version_2", versions=(1, 2))
    with lab.replicas(old) as replicas, lab.gateway(replicas) as gateway:
        target = lab.target(replicas["one"].http, gateway)
        moments: list[Moment] = []
        counted: list[Counters] = []

        def note(replica: Replica) -> None:
            counted.append(Counters.read(replica.metrics, lab.name))

        with Load(target, LoadProfile(CLIENTS, seconds=LIMIT_S)) as load:
            load.reached(BEFORE // scale, LIMIT_S)
            begin = load.now_s
            for replica in replicas:
                lab.say(f"replica {replica.name}: out, new version, in again")
                moments.append(Moment(load.now_s, f"{replica.name} leaves"))
                renew(replicas, replica, gateway, new, note)
            moments.append(Moment(load.now_s, "all updated"))
            took = load.now_s - begin
            load.reached(len(load.answers) + AFTER // scale, LIMIT_S)
            record = load.record()
        now = lab.counters(replicas)
    return _outcome(record, moments, Counters.total(counted), now, took)


def _outcome(
    record: Record, moments: list[Moment], counted: Counters, now: Counters, took: float
) -> Outcome:
    new = now.by_version.get("2", 0.0)
    return Outcome(
        done=f"two replicas replaced one after the other by version 2, in {took:.1f} s, under load",
        client=f"{len(record.answered):,} answers, {len(record.failed)} errors; first all of "
        "version 1, at the end all of version 2",
        metrics=f"version 1 answered {counted.by_version.get('1', 0):,.0f} requests before its "
        f"replicas ended, version 2 {new:,.0f} since",
        lost="nothing; for as long as one replica starts, the other one does all the work",
        cause="The gateway stops sending to a replica before it is told to end (a reload starts "
        "new workers; the old ones finish what they have). Triton answers what is in flight "
        "before it exits, and the gateway gets it back only when its model is ready.",
        numbers=[
            Number("failed requests", len(record.failed), at_most=0, n=len(record.answers)),
            Number("sent again by the client, its connection was closed", record.resent),
            Number("answers of the new version", new, at_least=1),
            Number(
                "answers of the old version after the update",
                now.by_version.get("1", 0.0),
                at_most=0,
            ),
            Number("update of two replicas", took, "s"),
            Number("longest time without an answer", record.longest_gap_s(), "s", at_most=5),
        ],
        seconds=record.per_second(),
        moments=moments,
        evidence={"errors": record.errors},
    )


DRILL = Drill("rolling-update", "A new model version under load, replica by replica", run)
