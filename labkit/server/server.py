"""Start, watch and stop one Triton Inference Server."""

import http.client
import logging
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from labkit.repository_safety import is_model, own_repository, refuse_unsafe
from labkit.server import container, log, supervisor
from labkit.server.engine import NATIVE, STAND_IN, two_onnxruntimes
from labkit.server.errors import ModelLoadError, ServerError, TritonNotFound
from labkit.server.fetch import unsupported
from labkit.server.find import require_triton
from labkit.server.job import Job, container_job, local_job
from labkit.server.launch import Supervised, keep_log
from labkit.server.native.built import built_backends
from labkit.server.ports import LOOPBACK, choose_ports, port_in_use
from labkit.server.refused import refused_here
from labkit.server.run_folder import make_run_folder, remove_abandoned
from labkit.workspace import LAB_WORKSPACE, project_root

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", NATIVE, STAND_IN, "container")
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
        log_path: File for the server's log; None for one in the logs of the run whose models are
            served, else in the temporary folder, which stays only after a failure.
        runtime: What computes: `native` backends built on this machine, `stand-in` backends in
            Python, or the official `container`. `auto` takes native ones where they are built
            with the environment's own ONNX Runtime, the container where the server cannot run,
            else the stand-ins; the environment variable LABKIT_RUNTIME chooses in its place.
        config_name: Prefer `configs/<config_name>.pbtxt` over a model's `config.pbtxt`.
        allow_python_models: Let Python code of a repository that is not the lab's own run: with
            all rights of the user who starts the server.
        exit_timeout_s: How long a stop waits for open connections and in-flight requests. An HTTP
            connection that a client keeps open uses all of it up, and the log ends with "Exit
            timeout expired": end a client's session before the server.
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
    allow_python_models: bool = False
    exit_timeout_s: int = 3
    start_timeout_s: float = 120.0
    _supervised: Supervised | None = field(default=None, init=False, repr=False)
    _run_folder: Path | None = field(default=None, init=False, repr=False)
    _ports: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _log_is_ours: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.runtime = choose_runtime(self.runtime)
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
        return self._supervised is not None and self._supervised.running

    @property
    def pid(self) -> int | None:
        """Process id of the server; None before the start and after the stop."""
        return self._supervised.pid if self._supervised else None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
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
        self._refuse_foreign_code(folders)
        remove_abandoned()
        wanted = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        for attempt in range(1, ATTEMPTS + 1):
            self._ports = choose_ports(wanted)
            try:
                self._launch(folders)
                self._wait_until_ready([folder.name for folder in folders])
            except _LostPort:
                self.stop()
                if any(wanted.values()) or attempt == ATTEMPTS:
                    raise port_in_use(self._ports) from None
            except BaseException:
                if self._run_folder is not None:
                    keep_log(self._run_folder)  # the message names it
                self.stop()
                raise
            else:
                break
        logger.info("Triton serves %d models at %s (HTTP)", len(folders), self.http)
        return self

    def stop(self) -> None:
        """Stop the server, and wait until no process and no file of it is left."""
        supervised, self._supervised = self._supervised, None
        if supervised is not None:
            supervised.end(self.exit_timeout_s + STOP_MARGIN_S)

    def wait(self) -> None:
        """Block while the server runs.

        Raises:
            ServerError: The server ended without having been asked to.
        """
        supervised = self._supervised
        if supervised is None:
            return
        status = supervised.process.wait()
        if self._supervised is not None:
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
        present = {path.name: path for path in sorted(repository.iterdir()) if is_model(path)}
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
        return [present[name] for name in chosen]

    def _refuse_foreign_code(self, folders: list[Path]) -> None:
        """Refuse what would run code of the repository's author, whatever serves it."""
        allowed = self.allow_python_models or own_repository(Path(self.repository))
        _refuse(refuse_unsafe(folders, allowed))

    def _refuse_what_cannot_be_served(self, folders: list[Path]) -> None:
        """Refuse what would end the server, or garble strings."""
        found = refused_here(folders, self.runtime)
        _refuse({model: f"{what} → {fix}" for model, (what, fix) in found.items()})

    def _launch(self, folders: list[Path]) -> None:
        """Start the supervisor, which starts the server."""
        run_folder, lock_fd = make_run_folder()
        self._run_folder = run_folder
        if self.log_path is None:
            self._log_is_ours = True
            self.log_path = self._log_folder() / f"{run_folder.name}.log"
        self.log_path = Path(self.log_path).absolute()
        try:
            job = self._job(run_folder, folders)
        except BaseException:
            supervisor.remove_files(run_folder)
            os.close(lock_fd)
            raise
        self._supervised = Supervised(
            job,
            (run_folder, lock_fd),
            self.log_path,
            self.exit_timeout_s + STOP_MARGIN_S / 2,
            self._log_is_ours,
        )
        if self.pid is None:
            raise ServerError(f"Triton could not be started; see {self.log_path}")

    def _log_folder(self) -> Path:
        """Return where a log that nobody asked for belongs: beside the models of a run."""
        repository = Path(self.repository)
        root = project_root()
        run = root / LAB_WORKSPACE if repository == root / "model_repository" else repository.parent
        folder = run / "logs"
        return folder if folder.is_dir() else Path(tempfile.gettempdir())

    def _job(self, run_folder: Path, folders: list[Path]) -> Job:
        """Describe what is to run."""
        if self.runtime == "container":
            return container_job(run_folder, folders, self._ports, self._flags())
        binary, native = require_triton(), self.runtime == NATIVE
        if native and binary.native is None:
            raise TritonNotFound(
                "runtime='native' needs Triton's own backends, built for this environment's "
                "libraries: run `labkit triton build` (needs g++), or use runtime='stand-in'"
            )
        self._refuse_what_cannot_be_served(folders)
        return local_job(binary, native, run_folder, folders, self._ports, self._flags())

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
        assert self._supervised is not None
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            status = self._supervised.process.poll()
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


def _refuse(problems: dict[str, str]) -> None:
    """Raise where a model has a problem for which the server is not even started."""
    if problems:
        told = "\n".join(f"  {model}: {problem}" for model, problem in problems.items())
        raise ModelLoadError(f"the server was not started:\n{told}", problems)


class _LostPort(Exception):
    """Another process took a port between its choice and Triton's start."""


def choose_runtime(wanted: str = "auto") -> str:
    """Return the runtime that serves on this machine: `native`, `stand-in` or `container`.

    Args:
        wanted: One of these, or `auto`, in whose place LABKIT_RUNTIME in the environment chooses.

    Raises:
        ServerError: It is none of them.
    """
    chosen, where = wanted, "runtime"
    if wanted == "auto" and (named := os.environ.get("LABKIT_RUNTIME")):
        chosen, where = named, "LABKIT_RUNTIME"
    if chosen not in RUNTIMES:
        raise ServerError(f"got {where} {chosen!r}, expected one of {RUNTIMES}")
    if chosen != "auto":
        return chosen
    if unsupported() and container.find_engine():
        return "container"
    return NATIVE if built_backends() and not two_onnxruntimes() else STAND_IN


def runtime_of(config: dict[str, Any]) -> str:
    """Say what serves a model: `native`, `stand-in`, or `python` for a model that is Python itself.

    Args:
        config: A model's configuration as the server reports it, in JSON.
    """
    if config.get("backend") == "python":
        return "python"
    return STAND_IN if config.get("runtime") == "model.py" else NATIVE
