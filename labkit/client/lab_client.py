"""The client: one object per server, protocol and thread."""

from __future__ import annotations

import http.client
import os
import re
import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn, Self, overload

import numpy as np
import rapidjson  # the JSON library of tritonclient.http
from tritonclient.utils import InferenceServerException

from labkit.client.errors import (
    ERROR_OF_STATUS,
    ClientError,
    NotFound,
    Timeout,
    Unreachable,
)
from labkit.client.metrics_page import PORTS, host_and_port, reason
from labkit.client.tensors import Arrays, ModelCard, check_inputs, check_range, join, named, split
from labkit.client.transport import GrpcTransport, HttpTransport

Protocol = Literal["http", "grpc"]
CHUNK_WITHOUT_LIMIT = 64  # images per request where the model's config sets no max_batch_size
_NO_CONNECTION = re.compile(
    r"failed to connect|connection refused|socket closed|connection reset|dns resolution", re.I
)


class Prediction(NamedTuple):
    """One line of the classification extension's answer."""

    label: str
    score: float


class ModelState(NamedTuple):
    """One line of the server's repository index."""

    name: str
    version: str
    state: str
    reason: str


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
        transport = HttpTransport if protocol == "http" else GrpcTransport
        self._transport: HttpTransport | GrpcTransport = transport(self.url, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
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
        arrays = named(card, inputs)
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
        joined = join(answers)
        return joined if isinstance(inputs, Mapping) else joined[outputs[0]]

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
            raise Unreachable(self._unreachable_text(reason(error))) from error

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
