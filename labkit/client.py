"""Ask a Triton server: numpy in, logits or labels out, over HTTP or gRPC.

One `LabClient` belongs to one thread and one process: the HTTP transport is built on gevent, whose
sockets cannot be shared. Close it (`with LabClient(...) as client:`): an exiting server waits for
open keep-alive connections.

This module needs numpy and tritonclient only; it never imports torch.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, Self, overload

import numpy as np
import rapidjson  # the JSON library of tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from labkit.errors import LabError

Protocol = Literal["http", "grpc"]
Arrays = dict[str, np.ndarray]
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}  # Triton's defaults
CHUNK_WITHOUT_LIMIT = 64  # images per request where the model's config sets no max_batch_size
GRPC_CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),  # Triton's own limit, INT32_MAX bytes
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),  # the lab's servers are on this machine
]


class ClientError(LabError):
    """A request that got no answer.

    Attributes:
        server_message: what the server said, word for word; "" when it said nothing.
        status: the HTTP status ("400") or the gRPC code ("INVALID_ARGUMENT"); "" without a reply.
    """

    def __init__(self, message: str, *, server_message: str = "", status: str = ""):
        super().__init__(message)
        self.server_message = server_message
        self.status = status


class InvalidRequest(ClientError):
    """The server refused the request: HTTP 400, gRPC INVALID_ARGUMENT."""


class BadInput(InvalidRequest):
    """The client refused the arrays before sending them."""


class NotFound(ClientError):
    """No such model or version: HTTP 404, gRPC NOT_FOUND."""


class ServerFault(ClientError):
    """The model or the server failed: HTTP 500, gRPC INTERNAL or UNKNOWN."""


class Unsupported(ClientError):
    """The server does not offer this: HTTP 501, gRPC UNIMPLEMENTED."""


class Unavailable(ClientError):
    """The server is up but would not take the request (loading, exiting, queue full): 503."""


class Unreachable(ClientError):
    """Nothing that speaks this protocol answers at this address."""


class Timeout(ClientError):
    """No answer within `timeout_s`."""


ERROR_OF_STATUS: dict[str, type[ClientError]] = {
    "400": InvalidRequest,
    "404": NotFound,
    "500": ServerFault,
    "501": Unsupported,
    "503": Unavailable,
    "499": Timeout,  # the client library's own status for an expired deadline
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": NotFound,
    "INTERNAL": ServerFault,
    "UNKNOWN": ServerFault,
    "UNIMPLEMENTED": Unsupported,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Timeout,
}
_NO_CONNECTION = re.compile(
    r"failed to connect|connection refused|socket closed|connection reset|dns resolution", re.I
)


class Guess(NamedTuple):
    """One line of the classification extension's answer."""

    label: str
    score: float


class ModelState(NamedTuple):
    """One line of the server's repository index."""

    name: str
    version: str
    state: str
    reason: str


class Sample(NamedTuple):
    """One line of the metrics page."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the model's metadata describes it; -1 in `shape` means any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelCard:
    """What the client must know of a model before it can ask: read from the server, once."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_batch_size: int  # 0: the config leaves batching to the model
    label_output: str  # the output that carries labels; the first one where none does

    @classmethod
    def parse(cls, metadata: dict[str, Any], config: dict[str, Any]) -> ModelCard:
        """Build the card from the two answers of `/v2/models/<m>` and `/v2/models/<m>/config`."""

        def tensors(kind: str) -> tuple[TensorInfo, ...]:
            return tuple(
                TensorInfo(t["name"], t["datatype"], tuple(int(d) for d in t["shape"]))
                for t in metadata.get(kind, [])
            )

        outputs = tensors("outputs")
        labelled = [o["name"] for o in config.get("output", []) if o.get("label_filename")]
        return cls(
            name=metadata["name"],
            inputs=tensors("inputs"),
            outputs=outputs,
            max_batch_size=int(config.get("max_batch_size", 0)),
            label_output=labelled[0] if labelled else outputs[0].name,
        )


