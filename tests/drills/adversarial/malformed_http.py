"""Malformed HTTP requests from a seed: raw bytes, as no client library would ever send them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.client import ModelCard

Rng = np.random.Generator
HEADER = "Inference-Header-Content-Length"
DATATYPES = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP64", "BYTES")
NO_TYPES = ("", "fp32", "FLOAT", "TYPE_FP32", "FP31", "FP32 ", "\u0000", "FP" + "3" * 300)
NO_NAMES = ("", "Nobody", "no_input", "in put", "../input", "é", "x" * 5_000)


@dataclass(frozen=True)
class Case:
    """One malformed request.

    Attributes:
        kind: What is wrong with it, the same words for all of its kind.
        request: The bytes to send.
        complete: Whether a server may answer; an incomplete request gets none, and is closed.
    """

    kind: str
    request: bytes
    complete: bool = True


@dataclass(frozen=True)
class Subject:
    """The model that is asked, and what a right request to it looks like."""

    card: ModelCard

    @property
    def path(self) -> str:
        """Where inference is asked for."""
        return f"/v2/models/{self.card.name}/infer"

    @property
    def shape(self) -> list[int]:
        """Shape of the first input for one row."""
        return [1, *(abs(size) for size in self.card.inputs[0].shape[1:])]

    @property
    def count(self) -> int:
        """Values in one row of the first input."""
        return int(np.prod(self.shape))

    def tensor(self, **changes: Any) -> dict[str, Any]:
        """Return the first input as JSON has it; a change to None takes a key out."""
        first = self.card.inputs[0]
        tensor: dict[str, Any] = {
            "name": first.name,
            "shape": self.shape,
            "datatype": first.datatype,
            "data": [0] * self.count,
        }
        tensor |= changes
        return {key: value for key, value in tensor.items() if value is not None}

    def body(self, **changes: Any) -> bytes:
        """Return a JSON request with a changed input."""
        return json.dumps({"inputs": [self.tensor(**changes)]}).encode()


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a POST as bytes; `length` is announced instead of the body's own."""
    announced = len(body) if length is None else length
    return request("POST", path, body, f"Content-Length: {announced}", *headers)


