"""Small HTTP servers in threads that stand in for Tritons, and a client that sends any bytes."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMIT_S = 20.0


@dataclass
class FakeReplica:
    """What one replica was asked, and how it is to answer."""

    server: ThreadingHTTPServer
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)  # the gateway's ports
    status: int = 200
    hang_up: bool = False  # close the connection once the request is read
    delay_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)  # answers wait until it is set
    waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def count(self) -> int:
        return len(self.asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # an answer leaves in one piece
    replica: FakeReplica

    def answer(self) -> None:
        replica = self.replica
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with replica.lock:
            replica.asked.append((self.command, self.path, headers, body))
            replica.connections.add(self.client_address[1])
            replica.waiting += 1
        replica.gate.wait(LIMIT_S)
        time.sleep(replica.delay_s)
        with replica.lock:
            replica.waiting -= 1
        if replica.hang_up:
            self.close_connection = True
            return
        content = json.dumps({"error": "as asked"} if replica.status >= 400 else {"ok": True})
        self.send_response(replica.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        pass  # the gateway may be gone by the time of the answer


@contextmanager
def fake_replicas(number: int, hosts: Sequence[str] = ()) -> Iterator[list[FakeReplica]]:
    """Start replicas: on ports of their own, or one on each host and all on the same port."""
    replicas: list[FakeReplica] = []
    for index in range(number):
        handler = type("OwnHandler", (Handler,), {})
        port = replicas[0].server.server_port if hosts and replicas else 0
        host = hosts[index] if hosts else "127.0.0.1"
        replica = FakeReplica(Server((host, port), handler))
        replica.gate.set()
        handler.replica = replica
        threading.Thread(target=replica.server.serve_forever, args=(0.02,), daemon=True).start()
        replicas.append(replica)
    try:
        yield replicas
    finally:
        for replica in replicas:
            replica.gate.set()
            replica.server.shutdown()
            replica.server.server_close()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The gateway's and Triton's way to say what is wrong."""
        assert self.headers["content-type"] == "application/json", self.headers
        message = json.loads(self.body)
        assert set(message) == {"error"}, message
        return message["error"]


def parse(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 "), data[:200]
    pairs = [line.split(":", 1) for line in lines[1:]]
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    return Answer(int(lines[0].split()[1]), headers, body)


def send(
    address: str, data: bytes, context: ssl.SSLContext | None = None, limit_s: float = LIMIT_S
) -> bytes:
    """Send bytes as they are, and return everything that comes until the other side closes."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=limit_s) as plain:
        connection = context.wrap_socket(plain, server_hostname="localhost") if context else plain
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def ask(
    address: str,
    path: str,
    *,
    method: str = "GET",
    key: str | None = None,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Ask once, on a connection of its own; the path goes out letter for letter."""
    fields = {"Host": "localhost", "Connection": "close", **(headers or {})}
    if key is not None:
        fields["X-API-Key"] = key
    if body and "Transfer-Encoding" not in fields:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items()), "", ""]
    return parse(send(address, "\r\n".join(lines).encode("latin-1") + body, context))


def eventually(condition: Callable[[], bool], found: Callable[[], object] = str) -> None:
    """Wait until a condition holds, or fail and show what is there instead."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"after {LIMIT_S:g} s: {found()}"
        time.sleep(0.02)
