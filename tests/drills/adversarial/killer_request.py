"""Three requests that Triton 24.10 does not survive, at Triton and at the gateway."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adversarial.malformed_http import Subject, post
from adversarial.memory import rss_mib
from adversarial.raw_http import RawAnswer, exchange
from labkit.client import LabClient
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.gateway import Gateway
from labkit.operate.load import Load, LoadProfile
from labkit.operate.processes import gone
from labkit.operate.replicas import Replica, Replicas

CHUNKS = 600_000  # of one byte: 3.6 MB
CUT_STREAMS, SHORT_CUT_STREAMS = 100, 30  # about 2 MiB are lost with each
HUGE = 2**63 - 1  # too many for any vector: refused by the language, whatever memory there is
DEATH_S = 5.0


@dataclass(frozen=True)
class Blow:
    """What one request did.

    Attributes:
        answer: What came back.
        lost: How many of the replicas ended.
    """

    answer: RawAnswer
    lost: int

    def __str__(self) -> str:
        said = f"{self.answer.status}" if self.answer.status else "no answer"
        return f"{said}, {self.lost} replica{'s' if self.lost != 1 else ''} lost"


def run(lab: DrillEnvironment) -> Outcome:
    """Send each of them to a replica, then to the gateway; start again what died."""
    count = SHORT_CUT_STREAMS if lab.short else CUT_STREAMS
    with lab.replicas(lab.repository()) as replicas, lab.gateway(replicas) as gateway:
        one = replicas["one"]
        with LabClient(one.http) as client:
            subject = Subject(client.card(lab.name))
        key = f"X-API-Key: {gateway.key}"
        lab.say(f"{CHUNKS:,} chunks of one byte, through the gateway and to Triton")
        blows = {
            "chunks, gateway": _strike(replicas, gateway.http_url, many_chunks(subject, key)),
            "chunks, Triton": _strike(replicas, one.http, many_chunks(subject)),
        }
        _revive(replicas)
        lab.say("a shape of 2^63 - 1 rows, to Triton and through the gateway")
        blows["shape, Triton"] = _strike(replicas, one.http, [huge_shape(subject)])
        _revive(replicas)
        blows["shape, gateway"] = _strike(replicas, gateway.http_url, [huge_shape(subject, key)])
        _revive(replicas)
        lab.say(f"{count} gzip streams that are cut off")
        leaked = _leak(one, subject, count)
        cut = exchange(gateway.http_url, [cut_stream(subject, key)])
        sound = _sound(lab, one, gateway)
    return _outcome(blows, leaked, count, cut, sound)


def many_chunks(subject: Subject, header: str = "") -> Iterator[bytes]:
    """Yield a body of many chunks of one byte."""
    more = f"{header}\r\n" if header else ""
    yield (
        f"POST {subject.path} HTTP/1.1\r\nHost: lab\r\n{more}Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    for _ in range(CHUNKS // 1_000):
        yield b"1\r\n{\r\n" * 1_000
    yield b"0\r\n\r\n"


def huge_shape(subject: Subject, *headers: str) -> bytes:
    """Return a request whose shape claims far more values than follow as JSON numbers."""
    shape = [1, HUGE, *subject.shape[2:]]
    body = json.dumps({"inputs": [subject.tensor(shape=shape, data=[0])]}).encode()
    return post(subject.path, body, *headers)


def cut_stream(subject: Subject, *headers: str) -> bytes:
    """Return a request whose gzip stream ends too early."""
    stream = gzip.compress(subject.body(), mtime=0)[:50]
    return post(subject.path, stream, "Content-Encoding: gzip", *headers)


def _strike(replicas: Replicas, address: str, pieces: Iterable[bytes]) -> Blow:
    """Send one request; see which replicas are gone afterwards."""
    before = [replica.pid for replica in replicas]
    answer = exchange(address, pieces, timeout_s=30)
    wait_s = DEATH_S if answer.status in (0, 502, 503, 504) else 1.0
    return Blow(answer, sum(gone(pid, wait_s) for pid in before))


def _revive(replicas: Replicas) -> None:
    """Start again what has died, as an engine does with `restart: unless-stopped`."""
    for replica in replicas:
        if not replica.running:
            replica.start()


def _leak(replica: Replica, subject: Subject, count: int) -> float:
    """Return how much memory a server loses on each cut gzip stream, in KiB.

    Other requests come in between, so that memory which is only reserved is also used.
    """
    filler = post(subject.path, subject.body(shape=[500, *subject.shape[1:]]))
    for _ in range(50):
        exchange(replica.http, [filler])
    before = rss_mib(replica.pid)
    for _ in range(count):
        exchange(replica.http, [cut_stream(subject)])
        exchange(replica.http, [filler])
    return 1_024 * (rss_mib(replica.pid) - before) / count


def _sound(lab: DrillEnvironment, replica: Replica, gateway: Gateway) -> int:
    with Load(lab.target(replica.http, gateway), LoadProfile(2, seconds=30, requests=100)) as load:
        return len(load.finish().failed)


def _outcome(
    blows: dict[str, Blow], leaked_kib: float, count: int, cut: RawAnswer, sound: int
) -> Outcome:
    return Outcome(
        done=f"a body in {CHUNKS:,} chunks of one byte; 10 kB of JSON whose shape claims 2^63 - 1 "
        f"channels; {count} gzip streams that are cut off",
        client="; ".join(f"{name}: {blow}" for name, blow in blows.items()),
        metrics="a replica that ends takes its counters along; `up` is 0, and memory in use grows "
        f"by {leaked_kib:.0f} KiB with each cut gzip stream",
        lost="every request in flight at a replica that ends, and with a shape both replicas: the "
        "gateway, which cannot know why the first one died, asks the second one too",
        cause="Defects of this release: its HTTP reader keeps a list of all chunks on the stack "
        "(CVE-2025-23310 and 23311, mended in 25.07), makes room for all the values that a shape "
        "claims before it looks at them, and forgets memory when a stream ends early. The gateway "
        "puts chunks together, so the first one never reaches Triton. Against the rest: keys for "
        "those one knows, a restart by the engine, a newer release.",
        numbers=[
            Number(
                "chunks through the gateway: replicas lost",
                blows["chunks, gateway"].lost,
                at_most=0,
            ),
            Number("chunks to Triton: replicas lost", blows["chunks, Triton"].lost),
            Number("huge shape to Triton: replicas lost", blows["shape, Triton"].lost),
            Number("huge shape through the gateway: replicas lost", blows["shape, gateway"].lost),
            Number("memory lost by a cut gzip stream", leaked_kib, "KiB", n=count),
            Number("cut gzip stream through the gateway: status", cut.status),
            Number("sound requests that failed after the restarts", sound, at_most=0, n=100),
        ],
        evidence={name: str(blow) for name, blow in blows.items()},
    )


DRILL = Drill("killer-request", "Requests that this release of Triton does not survive", run)