def request(method: str, path: str, body: bytes, *headers: str) -> bytes:
    """Return a request as bytes, with just these headers and `Host`."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: lab", *headers, "", ""])
    return head.encode("utf-8", "surrogateescape") + body


def binary(subject: Subject, header: str, raw: bytes, length: str | None = None) -> bytes:
    """Return an inference request whose tensors follow its JSON as raw bytes."""
    body = header.encode()
    said = str(len(body)) if length is None else length
    return post(subject.path, body + raw, f"{HEADER}: {said}")


def binary_header(subject: Subject, size: Any) -> str:
    """Return the JSON of a request whose input follows as `size` raw bytes."""
    return json.dumps(
        {"inputs": [subject.tensor(data=None, parameters={"binary_data_size": size})]}
    )


def pick(rng: Rng, choices: Any) -> Any:
    """Return one of the choices."""
    return choices[int(rng.integers(len(choices)))]


def _syntax(subject: Subject, rng: Rng) -> bytes:
    body = subject.body()
    cut = int(rng.integers(1, len(body)))
    return post(
        subject.path,
        pick(
            rng,
            (
                body[:cut],
                body[:cut] + bytes([int(rng.integers(1, 32))]) + body[:20],
                rng.bytes(int(rng.integers(1, 2_000))),
                b"[" * int(rng.integers(1, 20_000)),
                b'{"inputs":' * int(rng.integers(1, 3_000)),
                b"{'inputs': []}",
                b"\xff\xfe" + body,
                b'{"inputs": [{"name": "\xc3\x28"}]}x',
                body + b"}",
                b'{"inputs": [NaN, Infinity]',
            ),
        ),
    )


def _empty(subject: Subject, rng: Rng) -> bytes:
    return post(
        subject.path, pick(rng, (b"", b" ", b"\n" * 20, b"null", b"{}", b"[]", b'""', b"7"))
    )


def _top_level(subject: Subject, rng: Rng) -> bytes:
    odd = pick(rng, (None, 7, "x", {}, [], [[]], [None], [7], ["x"], {"name": "input"}, [[{}]]))
    return post(subject.path, json.dumps({"inputs": odd}).encode())


def _missing_key(subject: Subject, rng: Rng) -> bytes:
    return post(
        subject.path, subject.body(**{pick(rng, ("name", "shape", "datatype", "data")): None})
    )


def _name(subject: Subject, rng: Rng) -> bytes:
    return post(subject.path, subject.body(name=pick(rng, (*NO_NAMES, 7, [], {}, True))))


def _datatype(subject: Subject, rng: Rng) -> bytes:
    return post(subject.path, subject.body(datatype=pick(rng, (*DATATYPES, *NO_TYPES, 7, [], {}))))


def _shape(subject: Subject, rng: Rng) -> bytes:
    good = subject.shape
    axis = int(rng.integers(len(good)))
    wrong = [
        [*good[:axis], good[axis] + int(rng.integers(1, 1_000)), *good[axis + 1 :]],
        [*good[:axis], -int(rng.integers(1, 10)), *good[axis + 1 :]],
        [*good[:axis], pick(rng, ("3", 1.5, None, [], {}, True)), *good[axis + 1 :]],
        good[:-1],
        [*good, 1],
        [],
        pick(rng, (7, "x", {}, 1.5)),
        [1] * int(rng.integers(10, 200)),
        [2**64, *good[1:]],
    ]
    return post(subject.path, subject.body(shape=wrong[int(rng.integers(len(wrong)))]))


def _huge_shape(subject: Subject, rng: Rng) -> bytes:
    """Only with raw bytes: with JSON numbers it ends the server, see the drill `killer-request`."""
    shape, axis = subject.shape, int(rng.integers(len(subject.shape)))
    shape[axis] = int(pick(rng, (2**31, 2**40, 2**62, 2**63 - 1)))
    size = 4 * subject.count
    tensor = subject.tensor(data=None, shape=shape, parameters={"binary_data_size": size})
    return binary(subject, json.dumps({"inputs": [tensor]}), bytes(size))


def _data(subject: Subject, rng: Rng) -> bytes:
    n = subject.count
    fewer = int(rng.integers(0, n))
    wrong = [
        [0] * fewer,
        [0] * (n + int(rng.integers(1, 100))),
        pick(rng, (7, "x", {}, True)),
        ["x"] * n,
        [{}] * n,
        [None] * n,
        [[0] * fewer, [0] * (n - fewer + 1)],
        [[[]]] * n,
        ["a" * 2_000] * 3,
    ]
    return post(subject.path, subject.body(data=wrong[int(rng.integers(len(wrong)))]))


def _outputs(subject: Subject, rng: Rng) -> bytes:
    odd = pick(
        rng,
        (
            [{"name": pick(rng, NO_NAMES)}],
            [{}],
            [7],
            7,
            [{"name": 7}],
            [{"name": subject.card.outputs[0].name, "parameters": {"classification": "many"}}],
            [{"name": subject.card.outputs[0].name, "parameters": {"binary_data": "perhaps"}}],
        ),
    )
    return post(subject.path, json.dumps({"inputs": [subject.tensor()], "outputs": odd}).encode())


def _shared_memory(subject: Subject, rng: Rng) -> bytes:
    region = {
        "shared_memory_region": pick(rng, ("nobody", "", "../x", "x" * 1_000)),
        "shared_memory_byte_size": pick(rng, (4 * subject.count, 1, 2**40)),
        "shared_memory_offset": int(rng.integers(0, 2**40)),
    }
    return post(subject.path, subject.body(data=None, parameters=region))


def _too_many_rows(subject: Subject, rng: Rng) -> bytes:
    rows = max(subject.card.max_batch_size, 1) + int(rng.integers(1, 4))
    header = json.dumps(
        {
            "inputs": [
                subject.tensor(
                    data=None,
                    shape=[rows, *subject.shape[1:]],
                    parameters={"binary_data_size": 4 * rows * subject.count},
                )
            ]
        }
    )
    return binary(subject, header, bytes(4 * rows * subject.count))


def _header_length(subject: Subject, rng: Rng) -> bytes:
    size = 4 * subject.count
    header = binary_header(subject, size)
    true = len(header)
    wrong = pick(
        rng,
        (
            str(true - int(rng.integers(1, true))),
            str(true + int(rng.integers(1, size))),
            str(true + size + int(rng.integers(1, 1_000_000))),
            str(-int(rng.integers(1, 2**40))),
            pick(rng, ("-1", "2147483648", "4294967296", str(2**63), str(2**64), "9" * 40)),
            pick(rng, ("abc", "", "0x10", "1e3", "½", "--1", "+-1", "NaN")),
        ),
    )
    return binary(subject, header, bytes(size), wrong)


def _binary_size(subject: Subject, rng: Rng) -> bytes:
    size = 4 * subject.count
    wrong = pick(
        rng,
        (
            size - int(rng.integers(1, size)),
            size + int(rng.integers(1, 10_000)),
            -int(rng.integers(1, 2**40)),
            int(pick(rng, (2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 0))),
            pick(rng, ("many", 1.5, None, [], {}, True)),
        ),
    )
    return binary(subject, binary_header(subject, wrong), bytes(size))


def _raw_size(subject: Subject, rng: Rng) -> bytes:
    size = 4 * subject.count
    wrong = int(
        pick(rng, (0, size - int(rng.integers(1, size)), size + int(rng.integers(1, size))))
    )
    return binary(subject, binary_header(subject, size), rng.bytes(wrong))


def _encoding(subject: Subject, rng: Rng) -> bytes:
    """Not what a cut gzip stream is: Triton loses memory on it, see the drill `killer-request`."""
    name, body = pick(
        rng,
        (
            ("gzip", rng.bytes(int(rng.integers(1, 500)))),
            ("gzip", subject.body()),
            ("deflate", rng.bytes(int(rng.integers(1, 500)))),
        ),
    )
    return post(subject.path, body, f"Content-Encoding: {name}")


def _method(subject: Subject, rng: Rng) -> bytes:
    method = pick(rng, ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"))
    return request(method, subject.path, b"", "Content-Length: 0")


def _path(subject: Subject, rng: Rng) -> bytes:
    name = subject.card.name
    path = pick(
        rng,
        (
            f"/v2/models/{pick(rng, ('nobody', name.upper(), name + '%00', '%2e%2e', 'é'))}/infer",
            f"/v2/models/{name}/versions/{pick(rng, ('0', '99', '-1', 'abc', '9' * 30))}/infer",
            f"/v2/models/{name}/{pick(rng, ('inferr', 'infer/infer', 'unload', 'infer/'))}",
            f"/v2/models/{name}/versions//infer",
            f"/v{int(rng.integers(3, 99))}/models/{name}/infer",
            f"/v2/models/{'x' * int(rng.integers(100, 2_000))}/infer",
            "/v2/models//infer",
            "/v2//models/infer",
            "/../../etc/passwd",
            "/",
        ),
    )
    return post(path.encode("ascii", "ignore").decode(), subject.body())


def _chunks(subject: Subject, rng: Rng) -> bytes:
    chunk = pick(
        rng,
        (
            b"zz\r\n{}\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
            b"5\r\n" + rng.bytes(5) + b"\r\n0\r\n\r\n",
        ),
    )
    return request("POST", subject.path, chunk, "Transfer-Encoding: chunked")


def _not_http(subject: Subject, rng: Rng) -> bytes:
    noise = rng.bytes(int(rng.integers(1, 300))).replace(b"\n", b"")
    line = pick(
        rng,
        (
            noise,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise,  # a TLS greeting
            b"PRI * HTTP/2.0\r\n\r\nSM",
            b"GET",
            b"GET /v2",
            b"POST " + subject.path.encode() + b" HTTP/9.9",
            b"POST " + subject.path.encode() + b" FTP/1.1",
            b"\x00" * 50,
        ),
    )
    return line + b"\r\n\r\n"


def _headers(subject: Subject, rng: Rng) -> bytes:
    header = pick(
        rng,
        (
            "no colon in this line",
            ": no name",
            "Content-Length: abc",
            "Content-Length: -5",
            f"Content-Length: {2**64}",
            "X-Long: " + "x" * int(rng.integers(10_000, 70_000)),
        ),
    )
    return request("POST", subject.path, b"", header)


def _broken_off(subject: Subject, rng: Rng) -> bytes:
    body = subject.body()
    return post(subject.path, body, length=len(body) + int(rng.integers(1, 100_000)))


Maker = Callable[[Subject, Rng], bytes]
KINDS: dict[str, Maker] = {
    "JSON: syntax": _syntax,
    "JSON: nothing in it": _empty,
    "JSON: inputs of a wrong kind": _top_level,
    "JSON: a key is missing": _missing_key,
    "input name": _name,
    "data type": _datatype,
    "shape": _shape,
    "shape: huge": _huge_shape,
    "data": _data,
    "outputs": _outputs,
    "shared memory that nobody registered": _shared_memory,
    "more rows than max_batch_size": _too_many_rows,
    "Inference-Header-Content-Length": _header_length,
    "binary_data_size": _binary_size,
    "raw bytes: too few or too many": _raw_size,
    "Content-Encoding": _encoding,
    "method": _method,
    "path": _path,
    "chunked transfer": _chunks,
    "not HTTP": _not_http,
    "HTTP headers": _headers,
    "broken off": _broken_off,
}
INCOMPLETE = frozenset({"chunked transfer", "not HTTP", "HTTP headers", "broken off"})


def http_cases(card: ModelCard, count: int, seed: int = 0, header: str = "") -> Iterator[Case]:
    """Yield malformed requests, all kinds in turn, the same ones for the same seed.

    Args:
        card: Of the model that is asked.
        count: How many.
        seed: Any number.
        header: A further header line of every request, such as `X-API-Key: …`.
    """
    rng, subject = np.random.default_rng(seed), Subject(card)
    extra = f"Host: lab\r\n{header}\r\n" if header else "Host: lab\r\n"
    kinds = list(KINDS.items())
    for index in range(count):
        kind, make = kinds[index % len(kinds)]
        made = make(subject, rng).replace(b"Host: lab\r\n", extra.encode(), 1)
        yield Case(kind, made, kind not in INCOMPLETE)