class LabClient:
    """A client of one server, over HTTP or gRPC, for one thread.

    Args:
        url: `host:port` of the HTTP or the gRPC endpoint, as in `server.http` and `server.grpc`.
        protocol: "http" or "grpc"; they listen on different ports.
        timeout_s: the longest wait for an answer. gRPC counts the whole request, HTTP each wait
            on the socket.
    """

    def __init__(self, url: str, protocol: Protocol = "http", timeout_s: float = 60.0):
        if protocol not in ("http", "grpc"):
            raise ClientError(f"protocol is {protocol!r}; expected 'http' or 'grpc'")
        if not timeout_s > 0:
            raise ClientError(f"timeout_s is {timeout_s}; expected a positive number of seconds")
        self.url = host_and_port(url)
        self.protocol = protocol
        self.timeout_s = timeout_s
        self._owner = (os.getpid(), threading.get_ident())
        self._cards: dict[str, ModelCard] = {}
        self._closed = False
        transport = _HttpTransport if protocol == "http" else _GrpcTransport
        self._transport: _HttpTransport | _GrpcTransport = transport(self.url, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    # -- what is there -------------------------------------------------------------------------

    def live(self) -> bool:
        """Say whether the server process answers."""
        return bool(self._call("live"))

    def ready(self, model: str | None = None) -> bool:
        """Say whether the server, or one model of it, takes inference requests."""
        return bool(self._call("ready", model=model))

    def server(self) -> dict[str, Any]:
        """Return the server's name, version and protocol extensions."""
        return self._call("server")

    def models(self) -> list[str]:
        """Return the names of the models that are ready, sorted."""
        return sorted({m.name for m in self.index() if m.state == "READY"})

    def index(self) -> list[ModelState]:
        """Return every model the server knows of, also those that failed to load, and why."""
        return [
            ModelState(m["name"], m.get("version", ""), m.get("state", ""), m.get("reason", ""))
            for m in self._call("index")
        ]

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's tensors: names, datatypes and shapes, -1 for any size."""
        return self._call("metadata", model=model)

    def config(self, model: str) -> dict[str, Any]:
        """Return the configuration the server uses, defaults filled in."""
        return self._call("config", model=model)

    def statistics(self, model: str) -> dict[str, Any]:
        """Return the model's counters since it was loaded; durations in nanoseconds."""
        return self._call("statistics", model=model)["model_stats"][0]

    def card(self, model: str) -> ModelCard:
        """Return the model's tensors and batch limit; asked once, then remembered."""
        if model not in self._cards:
            self._cards[model] = ModelCard.parse(self.metadata(model), self.config(model))
        return self._cards[model]

    # -- inference -----------------------------------------------------------------------------

    @overload
    def infer(
        self, model: str, inputs: np.ndarray, *, binary: bool = True, check: bool = True
    ) -> np.ndarray: ...

    @overload
    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        binary: bool = True,
        check: bool = True,
    ) -> Arrays: ...

    def infer(
        self,
        model: str,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        *,
        binary: bool = True,
        check: bool = True,
    ) -> np.ndarray | Arrays:
        """Run the model on a batch of any size.

        Triton never splits a request that exceeds `max_batch_size`; this call does, and joins the
        answers. Without a limit in the config, images go 64 to a request and anything else whole.

        Args:
            model: its name in the repository.
            inputs: images, float32 (N, 3, 32, 32) in [0, 1], for a model with one input and one
                output; or {input name: array} for any model.
            binary: over HTTP, send tensors as raw bytes, or as JSON numbers. gRPC is always binary.
            check: hold names, dtypes, shapes and the range against the model's metadata first;
                False sends the arrays as they are, in one request, and lets the server judge.

        Returns:
            The first output, (N, classes) for the lab's models, when given one array; else
            {output name: array}.

        Raises:
            BadInput: the arrays do not fit, said before sending.
            ClientError: one of its kinds, with the server's own words.
        """
        card = self.card(model)
        arrays = _named(card, inputs)
        if check:
            check_inputs(card, arrays)
            if not isinstance(inputs, Mapping):
                check_range(card, inputs)
        limit = card.max_batch_size or (0 if isinstance(inputs, Mapping) else CHUNK_WITHOUT_LIMIT)
        chunks = split(arrays, limit if check else 0)
        outputs = [o.name for o in card.outputs]
        answers = [
            self._call("infer", model=model, arrays=chunk, outputs=outputs, binary=binary)
            for chunk in chunks
        ]
        joined = _join(answers)
        return joined if isinstance(inputs, Mapping) else joined[outputs[0]]

    def classify(self, model: str, images: np.ndarray, top: int = 1) -> list[list[Guess]]:
        """Return the `top` most likely labels of each image, best first.

        The server does the ranking and looks the labels up (classification extension,
        `class_count`). A model with `max_batch_size: 0` gets one image per request: there the
        server ranks over the whole flattened batch, which mixes the images up.

        Args:
            model: its name in the repository; its config should name a `label_filename`, else
                the label is the class number.
            images: float32 (N, 3, 32, 32) in [0, 1].
            top: how many labels per image, at least 1.
        """
        if top < 1:
            raise BadInput(f"top is {top}; expected at least 1 label per image")
        card = self.card(model)
        arrays = _named(card, images)
        check_inputs(card, arrays)
        check_range(card, images)
        guesses: list[list[Guess]] = []
        for chunk in split(arrays, card.max_batch_size or 1):
            answer = self._call(
                "infer", model=model, arrays=chunk, outputs=[card.label_output], class_count=top
            )[card.label_output]
            guesses += [
                [parse_guess(text) for text in row] for row in answer.reshape(-1, answer.shape[-1])
            ]
        return guesses

    # -- plumbing ------------------------------------------------------------------------------

    def _call(self, method: str, *, model: str | None = None, **kwargs: Any) -> Any:
        """Run one call of the transport and turn what it raises into this module's errors."""
        if self._closed:
            raise ClientError(f"this client of {self.url} is closed; make a new LabClient")
        if self._owner != (os.getpid(), threading.get_ident()):
            raise ClientError(
                "this client was made in another thread or process; make one LabClient in each"
            )
        try:
            return getattr(self._transport, method)(**({"model": model} if model else {}), **kwargs)
        except InferenceServerException as error:
            self._cards.pop(model or "", None)  # the model may have been reloaded with new tensors
            self._raise(error, model)
        except TimeoutError as error:
            raise Timeout(self._timeout_text(model)) from error
        except (OSError, http.client.HTTPException, rapidjson.JSONDecodeError) as error:
            raise Unreachable(self._unreachable_text(_reason(error))) from error

    def _raise(self, error: InferenceServerException, model: str | None) -> NoReturn:
        status = (error.status() or "").removeprefix("StatusCode.")
        said = str(error.message() or "").replace("[request id: <id_unknown>] ", "").strip()
        kind = ERROR_OF_STATUS.get(status, ClientError)
        if status == "UNAVAILABLE" and _NO_CONNECTION.search(said):
            raise Unreachable(self._unreachable_text(said), status=status) from error
        if kind is Timeout:
            raise Timeout(self._timeout_text(model), server_message=said, status=status) from error
        code = f"HTTP {status}" if status.isdigit() else f"gRPC {status}"
        subject = f"{model or 'the server'} at {self.url}"
        text = f"{subject} answered {code if status else 'without a status'}: {said}"
        if kind is NotFound and model:
            text += f" (served here: {self._served()})"
        raise kind(text, server_message=said, status=status) from error

    def _served(self) -> str:
        try:
            return ", ".join(self.models()) or "no model"
        except ClientError:
            return "unknown"

    def _timeout_text(self, model: str | None) -> str:
        return (
            f"no answer from {model or 'the server'} at {self.url} within {self.timeout_s:g} s; "
            "send fewer images at a time, or raise timeout_s"
        )

    def _unreachable_text(self, reason: str) -> str:
        return (
            f"no {'gRPC' if self.protocol == 'grpc' else 'HTTP'} answer at {self.url} ({reason}); "
            "expected a running Triton there: is the server up, and is this its "
            f"{self.protocol} port? (by default {PORTS['http']} is HTTP, {PORTS['grpc']} gRPC, "
            f"{PORTS['metrics']} metrics)"
        )


