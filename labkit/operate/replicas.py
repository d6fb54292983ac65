"""Several Tritons that serve the same models: kill one, start one again, put a new version in."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from labkit.client import Unreachable, metrics
from labkit.errors import LabError
from labkit.operate.gateway import Gateway
from labkit.operate.processes import gone, until
from labkit.server import TritonServer
from labkit.server.engine import STAND_IN
from labkit.server.ports import can_listen

ENDPOINTS = ("http", "grpc", "metrics")
# Below the ports that Linux gives to outgoing connections (32768 and above): the port of a replica
# that is down must still be free when it comes back.
FIRST_PORT, LAST_PORT = 20_000, 32_000
# Whatever LABKIT_RUNTIME says: drills kill a model's own process and fill the shared memory between
# it and the server, and only a stand-in has either.
RUNTIME = STAND_IN
KILL_TIMEOUT_S = 10.0
METRICS_LIMIT_S = 10.0


class ReplicaError(LabError):
    """A replica that does not exist, or that cannot do what is asked of it now."""


def lasting_ports(count: int) -> list[int]:
    """Return free loopback ports that no outgoing connection takes while nobody listens.

    Raises:
        ReplicaError: there are not enough.
    """
    order = np.random.default_rng(os.getpid()).permutation(np.arange(FIRST_PORT, LAST_PORT))
    free: list[int] = []
    for port in map(int, order):
        if len(free) == count:
            return free
        if can_listen(port) and port not in free:
            free.append(port)
    raise ReplicaError(
        f"got {len(free)} free ports of {count} between {FIRST_PORT} and {LAST_PORT}"
    )


@dataclass
class Replica:
    """One Triton with a name; its addresses stay when it is started again.

    Attributes:
        name: Such as `one`.
        repository: The models that it serves from its next start on.
        log_path: File of its log; a start overwrites it.
        extra_args: Further flags of tritonserver.
        exit_timeout_s: How long a stop waits for open connections, in seconds.
    """

    name: str
    repository: Path
    log_path: Path
    extra_args: Sequence[str] = ()
    exit_timeout_s: int = 3
    ports: dict[str, int] = field(default_factory=dict)
    _server: TritonServer | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Choose ports that it keeps."""
        self.ports = self.ports or dict(zip(ENDPOINTS, lasting_ports(len(ENDPOINTS)), strict=True))

    @property
    def http(self) -> str:
        """Address of the HTTP endpoint, `127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        """Address of the gRPC endpoint."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def metrics(self) -> str:
        """Address of the metrics endpoint."""
        return f"127.0.0.1:{self.ports['metrics']}"

    @property
    def pid(self) -> int:
        """Process id of tritonserver.

        Raises:
            ReplicaError: it does not run.
        """
        if self._server is None or self._server.pid is None or not self.running:
            raise ReplicaError(f"replica {self.name} does not run: start it first")
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether tritonserver is alive."""
        if self._server is None or self._server.pid is None or not self._server.running:
            return False
        return not gone(self._server.pid, 0)

    def start(self) -> None:
        """Start it and wait until every model is ready, and its metrics are there."""
        self.stop()
        self._server = TritonServer(
            self.repository,
            http_port=self.ports["http"],
            grpc_port=self.ports["grpc"],
            metrics_port=self.ports["metrics"],
            extra_args=self.extra_args,
            log_path=self.log_path,
            runtime=RUNTIME,
            exit_timeout_s=self.exit_timeout_s,
        )
        self._server.start()
        until(self._has_metrics, METRICS_LIMIT_S)  # Triton opens this port last

    def _has_metrics(self) -> bool:
        try:
            return bool(metrics(self.metrics))
        except Unreachable:
            return False

    def stop(self) -> None:
        """End it in order: what is in flight is answered, as far as the exit timeout allows."""
        if self._server is not None:
            self._server.stop()

    def kill(self) -> None:
        """Kill it with SIGKILL, as the kernel does when memory runs out; wait until it is gone."""
        pid = self.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not gone(pid, KILL_TIMEOUT_S):
            raise ReplicaError(f"replica {self.name} (process {pid}) outlived SIGKILL")
        self.stop()  # its supervisor clears away the rest


class Replicas:
    """Replicas with names, started together; a context manager that leaves nothing running.

    Args:
        repository: The models that all of them serve.
        names: A replica for each.
        folder: For their logs.
        extra_args: Further flags of tritonserver.
        exit_timeout_s: How long a stop waits for open connections, in seconds.
    """

    def __init__(
        self,
        repository: Path,
        names: Sequence[str],
        folder: Path,
        extra_args: Sequence[str] = (),
        exit_timeout_s: int = 3,
    ) -> None:
        ports = iter(lasting_ports(len(ENDPOINTS) * len(names)))
        self._all = {
            name: Replica(
                name,
                repository,
                folder / f"triton_{name}.log",
                extra_args,
                exit_timeout_s,
                {endpoint: next(ports) for endpoint in ENDPOINTS},
            )
            for name in names
        }

    def __enter__(self) -> Self:
        try:
            for replica in self:
                replica.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all.values())

    def __getitem__(self, name: str) -> Replica:
        if name not in self._all:
            raise ReplicaError(f"got replica {name!r}, expected one of {', '.join(self._all)}")
        return self._all[name]

    def stop(self) -> None:
        """Stop all of them."""
        for replica in self:
            replica.stop()


def renew(
    replicas: Replicas,
    replica: Replica,
    gateway: Gateway,
    repository: Path | None = None,
    leaving: Callable[[Replica], None] = lambda replica: None,
) -> None:
    """Take a replica out of the gateway, start it again, and put it back: one step of an update.

    Args:
        replicas: All that stand behind the gateway.
        replica: The one to start again.
        gateway: Running.
        repository: What it serves from now on; None for what it served.
        leaving: Called when it gets no more requests, before it ends.
    """
    gateway.reload(*_addresses(other for other in replicas if other is not replica))
    leaving(replica)
    replica.stop()
    replica.repository = repository or replica.repository
    replica.start()
    gateway.reload(*_addresses(replicas))


def _addresses(replicas: Iterable[Replica]) -> tuple[list[str], list[str]]:
    """Return the HTTP and the gRPC addresses."""
    chosen = list(replicas)
    return [replica.http for replica in chosen], [replica.grpc for replica in chosen]
