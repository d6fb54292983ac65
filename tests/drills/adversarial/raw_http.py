"""Send bytes over a socket as they are, and read one answer: what no client library lets one do."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class RawAnswer:
    """What came back.

    Attributes:
        status: HTTP status; 0 where no answer came.
        message: Text of its JSON `error`, or the body; the kind of error where no answer came.
    """

    status: int
    message: str


def exchange(
    address: str, pieces: Iterable[bytes], complete: bool = True, timeout_s: float = TIMEOUT_S
) -> RawAnswer:
    """Send pieces over a new connection, and read the answer.

    Args:
        address: `host:port`.
        pieces: What to send; a server may answer and close before all is sent.
        complete: Whether this is a whole request; else the sending side is closed after it.
        timeout_s: Longest wait for any step, in seconds.
    """
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    connection.sendall(piece)
                if not complete:
                    connection.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return RawAnswer(answer.status, _message(answer.read()))
    except (OSError, http.client.HTTPException) as error:
        return RawAnswer(0, type(error).__name__)


def _message(body: bytes) -> str:
    """Return the words of an error as Triton and the gateway give it."""
    text = body.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text[:200]