# -- arrays ------------------------------------------------------------------------------------


def check_inputs(card: ModelCard, arrays: Mapping[str, np.ndarray]) -> None:
    """Hold names, dtypes and shapes against the model's metadata.

    Raises:
        BadInput: one sentence: what was got, what was expected, what to do.
    """
    expected = {t.name: t for t in card.inputs}
    for name, array in arrays.items():
        if name not in expected:
            raise BadInput(f"{card.name} has no input {name!r}; its inputs: {', '.join(expected)}")
        _check_dtype(card, expected[name], array)
        _check_shape(card, expected[name], array)
    if card.max_batch_size and len({len(a) for a in arrays.values()}) > 1:
        sizes = ", ".join(f"{name}: {len(a)}" for name, a in arrays.items())
        raise BadInput(f"the inputs of {card.name} differ in batch size ({sizes})")


def _check_dtype(card: ModelCard, tensor: TensorInfo, array: np.ndarray) -> None:
    got = np_to_triton_dtype(array.dtype)
    if got == tensor.datatype:
        return
    want = np.dtype(triton_to_np_dtype(tensor.datatype)).name
    fix = f"use .astype(np.{want})"
    if array.dtype == np.uint8 and tensor.datatype == "FP32":
        fix = "pass raw pixels through labkit.data.preprocess"
    raise BadInput(
        f"input {tensor.name!r} of {card.name} takes {tensor.datatype} (numpy {want}), "
        f"got {array.dtype}; {fix}"
    )


