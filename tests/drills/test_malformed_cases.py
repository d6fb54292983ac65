"""The generators: the same for the same seed, every kind there, each request truly malformed."""

import json
import re

import pytest
from adversarial import killer_request, malformed_grpc, malformed_http
from adversarial.malformed import CLOSED, KNOWN_5XX, REFUSED, UNEXPECTED, judge
from adversarial.malformed_grpc import NO_MESSAGE, NO_METHOD, grpc_cases
from adversarial.malformed_http import Subject, http_cases
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from labkit.client import ModelCard, TensorInfo

CARD = ModelCard(
    "net",
    (TensorInfo("input", "FP32", (-1, 3, 4, 4)),),
    (TensorInfo("logits", "FP32", (-1, 10)),),
    8,
)
COUNT = 2_200


def body_of(request: bytes) -> bytes:
    return request.split(b"\r\n\r\n", 1)[1]


def test_the_same_seed_makes_the_same_requests() -> None:
    assert list(http_cases(CARD, 200, 5)) == list(http_cases(CARD, 200, 5))
    assert list(http_cases(CARD, 200, 5)) != list(http_cases(CARD, 200, 6))
    assert list(grpc_cases(CARD, 200, 5)) == list(grpc_cases(CARD, 200, 5))
    assert list(grpc_cases(CARD, 200, 5)) != list(grpc_cases(CARD, 200, 6))


def test_every_kind_is_there_as_often_as_the_others() -> None:
    http = [case.kind for case in http_cases(CARD, 2 * len(malformed_http.KINDS))]
    assert {kind: http.count(kind) for kind in http} == dict.fromkeys(malformed_http.KINDS, 2)
    kinds = {*malformed_grpc.KINDS, NO_MESSAGE, NO_METHOD}
    assert {case.kind for case in grpc_cases(CARD, len(kinds))} == kinds


def canonical(body: bytes) -> str:
    """JSON as one text, in which true is not 1; empty for what is no JSON."""
    try:
        return json.dumps(json.loads(body), sort_keys=True)
    except (ValueError, RecursionError):
        return ""


def test_no_request_is_a_right_one() -> None:
    right = canonical(Subject(CARD).body())
    for case in http_cases(CARD, COUNT):
        plain = b"Inference-Header" not in case.request and b"Encoding" not in case.request
        if case.complete and plain and case.request.startswith(b"POST /v2/models/net/infer HTTP/"):
            assert canonical(body_of(case.request)) != right, case


def test_what_ends_the_server_is_not_among_them() -> None:
    # A huge shape beside JSON numbers, a gzip stream that is cut, a body in very many chunks.
    for case in http_cases(CARD, COUNT):
        if b'"data"' in case.request:
            for shape in re.findall(rb'"shape": \[([-0-9, ]*)\]', case.request):
                sizes = [int(size) for size in shape.split(b",") if size.strip()]
                product = 1
                for size in sizes:
                    product *= max(1, abs(size))
                assert product < 2**22 or max(sizes) >= 2**64, case.request[:200]
        assert body_of(case.request).count(b"\r\n") < 1_000 if b"chunked" in case.request else True
        if b"Content-Encoding: gzip" in case.request:
            assert not body_of(case.request).startswith(b"\x1f\x8b")


def test_a_header_is_sent_with_every_request_that_has_headers() -> None:
    for case in http_cases(CARD, 500, header="X-API-Key: secret"):
        if b"Host: lab\r\n" in case.request:
            assert case.request.count(b"X-API-Key: secret\r\n") == 1


def test_bytes_that_are_no_message_are_none() -> None:
    for case in grpc_cases(CARD, COUNT):
        if case.kind == NO_MESSAGE:
            with pytest.raises(DecodeError):
                pb.ModelInferRequest.FromString(case.message)
        else:
            pb.ModelInferRequest.FromString(case.message)


def test_no_message_is_the_right_one() -> None:
    right = malformed_grpc.right(Subject(CARD)).SerializeToString()
    assert all(case.message != right for case in grpc_cases(CARD, COUNT) if case.kind != NO_METHOD)


def test_killers_are_what_they_say() -> None:
    chunks = b"".join(killer_request.many_chunks(Subject(CARD)))
    assert chunks.count(b"1\r\n{\r\n") == killer_request.CHUNKS
    shape = json.loads(body_of(killer_request.huge_shape(Subject(CARD))))["inputs"][0]["shape"]
    assert max(shape) == 2**63 - 1
    assert body_of(killer_request.cut_stream(Subject(CARD))).startswith(b"\x1f\x8b")


@pytest.mark.parametrize(
    ("status", "message", "complete", "verdict"),
    [
        ("400", "unexpected shape", True, REFUSED),
        ("404", "Not Found", True, REFUSED),
        ("INVALID_ARGUMENT", "no", True, REFUSED),
        ("400", "", True, f"{UNEXPECTED}: 400 "),
        ("0", "RemoteDisconnected", False, CLOSED),
        ("0", "RemoteDisconnected", True, f"{UNEXPECTED}: 0 RemoteDisconnected"),
        ("200", "fine", True, f"{UNEXPECTED}: 200 fine"),
        ("500", "failed to parse the request JSON buffer: x", True, "500 for JSON that is none"),
        ("500", "something else", True, f"{UNEXPECTED}: 500 something else"),
        ("OK", "answered", True, f"{UNEXPECTED}: OK answered"),
        ("UNAVAILABLE", "gone", True, f"{UNEXPECTED}: UNAVAILABLE gone"),
    ],
)
def test_verdicts(status: str, message: str, complete: bool, verdict: str) -> None:
    assert judge(status, message, complete) == verdict


def test_known_answers_are_of_the_server_s_kind() -> None:
    assert all(re.match(r"5\d\d |INTERNAL ", words) for words in KNOWN_5XX)
