"""Thousands of malformed requests: each must be refused with a reason, and the server must live."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import grpc

from adversarial.malformed_grpc import NO_MESSAGE, GrpcCase, grpc_cases
from adversarial.malformed_http import Case, http_cases
from adversarial.memory import rss_mib
from adversarial.raw_http import exchange
from labkit.client import GRPC_CHANNEL_ARGS, LabClient, ModelCard
from labkit.client.counters import Counters
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Number, Outcome
from labkit.operate.gateway import Gateway
from labkit.operate.load import Load, LoadProfile
from labkit.operate.replicas import Replica

COUNT, LEAST, SHORT_COUNT = 12_000, 10_000, 500
WARM_UP = 5_000  # before memory is measured for the first time
# Of all requests: over HTTP and gRPC to Triton, and over both through the gateway.
SHARES = (0.55, 0.25, 0.1, 0.1)
TIMEOUT_S = 20.0

REFUSED, CLOSED, UNEXPECTED = "refused with a reason", "closed without an answer", "unexpected"
# How an answer with a 5xx begins → what Triton 24.10 gives it for, though the client is wrong.
# A batch of 2^40 rows passes the core's checks and is the engine's to refuse, natively as well.
TOO_MANY_ROWS = (
    "Failed to process the request(s) for model 'cifar10_onnx_0_0', message: Internal: "
    "onnx runtime error 2: Invalid rank for input: input Got: 3 Expected: 4"
)
KNOWN_5XX: Mapping[str, str] = {
    f"500 {TOO_MANY_ROWS}": "500 for a batch that no memory holds",
    f"INTERNAL {TOO_MANY_ROWS}": "INTERNAL for a batch that no memory holds",
    "500 failed to parse the request JSON buffer": "500 for JSON that is none",
    "500 Unable to parse '": "500 for JSON values of a wrong kind",
    "500 Unable to parse JSON bytes array": "500 for JSON values of a wrong kind",
    "500 Unable to set 'classification'": "500 for JSON values of a wrong kind",
    "INTERNAL Unable to parse request": "INTERNAL for bytes that are no message",
    "505 ": "505 for a version of HTTP that nobody speaks",
}
# gRPC's counterparts of 4xx.
CLIENT_CODES = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE",
     "PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION"}
)  # fmt: skip


def run(lab: DrillEnvironment) -> Outcome:
    """Send malformed requests of every kind, straight to a replica and through the gateway."""
    total = SHORT_COUNT if lab.short else COUNT
    shares = [round(share * total) for share in SHARES]
    with lab.replicas(lab.repository(), ("one",)) as replicas, lab.gateway(replicas) as gateway:
        one = replicas["one"]
        with LabClient(one.http) as client:
            card = client.card(lab.name)
        verdicts: Counter[str] = Counter()
        odd: list[str] = []
        _warm_up(lab, one, gateway, card)
        before, counted = rss_mib(one.pid), Counters.read(one.metrics, lab.name)
        for share, words, cases in zip(
            shares, _WAYS, _ways(card, one, gateway, lab.seed), strict=True
        ):
            lab.say(f"{share:,} {words}")
            for kind, verdict in islice(cases, share):
                verdicts[verdict] += 1
                if verdict.startswith(UNEXPECTED):
                    odd.append(f"{kind}: {verdict}")
        after, counted = rss_mib(one.pid), Counters.read(one.metrics, lab.name) - counted
        alive = one.running
        with Load(lab.target(one.http, gateway), LoadProfile(2, seconds=30, requests=100)) as load:
            sound = load.finish()
    wanted = SHORT_COUNT if lab.short else LEAST
    return _outcome(verdicts, odd, (before, after), counted, alive, len(sound.failed), wanted)


_WAYS = ("over HTTP to Triton", "over gRPC to Triton", "over HTTP to the gateway",
         "over gRPC to the gateway")  # fmt: skip


def _ways(
    card: ModelCard, replica: Replica, gateway: Gateway, seed: int
) -> Iterator[Iterator[tuple[str, str]]]:
    """Yield kinds and verdicts without end, for each of the four ways."""
    many = 1_000_000
    yield over_http(replica.http, http_cases(card, many, seed))
    yield over_grpc(replica.grpc, grpc_cases(card, many, seed))
    yield over_http(gateway.http_url, http_cases(card, many, seed + 1, f"X-API-Key: {gateway.key}"))
    yield over_grpc(gateway.grpc_url, grpc_cases(card, many, seed + 1), gateway.key)


def _warm_up(lab: DrillEnvironment, replica: Replica, gateway: Gateway, card: ModelCard) -> None:
    """Let memory grow to what work needs, in each of the server's threads, on each of the ways."""
    batch = max(1, card.max_batch_size)
    with Load(lab.target(replica.http, batch=batch), LoadProfile(4, seconds=2)) as load:
        load.finish()
    total = WARM_UP // 10 if lab.short else WARM_UP
    for share, cases in zip(SHARES, _ways(card, replica, gateway, lab.seed + 2), strict=True):
        for _ in islice(cases, round(share * total)):
            pass