def _check_shape(card: ModelCard, tensor: TensorInfo, array: np.ndarray) -> None:
    fits = array.ndim == len(tensor.shape) and all(
        want in (-1, got) for want, got in zip(tensor.shape, array.shape, strict=True)
    )
    if fits and array.size:
        return
    want = "(" + ", ".join("N" if d == -1 else str(d) for d in tensor.shape) + ")"
    fix = ""
    if fits:
        fix = "; there is nothing in it"
    elif array.ndim == len(tensor.shape) - 1 and array.shape == tensor.shape[1:]:
        fix = "; a single image needs a batch axis: images[None]"
    elif array.ndim == 4 and array.shape[3:] + array.shape[1:3] == tensor.shape[1:]:
        fix = "; channels come first: images.transpose(0, 3, 1, 2)"
    raise BadInput(
        f"input {tensor.name!r} of {card.name} takes shape {want}, got {array.shape}{fix}"
    )


def check_range(card: ModelCard, images: np.ndarray) -> None:
    """Hold float images against [0, 1]; the models normalize inside.

    Raises:
        BadInput: a value outside, or not a number.
    """
    if images.dtype.kind != "f" or not images.size:
        return
    low, high = float(images.min()), float(images.max())  # NaN spreads through both
    if not (low >= 0.0 and high <= 1.0):
        got = "values that are not numbers" if low != low else f"values from {low:g} to {high:g}"
        raise BadInput(
            f"{card.name} takes images in [0, 1], got {got}; "
            "use labkit.data.preprocess on raw pixels, and do not normalize: the model does"
        )


def split(arrays: Arrays, limit: int) -> Iterator[Arrays]:
    """Yield the arrays cut along axis 0 into pieces of at most `limit` rows; 0 means whole."""
    rows = len(next(iter(arrays.values()))) if arrays and limit else 0
    if rows <= limit:
        yield arrays
        return
    for start in range(0, rows, limit):
        yield {name: array[start : start + limit] for name, array in arrays.items()}


def parse_guess(text: bytes | str) -> Guess:
    """Read one `value:index:label` of the classification extension; without a label, the index."""
    line = text.decode() if isinstance(text, bytes) else text
    value, index, *label = line.split(":", 2)
    return Guess(label[0] if label else index, float(value))


def _named(card: ModelCard, inputs: np.ndarray | Mapping[str, np.ndarray]) -> Arrays:
    if isinstance(inputs, Mapping):
        if not inputs:
            raise BadInput(f"no arrays given; {card.name} takes {[t.name for t in card.inputs]}")
        return {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    if not isinstance(inputs, np.ndarray):
        raise BadInput(f"got {type(inputs).__name__}; expected a numpy array of images")
    if len(card.inputs) != 1:
        names = ", ".join(t.name for t in card.inputs)
        raise BadInput(f"{card.name} has several inputs: pass a dict with the keys {names}")
    return {card.inputs[0].name: np.ascontiguousarray(inputs)}


def _join(answers: Sequence[Arrays]) -> Arrays:
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}


def host_and_port(url: str) -> str:
    """Return `host:port` without scheme or trailing slash.

    Raises:
        ClientError: there is no port in it.
    """
    bare = re.sub(r"^(http|grpc)://", "", url.strip()).rstrip("/")
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^/:\s]+):\d{1,5}(/\S*)?", bare):
        raise ClientError(f"got the address {url!r}; expected host:port, such as 127.0.0.1:8000")
    return bare


def metrics(url: str, timeout_s: float = 10.0) -> list[Sample]:
    """Read the metrics page (Prometheus text), by default on port 8002.

    Raises:
        Unreachable: nothing answers there, or not with metrics.
    """
    address = f"http://{host_and_port(url)}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(address, timeout=timeout_s) as reply:
            page = reply.read().decode()
            families = list(text_string_to_metric_families(page))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(
            f"no metrics at {address} ({_reason(error)}); expected Triton's metrics port, "
            f"{PORTS['metrics']} by default"
        ) from error

    def shown(name: str) -> str:  # the parser adds "_total" to counters; Triton's page has none
        return name if name in page else name.removesuffix("_total")

    return [Sample(shown(s.name), dict(s.labels), s.value) for f in families for s in f.samples]


