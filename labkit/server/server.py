"""Start, watch and stop one Triton Inference Server."""

import contextlib
import http.client
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from labkit.server import container, log, supervisor
from labkit.server.errors import ModelLoadError, ServerError
from labkit.server.find import find_triton
from labkit.server.job import container_job, wheel_job
from labkit.server.ports import LOOPBACK, choose_ports, port_in_use
from labkit.server.run_folder import make_run_folder, remove_abandoned

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "wheel", "container")
POLL_S = 0.05
ATTEMPTS = 3  # a free port can be taken between the choice and Triton's start
STOP_MARGIN_S = 10.0  # beyond the exit timeout, before the supervisor itself is killed


@dataclass
class TritonServer:
    """A Triton Inference Server on this machine's loopback address; a context manager.

    It ends with its `with` block, and also when this process exits, is killed, or its notebook
    kernel restarts: no process and no shared-memory file stays behind.

    Attributes:
        repository: Folder of model folders.
        http_port: Port of the HTTP endpoint; None for a free one.
        grpc_port: Port of the gRPC endpoint; None for a free one.
        metrics_port: Port of the Prometheus metrics; None for a free one.
        models: Names of the models to serve; None for all in the repository.
        extra_args: Further flags of tritonserver; they win over the ones set here.
        log_path: File for the server's log; None for one in the temporary folder, which goes with
            a clean stop and stays after a failure.
        runtime: `wheel`, `container`, or `auto`: the wheel where it runs, else the container.
        config_name: Prefer `configs/<config_name>.pbtxt` over a model's `config.pbtxt`.
        exit_timeout_s: How long a stop waits for open connections and in-flight requests.
        start_timeout_s: How long all models may take to become ready.
    """

    repository: Path | str
    http_port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    models: Sequence[str] | None = None
    extra_args: Sequence[str] = ()
    log_path: Path | str | None = None
    runtime: str = "auto"
    config_name: str | None = None
    exit_timeout_s: int = 3
    start_timeout_s: float = 120.0
    pid: int | None = field(default=None, init=False)
    _supervisor: "subprocess.Popen[str] | None" = field(default=None, init=False, repr=False)
    _owner_pid: int | None = field(default=None, init=False, repr=False)
    _run_folder: Path | None = field(default=None, init=False, repr=False)
    _ports: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _log_is_ours: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ServerError(f"got runtime {self.runtime!r}, expected one of {RUNTIMES}")
        if self.runtime == "auto":
            binary = find_triton()
            usable = binary is not None and binary.problem is None
            self.runtime = "wheel" if usable or container.find_engine() is None else "container"
        if isinstance(self.models, str):
            raise ServerError(f"got models={self.models!r}, expected a list: [{self.models!r}]")
        self.repository = Path(self.repository).absolute()

    @property
    def http(self) -> str:
        """Address of the HTTP endpoint, `127.0.0.1:PORT`."""
        return self._address("http")

    @property
    def grpc(self) -> str:
        """Address of the gRPC endpoint, `127.0.0.1:PORT`."""
        return self._address("grpc")

    @property
    def metrics(self) -> str:
        """Address of the metrics endpoint, `127.0.0.1:PORT`; the page is `/metrics`."""
        return self._address("metrics")

    @property
    def running(self) -> bool:
        """Whether the server's processes are alive."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server and wait until it and every model are ready.

        Raises:
            TritonNotFound: Neither the wheel nor a container engine is there.
            PortInUse: A given port is held; the message names the process.
            ModelLoadError: A model cannot be loaded; the message shows its log lines.
            ServerError: The server ended, or was not ready in time.
        """
        if self.running:
            raise ServerError(f"this server already runs, at {self.http}: stop it first")
        folders = self._model_folders()
        remove_abandoned()
        wanted = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        for attempt in range(1, ATTEMPTS + 1):
            self._ports = choose_ports(wanted)
            try:
                self._launch(folders)
                self._wait_until_ready([folder.name for folder in folders])
            except _LostPort:
                self._end()
                if any(wanted.values()) or attempt == ATTEMPTS:
                    raise port_in_use(self._ports) from None
            except BaseException:
                self._end()  # keeps the log, which the message names
                raise
            else:
                break
        logger.info("Triton serves %d models at %s (HTTP)", len(folders), self.http)
        return self

    def stop(self) -> None:
        """Stop the server, and wait until no process and no file of it is left."""
        if self._end() and self._log_is_ours:
            Path(str(self.log_path)).unlink(missing_ok=True)

    def _end(self) -> bool:
        """End the server's processes; return whether they ran until now, and ended as asked."""
        process, self._supervisor = self._supervisor, None
        forked = os.getpid() != self._owner_pid  # a child's copy of this object
        if process is None or forked:
            return False
        clean = process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(self.exit_timeout_s + STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            logger.warning("Triton did not stop in time; killing it")
            clean = False
            process.kill()  # the server dies with its supervisor
            process.wait()
            if self._run_folder is not None:
                supervisor.remove_files(self._run_folder)
        self.pid = None
        return clean

    def wait(self) -> None:
        """Block while the server runs.

        Raises:
            ServerError: The server ended without having been asked to.
        """
        process = self._supervisor
        if process is None:
            return
        status = process.wait()
        if self._supervisor is not None:
            raise ServerError(self._describe_end(status))

    def _address(self, endpoint: str) -> str:
        if endpoint not in self._ports:
            raise ServerError("the server is not started: use `with TritonServer(…) as server:`")
        return f"{LOOPBACK}:{self._ports[endpoint]}"

    def _model_folders(self) -> list[Path]:
        """Return the folders of the models to serve."""
        repository = Path(self.repository)
        if not repository.is_dir():
            raise ServerError(f"got model repository {repository}, which is not a folder")
        present = {path.name: path for path in sorted(repository.iterdir()) if _is_model(path)}
        if not present:
            raise ServerError(
                f"{repository} holds no model folder; expected <model>/config.pbtxt and "
                "<model>/1/<model file>: run notebook 05_configure first"
            )
        chosen = list(dict.fromkeys(present if self.models is None else self.models))
        unknown = [name for name in chosen if name not in present]
        if unknown:
            raise ServerError(
                f"{repository} has no model {', '.join(unknown)}; it has {', '.join(present)}"
            )
        for name in chosen:
            if shlex.quote(name) != name:
                raise ServerError(
                    f"got model name {name!r}, expected letters, digits, '_', '-' and '.' only: "
                    "Triton passes it to a shell without quotes"
                )
        return [present[name] for name in chosen]

    def _launch(self, folders: list[Path]) -> None:
        """Start the supervisor, which starts the server."""
        run_folder, lock_fd = make_run_folder()
        self._run_folder = run_folder
        if self.log_path is None:
            self._log_is_ours = True
            self.log_path = Path(tempfile.gettempdir()) / f"{run_folder.name}.log"
        self.log_path = Path(self.log_path).absolute()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path.write_bytes(b"")
        try:
            describe = container_job if self.runtime == "container" else wheel_job
            job = describe(run_folder, folders, self._ports, self._flags()) | {
                "run_folder": str(run_folder),
                "lock_fd": lock_fd,
                "log_path": str(self.log_path),
                "grace_s": self.exit_timeout_s + STOP_MARGIN_S / 2,
                "parent_pid": os.getpid(),
            }
            process = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[lock_fd],
                start_new_session=True,  # a terminal's Ctrl-C reaches only this process
            )
        except BaseException:
            supervisor.remove_files(run_folder)
            raise
        finally:
            os.close(lock_fd)
        self._supervisor, self._owner_pid = process, os.getpid()
        weakref.finalize(self, _terminate, process, os.getpid())  # also at interpreter exit
        assert process.stdout is not None
        with process.stdout as output:
            first_line = output.readline().strip()
        if not first_line.isdecimal():
            raise ServerError(f"Triton could not be started; see {self.log_path}")
        self.pid = int(first_line)

    def _flags(self) -> list[str]:
        flags = [
            "--model-control-mode=none",
            "--strict-readiness=true",
            f"--exit-timeout-secs={self.exit_timeout_s}",
        ]
        if self.config_name:
            flags.append(f"--model-config-name={self.config_name}")
        return [*flags, *self.extra_args]

    def _wait_until_ready(self, models: list[str]) -> None:
        assert self._supervisor is not None
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            status = self._supervisor.poll()
            if status is not None:
                raise self._failed_start(status)
            if self._answers("/v2/health/ready"):
                waiting = [name for name in models if not self._answers(f"/v2/models/{name}/ready")]
                if not waiting:
                    return
            if time.monotonic() > deadline:
                raise self._failed_start(None)
            time.sleep(POLL_S)

    def _answers(self, path: str) -> bool:
        """Say whether a GET of this path returns 200."""
        connection = http.client.HTTPConnection(LOOPBACK, self._ports["http"], timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _failed_start(self, status: int | None) -> Exception:
        """Return the error that explains a start that did not succeed."""
        text = log.read(Path(str(self.log_path)))
        # The student knows the repository, not the links to it.
        text = text.replace(f"{self._run_folder}/models", str(self.repository))
        failures = log.failed_models(text)
        if failures:
            details = "\n".join(f"  {model}: {why}" for model, why in failures.items())
            return ModelLoadError(
                f"Triton could not load {', '.join(failures)}:\n{details}\n"
                f"Mend the model's config.pbtxt or file; `labkit check` may say more. "
                f"Whole log: {self.log_path}",
                failures,
            )
        if status is not None and log.lost_a_port(text):
            return _LostPort()
        if status is not None:
            return ServerError(self._describe_end(status))
        return ServerError(
            f"Triton was not ready after {self.start_timeout_s:g} s; its last words:\n"
            f"{log.tail(Path(str(self.log_path)))}\nWhole log: {self.log_path}"
        )

    def _describe_end(self, status: int) -> str:
        how = f"was ended by {signal.Signals(status - 128).name}" if status > 128 else "ended"
        return (
            f"Triton {how} (status {status}); its last words:\n"
            f"{log.tail(Path(str(self.log_path)))}\nWhole log: {self.log_path}"
        )


class _LostPort(Exception):
    """Another process took a port between its choice and Triton's start."""


def runtime_of(config: dict[str, Any]) -> str:
    """Say what serves a model: `stand-in` for labkit's Python backends, else `native`.

    Args:
        config: A model's configuration as the server reports it, in JSON.
    """
    return "stand-in" if config.get("runtime") == "model.py" else "native"


def _is_model(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _terminate(process: "subprocess.Popen[str]", owner_pid: int) -> None:
    if os.getpid() == owner_pid and process.poll() is None:
        process.terminate()
