"""The gateway of docker/gateway on this machine: a real nginx in front of several Tritons."""

import contextlib
import http.client
import logging
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from labkit.errors import LabError
from labkit.operate.nginx_config import (
    KEY,
    write_limits,
    write_listeners,
    write_place,
    write_upstreams,
)
from labkit.operate.programs import Program, ProgramError, find_program
from labkit.server.ports import LOOPBACK, choose_ports
from labkit.workspace import project_root

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # a free port can be taken between the choice and nginx's start
RELOAD_LIMIT_S = 10.0
DEFAULT_NAME = "lab"


class GatewayError(LabError):
    """The gateway was given something it cannot work with."""


@dataclass
class Gateway:
    """nginx with the rules of docker/gateway/nginx.conf, on this machine's loopback address.

    It ends with its `with` block, and also when this process exits or is killed.

    Attributes:
        http: `host:port` of each replica's HTTP endpoint.
        grpc: `host:port` of each replica's gRPC endpoint.
        folder: For configuration, logs and temporary files; made when missing, kept at the end. A
            start begins the logs anew.
        keys: Name → API key; one random key, named `lab`, when empty.
        settings: Other values for the numbers of site/limits.conf, such as `{"body_cap": "1m"}`.
            Names: see `labkit.operate.nginx_config.SETTINGS`.
        http_port: Port for HTTP; None for a free one.
        grpc_port: Port for gRPC; None for a free one.
    """

    http: Sequence[str]
    grpc: Sequence[str]
    folder: Path
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    http_port: int | None = None
    grpc_port: int | None = None
    _ports: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _program: Program | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder).absolute()
        self.keys = dict(self.keys) or {DEFAULT_NAME: secrets.token_hex(32)}
        for name, key in self.keys.items():
            if not KEY.fullmatch(key) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise GatewayError(
                    f"got a key for {name!r} that nginx cannot hold: expected 8 to 200 letters, "
                    "digits, - and _ in the key, and at least one of these in the name"
                )

    @property
    def http_url(self) -> str:
        """Address of the HTTP side, `127.0.0.1:PORT`."""
        return self._address("http")

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC side, `127.0.0.1:PORT`."""
        return self._address("grpc")

    @property
    def key(self) -> str:
        """The first API key, for the header X-API-Key (gRPC: metadata x-api-key)."""
        return next(iter(self.keys.values()))

    @property
    def access_log(self) -> Path:
        """One JSON object a line for each request."""
        return self.folder / "logs" / "access.log"

    @property
    def error_log(self) -> Path:
        """What nginx says about itself and the replicas."""
        return self.folder / "logs" / "error.log"

    @property
    def pid(self) -> int | None:
        """Process id of nginx's master; None when it does not run."""
        return self._program.pid if self._program is not None else None

    @property
    def running(self) -> bool:
        """Whether nginx is alive."""
        return self._program is not None and self._program.running

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Write the site, start nginx and wait until it listens.

        Raises:
            MissingProgram: nginx is not installed.
            GatewayError: An address or a setting is not one.
            PortInUse: A given port is held; the message names the process.
            ProgramError: nginx ended, or did not listen in time.
        """
        nginx = find_program("nginx")
        self._write_site(_version(nginx))
        wanted = {"http": self.http_port, "grpc": self.grpc_port}
        for attempt in range(1, ATTEMPTS + 1):
            self._ports = choose_ports(wanted)
            write_listeners(self.folder / "site", self._ports)
            self._program = Program(
                "nginx",
                [nginx, "-p", f"{self.folder}/", "-c", self.folder / "nginx.conf",
                 "-e", "logs/error.log"],
                self.folder / "logs" / "nginx.log",
                self._listens,
                stop_signal=signal.SIGQUIT,  # finish the requests under way, then end
            )  # fmt: skip
            try:
                self._program.start()
            except ProgramError as error:
                taken = "Address already in use" in self._words()
                if taken and attempt < ATTEMPTS and not any(wanted.values()):
                    continue
                raise ProgramError(f"{error}\n{self._words()}") from None
            break
        logger.info("the gateway listens at %s (HTTP) and %s (gRPC)", self.http_url, self.grpc_url)
        return self

    def stop(self) -> None:
        """Let nginx finish the requests under way, and end it."""
        if self._program is not None:
            self._program.stop()

    def reload(self, http: Sequence[str], grpc: Sequence[str]) -> None:
        """Put other replicas behind the gateway; requests under way end where they are.

        No call is lost with nginx 1.27.4 or newer, nor over gRPC. An older one closes the idle
        connections of HTTP clients at once: one in some hundred calls of a busy client finds its
        connection closed and must be sent again.

        Args:
            http: `host:port` of each replica's HTTP endpoint.
            grpc: `host:port` of each replica's gRPC endpoint.

        Raises:
            GatewayError: An address is not one; the gateway goes on as it was.
            ProgramError: The gateway does not run, or did not take the new replicas.
        """
        if self._program is None or not self._program.running:
            raise ProgramError("the gateway does not run: use `with Gateway(…) as gateway:`")
        write_upstreams(self.folder / "site", http, grpc, self.settings)
        self.http, self.grpc = http, grpc
        before = self._workers()
        self._program.send(signal.SIGHUP)
        # For a moment old and new workers take requests side by side.
        self._program.wait_for(
            lambda: bool(self._workers() - before) and not self._workers() & before,
            "serving the new replicas",
            RELOAD_LIMIT_S,
        )

    def _address(self, endpoint: str) -> str:
        if endpoint not in self._ports:
            raise GatewayError("the gateway is not started: use `with Gateway(…) as gateway:`")
        return f"{LOOPBACK}:{self._ports[endpoint]}"

    def _write_site(self, version: tuple[int, ...]) -> None:
        """Write the rules, which are docker/gateway's own, and the files of this place."""
        source = project_root() / "docker" / "gateway"
        if not (source / "nginx.conf").is_file():
            raise GatewayError(f"got no {source}/nginx.conf, expected the lab's checkout there")
        site = self.folder / "site"
        for folder in (site, self.folder / "logs", self.folder / "temp"):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # the keys are in it
        for log in (self.access_log, self.error_log):
            log.unlink(missing_ok=True)
        shutil.copyfile(source / "nginx.conf", self.folder / "nginx.conf")
        write_place(site, self.keys, version)
        write_limits(site, source / "site" / "limits.conf", self.settings)
        write_upstreams(site, self.http, self.grpc, self.settings)

    def _listens(self) -> bool:
        """Say whether nginx answers on both ports."""
        connection = http.client.HTTPConnection(LOOPBACK, self._ports["http"], timeout=2)
        try:
            with contextlib.closing(connection):
                connection.request("GET", "/healthz")
                if connection.getresponse().status != http.client.OK:
                    return False
            with socket.create_connection((LOOPBACK, self._ports["grpc"]), timeout=2):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _workers(self) -> set[int]:
        """Return the process ids of the workers that take new requests."""
        taking = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    # nginx writes what a worker does where its command line was
                    if "shutting down" not in " ".join(process.cmdline()):
                        taking.add(process.pid)
        return taking

    def _words(self) -> str:
        """Return the end of nginx's error log."""
        if not self.error_log.is_file():
            return ""
        return "\n".join(self.error_log.read_text(errors="replace").splitlines()[-10:])


def _version(nginx: Path) -> tuple[int, ...]:
    """Return the version of an nginx, such as `(1, 28, 0)`.

    Raises:
        ProgramError: It does not say.
    """
    done = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False)
    match = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", done.stderr)
    if match is None:
        raise ProgramError(f"got {done.stderr[:200]!r} from {nginx} -v, expected its version")
    return tuple(map(int, match.groups()))
