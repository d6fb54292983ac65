"""Clients that send or read slowly, or fall silent: they must not keep the others waiting."""

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import psutil

from labkit.bench.target import Target
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import OPEN, DrillEnvironment
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.load import Load, LoadProfile, Record
from labkit.operate.processes import family

EACH, SHORT_EACH = 60, 15  # slow connections of each kind
CLIENTS = 2
BASE_S = 3.0
LIMIT_S, SHORT_LIMIT_S = 10, 3  # the gateway's own time limits, and shorter ones for tests
MARGIN_S = 20.0  # one that does not read is cut off only when the answers fill the connection
DRIP_S = 0.5
SILENT, DRIPPING, STALLED, UNREAD = "silent", "dripping headers", "half a body", "never reading"
KINDS = (SILENT, DRIPPING, STALLED, UNREAD)


@dataclass
class SlowClients:
    """Connections that are slow on purpose; a context manager that closes what is left of them.

    Attributes:
        address: `host:port` of an HTTP server.
        model: Its model.
        each: Connections of each kind; fewer of those that never read.
        headers: Sent with every request, such as a key.
        connections: Kind → the local ports of its connections.
    """

    address: str
    model: str
    each: int
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: dict[str, set[int]] = field(default_factory=dict, init=False)
    _sockets: dict[str, list[socket.socket]] = field(default_factory=dict, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)

    def __enter__(self) -> Self:
        host, port = self.address.rsplit(":", 1)
        for kind in KINDS:
            # Each that does not read makes the server work through thousands of requests first.
            count = max(2, self.each // 10) if kind == UNREAD else self.each
            sockets = [self._open(host, int(port), kind) for _ in range(count)]
            self._sockets[kind] = sockets
            self.connections[kind] = {one.getsockname()[1] for one in sockets}
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in (one for sockets in self._sockets.values() for one in sockets):
            one.close()

    def _open(self, host: str, port: int, kind: str) -> socket.socket:
        """Connect and send the beginning, as far as this kind goes at once."""
        one = socket.socket()
        if kind == UNREAD:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        one.settimeout(10)
        one.connect((host, port))
        more = "".join(f"{name}: {text}\r\n" for name, text in self.headers.items())
        start = {
            SILENT: "",
            DRIPPING: "POST /v2/models/",
            STALLED: f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: lab\r\n{more}"
            'Content-Length: 10000\r\n\r\n{"inputs": ',
            UNREAD: "",
        }[kind]
        one.sendall(start.encode())
        one.setblocking(False)
        if kind == UNREAD:
            ask = f"GET /v2/models/{self.model}/config HTTP/1.1\r\nHost: lab\r\n{more}\r\n".encode()
            with contextlib.suppress(OSError):  # until nothing more goes in
                for _ in range(20_000):
                    one.sendall(ask)
        return one

    def _drip(self) -> None:
        """Send a letter of an endless request line now and then."""
        while not self._stop.wait(DRIP_S):
            for one in self._sockets[DRIPPING]:
                with contextlib.suppress(OSError):
                    one.send(b"x")


def held(pid: int) -> set[int]:
    """Return the far ports of the connections that a server and its children keep open."""
    ports: set[int] = set()
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            ports |= {c.raddr.port for c in process.net_connections("tcp") if c.raddr}
    return ports


def time_until_cut(
    slow: SlowClients, server: psutil.Process, limit_s: float
) -> dict[str, float | None]:
    """Return kind → seconds until the server had closed its last connection; None: it never did."""
    begin = time.monotonic()
    cut: dict[str, float | None] = dict.fromkeys(KINDS)
    while time.monotonic() < begin + limit_s and None in cut.values():
        open_ports = held(server.pid)
        for kind, ports in slow.connections.items():
            if cut[kind] is None and not ports & open_ports:
                cut[kind] = time.monotonic() - begin
        time.sleep(0.1)
    return cut


def run(lab: DrillEnvironment) -> Outcome:
    """Let slow clients hold on to the gateway while others ask; then to Triton itself."""
    each = SHORT_EACH if lab.short else EACH
    limit_s = SHORT_LIMIT_S if lab.short else LIMIT_S
    names = ("header_timeout", "body_timeout", "send_timeout")
    settings = {**OPEN, **dict.fromkeys(names, f"{limit_s}s")}
    with lab.replicas(lab.repository(), ("one",)) as replicas:
        one = replicas["one"]
        with lab.gateway(replicas, settings) as gateway:
            target = lab.target(one.http, gateway)
            with Load(target, LoadProfile(CLIENTS, seconds=BASE_S)) as load:
                alone = load.finish()
            lab.say(f"{each} slow clients of each kind at the gateway")
            beside, cut = _beside(
                target, SlowClients(gateway.http_url, lab.name, each, {"X-API-Key": gateway.key}),
                psutil.Process(gateway.pid), limit_s + MARGIN_S,
            )  # fmt: skip
        lab.say("the same at Triton itself")
        direct, direct_cut = _beside(
            lab.target(one.http), SlowClients(one.http, lab.name, each),
            psutil.Process(one.pid), limit_s + 2,
        )  # fmt: skip
    return _outcome(each, limit_s, (alone, beside, direct), cut, direct_cut)


def _beside(
    target: Target, slow: SlowClients, server: psutil.Process, limit_s: float
) -> tuple[Record, dict[str, float | None]]:
    """Measure ordinary clients while slow ones are there, until these are cut off."""
    with slow, Load(target, LoadProfile(CLIENTS, seconds=limit_s + 30)) as load:
        cut = time_until_cut(slow, server, limit_s)
        load.reached(len(load.answers) + 200, 10)
        return load.record(), cut


def _outcome(
    each: int,
    limit_s: float,
    records: tuple[Record, Record, Record],
    cut: dict[str, float | None],
    direct_cut: dict[str, float | None],
) -> Outcome:
    alone, beside, direct = records
    p95 = [record.latency_ms().p95 or record.latency_ms().max for record in records]
    kept = [kind for kind in KINDS if direct_cut[kind] is None]
    shown = ", ".join(f"{kind} {_seconds(cut[kind])}" for kind in KINDS)
    return Outcome(
        done=f"{each} connections of each kind to the gateway, and the same straight to Triton: "
        + ", ".join(KINDS),
        client=f"the other clients: {len(beside.failed)} of {len(beside.answers):,} requests "
        f"failed (95th percentile {p95[1]:.0f} ms, alone {p95[0]:.0f} ms); slow ones are cut off: "
        f"{shown}",
        metrics="none of Triton's metrics shows them: most never reach it, as the gateway passes a "
        "request on only when it is complete",
        lost="nothing but the slow clients' own requests",
        cause="The gateway has time limits for headers, for silence in a body and for silence of a "
        f"reader. Triton has none: {len(kept)} of {len(KINDS)} kinds kept all their connections "
        "there. It still answered others, as waiting costs it no thread, but memory and files.",
        numbers=[
            Number(
                "other clients: failed requests",
                len(beside.failed),
                at_most=0,
                n=len(beside.answers),
            ),
            Number("other clients: 95th percentile", p95[1], "ms", at_most=10 * p95[0] + 100),
            Number("other clients: 95th percentile when alone", p95[0], "ms", n=len(alone.answers)),
            Number(
                "kinds that were not cut off in time",
                sum(v is None for v in cut.values()),
                at_most=0,
                n=each,
            ),
            *(Number(f"{kind}: cut off after", s, "s") for kind, s in cut.items() if s is not None),
            Number("Triton itself: kinds that it never cut off", len(kept)),
            Number(
                "Triton itself: failed requests of others",
                len(direct.failed),
                n=len(direct.answers),
            ),
        ],
        evidence={"gateway": cut, "triton": direct_cut},
    )


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"after {seconds:.1f} s"


DRILL = Drill("slow-client", "Clients that send or read slowly", run)