def over_http(address: str, cases: Iterable[Case]) -> Iterator[tuple[str, str]]:
    """Send HTTP cases, a connection each; yield kind and verdict."""
    for case in cases:
        answer = exchange(address, [case.request], case.complete, TIMEOUT_S)
        yield case.kind, judge(str(answer.status), answer.message, case.complete)


def over_grpc(address: str, cases: Iterable[GrpcCase], key: str = "") -> Iterator[tuple[str, str]]:
    """Send gRPC cases over one channel; yield kind and verdict."""
    metadata = [("x-api-key", key)] if key else []
    with grpc.insecure_channel(address, options=GRPC_CHANNEL_ARGS) as channel:
        for case in cases:
            try:
                channel.unary_unary(case.method)(case.message, timeout=TIMEOUT_S, metadata=metadata)
                code, words = "OK", "answered"
            except grpc.RpcError as error:
                code, words = error.code().name, error.details() or error.code().name
            yield case.kind, judge(code, words, case.kind != NO_MESSAGE)


def judge(status: str, message: str, complete: bool) -> str:
    """Return the verdict on one answer.

    Args:
        status: HTTP status, `0` without an answer; or the name of a gRPC code.
        message: The server's words.
        complete: Whether the request was whole; one that was not need not be answered.
    """
    refused = status in CLIENT_CODES or (status.isdecimal() and 400 <= int(status) < 500)
    if refused and message:
        return REFUSED
    if status == "0" and not complete:
        return CLOSED
    for words, name in KNOWN_5XX.items():
        if f"{status} {message}".startswith(words):
            return name
    return f"{UNEXPECTED}: {status} {message[:120]}"


def _outcome(
    verdicts: Counter[str],
    odd: list[str],
    rss: tuple[float, float],
    counted: Counters,
    alive: bool,
    failed_later: int,
    wanted: int,
) -> Outcome:
    total, unexpected = verdicts.total(), len(odd)
    known = {name: n for name, n in verdicts.items() if name in KNOWN_5XX.values()}
    before, after = rss
    said = ", ".join(f"{n:,} {name}" for name, n in verdicts.most_common() if name not in odd)
    return Outcome(
        done=f"{total:,} malformed requests from a seed, over HTTP and gRPC, to Triton and through "
        "the gateway; memory before is read when as many kinds of them have warmed the server up",
        client=said,
        metrics=f"nv_inference_request_failure grew by {counted.failed:,.0f} only: what is refused "
        "before it has reached a model is not counted there",
        lost="nothing; sound requests afterwards are answered",
        cause="Triton holds names, types, shapes and sizes against the model before anything runs. "
        f"{sum(known.values()):,} answers are 5xx although the client was wrong: Triton's JSON "
        "reader calls every mistake INTERNAL, and so does gRPC for bytes that are no message. "
        "Three kinds of requests are left out here, as this release does not survive them: see "
        "killer-request.",
        numbers=[
            Number("answers that nobody can explain", unexpected, at_most=0, n=total),
            Number(
                "memory afterwards against before", after / before, "×", at_most=1.1, at_least=0.5
            ),
            Number("malformed requests", total, at_least=wanted),
            *(
                Number(name, n)
                for name, n in sorted(verdicts.items())
                if name not in odd and not name.startswith(UNEXPECTED)
            ),
            Number("server alive", float(alive), at_least=1),
            Number("memory before", before, "MiB"),
            Number("sound requests that failed afterwards", failed_later, at_most=0, n=100),
        ],
        evidence={"verdicts": dict(verdicts), "unexpected": odd[:20]},
    )


DRILL = Drill("malformed", "Thousands of malformed requests", run)