def _reason(error: Exception) -> str:
    """Say in a few words why a connection gave no answer."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return "what answers there speaks something else"


# -- transports: the two libraries behind one set of methods, raising what they raise -----------


class _HttpTransport:
    """Speak the KServe v2 protocol over HTTP."""

    def __init__(self, url: str, timeout_s: float):
        import tritonclient.http as library

        self._library = library
        self._client = library.InferenceServerClient(
            url, connection_timeout=timeout_s, network_timeout=timeout_s
        )
        self._is_triton = False

    def close(self) -> None:
        self._client.close()

    def live(self) -> bool:
        self._require_triton()
        return self._client.is_server_live()

    def ready(self, model: str | None = None) -> bool:
        self._require_triton()
        return self._client.is_model_ready(model) if model else self._client.is_server_ready()

    def _require_triton(self) -> None:
        """Ask once for metadata: Triton's metrics port says 200 to any path.

        While the server starts or exits it refuses metadata; that is an answer of Triton's too.
        """
        if not self._is_triton:
            with contextlib.suppress(InferenceServerException):
                self._client.get_server_metadata()
            self._is_triton = True

    def server(self) -> dict[str, Any]:
        return self._client.get_server_metadata()

    def index(self) -> list[dict[str, Any]]:
        return self._client.get_model_repository_index()

    def metadata(self, model: str) -> dict[str, Any]:
        return self._client.get_model_metadata(model)

    def config(self, model: str) -> dict[str, Any]:
        return self._client.get_model_config(model)

    def statistics(self, model: str) -> dict[str, Any]:
        return self._client.get_inference_statistics(model)

    def infer(
        self,
        model: str,
        arrays: Arrays,
        outputs: list[str],
        binary: bool = True,
        class_count: int = 0,
    ) -> Arrays:
        tensors = []
        for name, array in arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            tensor = self._library.InferInput(name, list(array.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(array, binary_data=binary))
        wanted = [
            self._library.InferRequestedOutput(o, binary_data=binary, class_count=class_count)
            for o in outputs
        ]
        result = self._client.infer(model, tensors, outputs=wanted)
        return {name: result.as_numpy(name) for name in outputs}


class _GrpcTransport:
    """Speak the KServe v2 protocol over gRPC."""

    def __init__(self, url: str, timeout_s: float):
        import tritonclient.grpc as library

        self._library = library
        self._wait = {"client_timeout": timeout_s}
        self._client = library.InferenceServerClient(url, channel_args=GRPC_CHANNEL_ARGS)

    def close(self) -> None:
        self._client.close()

    def live(self) -> bool:
        return self._client.is_server_live(**self._wait)

    def ready(self, model: str | None = None) -> bool:
        if model:
            return self._client.is_model_ready(model, **self._wait)
        return self._client.is_server_ready(**self._wait)

    def server(self) -> dict[str, Any]:
        return plain(self._client.get_server_metadata(**self._wait))

    def index(self) -> list[dict[str, Any]]:
        return plain(self._client.get_model_repository_index(**self._wait))["models"]

    def metadata(self, model: str) -> dict[str, Any]:
        return plain(self._client.get_model_metadata(model, **self._wait))

    def config(self, model: str) -> dict[str, Any]:
        return plain(self._client.get_model_config(model, **self._wait))["config"]

    def statistics(self, model: str) -> dict[str, Any]:
        return plain(self._client.get_inference_statistics(model, **self._wait))

    def infer(
        self,
        model: str,
        arrays: Arrays,
        outputs: list[str],
        binary: bool = True,
        class_count: int = 0,
    ) -> Arrays:
        tensors = []
        for name, array in arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            tensor = self._library.InferInput(name, list(array.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(array))
        wanted = [self._library.InferRequestedOutput(o, class_count=class_count) for o in outputs]
        result = self._client.infer(model, tensors, outputs=wanted, **self._wait)
        return {name: result.as_numpy(name) for name in outputs}


def plain(message: Any) -> dict[str, Any]:
    """Turn a protobuf message into a dict with the shape of the HTTP answer: ints stay ints."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            result[field.name] = {
                k: _plain_value(field.message_type.fields[1], v) for k, v in value.items()
            }
        elif _is_repeated(field):
            result[field.name] = [_plain_value(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            result[field.name] = _plain_value(field, value)
    return result


def _is_repeated(field: Any) -> bool:
    # protobuf 6.31 and later; the property replaces `label`, which newer releases warn about
    return (
        field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    )


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type:
        return plain(value)
    if field.enum_type:
        return field.enum_type.values_by_number[value].name
    return value
