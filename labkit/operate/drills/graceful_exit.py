"""SIGTERM while requests are in flight: what was accepted is answered, nothing new is taken."""

import os
import signal
import socket
import time
from dataclasses import dataclass

from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Answer, Load, LoadProfile, Record
from labkit.operate.processes import gone
from labkit.operate.replicas import Replica

CLIENTS, BATCH = 4, 64  # requests in flight when the signal comes, each of 0.1 s and more
EXIT_TIMEOUT_S = 6
LIMIT_S = 60.0
READY = "a server that is still ready"


@dataclass(frozen=True)
class Exit:
    """One server that was told to end.

    Attributes:
        record: What its clients met.
        signal_s: When it was told, in seconds since the load began.
        took_s: From then until it was gone.
        refused: What a new connection met.
    """

    record: Record
    signal_s: float
    took_s: float
    refused: str

    @property
    def after(self) -> list[Answer]:
        """What came back after the signal."""
        return [answer for answer in self.record.answers if answer.at_s >= self.signal_s]


def run(lab: DrillEnvironment) -> Outcome:
    """End a server whose clients leave, one whose clients stay, and one with an idle connection."""
    repository, names = lab.repository(), ("leave", "stay", "idle")
    with lab.replicas(repository, names, exit_timeout_s=EXIT_TIMEOUT_S) as replicas:
        lab.say("SIGTERM; the clients leave with their answers")
        leave = _end_under_load(lab, replicas["leave"], leave=True)
        lab.say("SIGTERM; the clients go on asking")
        stay = _end_under_load(lab, replicas["stay"], leave=False)
        lab.say("SIGTERM with an idle connection")
        idle_s = _end_idle(replicas["idle"])
    return _outcome(leave, stay, idle_s)


def _end_under_load(lab: DrillEnvironment, replica: Replica, leave: bool) -> Exit:
    """End a replica with requests in flight."""
    with Load(lab.target(replica.http, batch=BATCH), LoadProfile(CLIENTS, seconds=LIMIT_S)) as load:
        load.reached(2 * CLIENTS, LIMIT_S)
        pid, begin = replica.pid, load.now_s
        os.kill(pid, signal.SIGTERM)
        if leave:
            load.send_no_more()
        refused = _connect(replica)
        gone(pid, LIMIT_S)
        took = load.now_s - begin
        return Exit(load.record(), begin, took, refused)


def _connect(replica: Replica) -> str:
    """Say what a new connection meets at a server that is ending."""
    host, port = replica.http.split(":")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # the signal needs a moment to arrive
        try:
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: lab\r\n\r\n")
                first = connection.recv(100).split(b"\r\n")[0].decode()
        except OSError as error:
            return error.strerror or type(error).__name__
        if " 200 " not in first:
            return first or "closed without an answer"
        time.sleep(0.01)
    return READY


def _end_idle(replica: Replica) -> float:
    """End a replica to which a client keeps an idle connection; return how long it took."""
    host, port = replica.http.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: lab\r\n\r\n")
        connection.recv(1_000)
        pid, begin = replica.pid, time.monotonic()
        os.kill(pid, signal.SIGTERM)
        gone(pid, LIMIT_S)
        return time.monotonic() - begin


def _outcome(leave: Exit, stay: Exit, idle_s: float) -> Outcome:
    served = sum(not answer.error for answer in stay.after)
    broken = sum(1 for answer in stay.after if answer.error)
    lost = [answer for answer in leave.after if answer.error]
    return Outcome(
        done=f"SIGTERM to a Triton with {CLIENTS} requests of {BATCH} images in flight, and to one "
        f"with an idle connection; exit timeout {EXIT_TIMEOUT_S} s",
        client=f"{len(leave.after)} requests in flight, {len(leave.after) - len(lost)} answered; a "
        f"new connection met: {leave.refused}. Clients that stayed got {served} more answers, then "
        f"{broken} broken connections",
        metrics="the page is gone with the process; what is in Prometheus stays there",
        lost=f"nothing where clients leave with their answers; {min(broken, CLIENTS)} requests in "
        "flight where they stay until the exit timeout",
        cause="On SIGTERM Triton takes no new connection and answers what comes on the open ones, "
        "idle ones included, until the last is closed or the exit timeout is over. So a gateway "
        "first stops sending, and a container's grace period must be longer than that timeout.",
        numbers=[
            Number("in flight when the signal came", len(leave.after), at_least=1),
            Number("of these lost", len(lost), at_most=0),
            Number("exit, clients leave", leave.took_s, "s", at_most=EXIT_TIMEOUT_S - 1),
            Number("exit, clients stay", stay.took_s, "s", at_most=EXIT_TIMEOUT_S + 5),
            Number("exit, one idle connection", idle_s, "s", at_most=EXIT_TIMEOUT_S + 5),
            Number("new connections refused", float(leave.refused != READY), at_least=1),
        ],
        evidence={"refused": leave.refused, "errors": stay.record.errors},
    )


DRILL = Drill("graceful-exit", "SIGTERM with requests in flight", run)
