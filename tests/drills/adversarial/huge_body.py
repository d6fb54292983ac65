"""Requests far larger than any batch: at the gateway, and at Triton itself, which has no cap."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from adversarial.malformed_http import HEADER
from adversarial.memory import MIB, rss_mib
from adversarial.raw_http import RawAnswer, exchange
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.processes import until

HUGE_MIB, SHORT_HUGE_MIB = 256, 48
PIECE = bytes(MIB)
CLIENTS = 2


@dataclass
class Peak:
    """The greatest resident memory of a server while a `with` block runs, in MiB."""

    pid: int
    mib: float = 0.0

    def __enter__(self) -> "Peak":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.mib = max(self.mib, rss_mib(self.pid))


def run(lab: DrillEnvironment) -> Outcome:
    """Send one huge body to the gateway in two ways, and one to Triton."""
    size = SHORT_HUGE_MIB if lab.short else HUGE_MIB
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as gateway:
        one = replicas["one"]
        key = f"X-API-Key: {gateway.key}\r\n"
        with Load(lab.target(one.http, gateway), LoadProfile(CLIENTS, seconds=120)) as load:
            load.reached(200, 60)
            before = rss_mib(one.pid)
            lab.say(f"{size} MiB to the gateway")
            with Peak(one.pid) as peak:
                announced = exchange(gateway.http_url, announced_body(lab.name, size, key))
                chunked = exchange(gateway.http_url, chunked_body(lab.name, size, key))
            behind_gateway = peak.mib - before
            lab.say(f"{size} MiB to Triton itself")
            with Peak(one.pid) as peak:
                direct = exchange(one.http, announced_body(lab.name, size), timeout_s=60)
            until(lambda: rss_mib(one.pid) < before + size / 4, 10)
            after = rss_mib(one.pid) - before
            load.reached(len(load.answers) + 200, 60)
            record = load.record()
        alive = one.running
    grown = (behind_gateway, peak.mib - before, after)
    return _outcome(size, (announced, chunked, direct), grown, record, alive)


def announced_body(model: str, mib: int, headers: str = "") -> Iterator[bytes]:
    """Yield a request whose Content-Length says truly how large it is."""
    yield _head(model, f"Content-Length: {mib * MIB}\r\n{headers}")
    for _ in range(mib):
        yield PIECE


def chunked_body(model: str, mib: int, headers: str = "") -> Iterator[bytes]:
    """Yield a request that does not say how large it is, in chunks of 1 MiB."""
    yield _head(model, f"Transfer-Encoding: chunked\r\n{headers}")
    for _ in range(mib):
        yield b"%x\r\n" % MIB + PIECE + b"\r\n"
    yield b"0\r\n\r\n"


def _head(model: str, headers: str) -> bytes:
    return (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: lab\r\n{HEADER}: 100\r\n{headers}\r\n"
    ).encode()


def _outcome(
    size: int,
    answers: tuple[RawAnswer, RawAnswer, RawAnswer],
    grown: tuple[float, float, float],
    record: Record,
    alive: bool,
) -> Outcome:
    announced, chunked, direct = answers
    behind_gateway, peak, after = grown
    return Outcome(
        done=f"a body of {size} MiB to the gateway, with its length and in chunks, and to Triton",
        client=f"the gateway: {announced.status} and {chunked.status}, {announced.message!r}; "
        f"Triton: {direct.status}, {direct.message!r}; other clients: {len(record.failed)} errors",
        metrics=f"resident memory of Triton: {behind_gateway:+.0f} MiB behind the gateway; "
        f"{peak:+.0f} MiB at the most when it gets the body itself, {after:+.0f} MiB afterwards",
        lost="nothing",
        cause="Triton 24.10 has no limit for a body (the flag --http-max-input-size came with "
        "25.06) and holds all of it before it looks. The gateway refuses by the announced length, "
        "and cuts a chunked body off at its cap.",
        numbers=[
            Number(
                "gateway, length announced: status", announced.status, at_least=413, at_most=413
            ),
            Number("gateway, in chunks: status", chunked.status, at_least=413, at_most=413),
            Number("Triton's memory behind the gateway", behind_gateway, "MiB", at_most=32),
            Number("Triton itself: status", direct.status),
            Number("Triton itself: memory at the most", peak, "MiB"),
            Number("Triton itself: memory afterwards", after, "MiB"),
            Number(
                "other clients: failed requests",
                len(record.failed),
                at_most=0,
                n=len(record.answers),
            ),
            Number("server alive", float(alive), at_least=1),
        ],
    )


DRILL = Drill("huge-body", "A request body far above the cap", run)
