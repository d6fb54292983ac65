"""The process in which the model runs is killed; the server around it lives on."""

import http.client

from adversarial.memory import stubs
from labkit.client.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Moment, Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.processes import gone, until
from labkit.operate.replicas import Replica, renew

CLIENTS = 4
LIMIT_S = 120.0
WATCHED_S = 4.0  # long enough for a restart by Triton itself, if there were one
FAILS_WITHIN_MS = 5_000.0


def run(lab: DrillEnvironment) -> Outcome:
    """Kill the Python stub of one of two replicas; see whether it comes back; then replace it."""
    ask = 300 if lab.short else 1_000
    with lab.replicas(lab.repository()) as replicas, lab.gateway(replicas) as gateway:
        one = replicas["one"]
        target = lab.target(one.http, gateway)
        with Load(target, LoadProfile(CLIENTS, seconds=LIMIT_S)) as load:
            load.reached(ask, LIMIT_S)
            stub = stubs(one.pid)[0]
            killed_s = load.now_s
            lab.say("kill -9 of the model's process")
            stub.kill()
            gone(stub.pid, 10)
            came_back = until(lambda: bool(_answers_again(one, lab.name)), WATCHED_S)
            says = {path: status(one, path) for path in _health(lab.name)}
            counted = Counters.read(one.metrics, lab.name)
            lab.say("starting the replica again")
            renew(replicas, one, gateway)
            back_s = load.now_s
            load.reached(len(load.answers) + ask, LIMIT_S)
            record = load.record()
    return _outcome(record, (killed_s, back_s), came_back, says, counted)


def _health(model: str) -> tuple[str, ...]:
    return "/v2/health/live", "/v2/health/ready", f"/v2/models/{model}/ready"


def status(replica: Replica, path: str) -> int:
    """Return the status of a GET; 0 where no answer comes."""
    connection = http.client.HTTPConnection(replica.http, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _answers_again(replica: Replica, model: str) -> bool:
    """Say whether a server has started the process of its model anew."""
    return bool(stubs(replica.pid)) and status(replica, _health(model)[2]) == http.client.OK


def _outcome(
    record: Record,
    at_s: tuple[float, float],
    came_back: bool,
    says: dict[str, int],
    counted: Counters,
) -> Outcome:
    killed_s, back_s = at_s
    later = [answer for answer in record.failed if answer.at_s > back_s]
    slowest = max((answer.latency_ms for answer in record.failed), default=0.0)
    words = next(iter(record.errors), "none")
    health = ", ".join(f"{path} {code}" for path, code in says.items())
    return Outcome(
        done="kill -9 of the Python process in which one of two replicas runs the model",
        client=f"{len(record.failed)} of {len(record.answers):,} requests failed until the replica "
        f"was replaced, each with: {words}",
        metrics=f"nv_inference_request_failure: {counted.failed:,.0f} with reason BACKEND; "
        f"meanwhile health says: {health}",
        lost="the requests that the gateway sent to this replica: it does not repeat a 500, which "
        "may well be the request's own fault",
        cause="The Python backend of this release does not start a dead process again, and health "
        "asks the server, not the model's process. So the counter of failures is what an alert "
        "must watch, and the cure is to start the replica again.",
        numbers=[
            Number("failed after the replica was replaced", len(later), at_most=0),
            Number("slowest failure", slowest, "ms", at_most=FAILS_WITHIN_MS),
            Number("failed requests until then", len(record.failed), n=len(record.answers)),
            Number("Triton started the process again by itself", float(came_back)),
            Number("from the kill until replaced", back_s - killed_s, "s"),
        ],
        seconds=record.per_second(),
        moments=[Moment(killed_s, "kill -9"), Moment(back_s, "replaced")],
        evidence={"errors": record.errors, "health": says},
    )


DRILL = Drill("backend-killed", "The model's process is killed, the server is not", run)
