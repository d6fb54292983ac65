"""The server ends with its process, whichever way that goes, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tritonclient.http as http
from tiny_models import ONE_THREAD, X, Y, save_double, write_config

from labkit.server import ModelLoadError, PortInUse, ServerError, TritonServer
from labkit.server.run_folder import remove_abandoned

SHARED_MEMORY = Path("/dev/shm")
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two models, in a folder whose name has a space."""
    root = tmp_path_factory.mktemp("life") / "model repository"
    for name in ("one", "two"):
        version = write_config(root / name, "onnxruntime", X, Y, parameters=ONE_THREAD)
        save_double(version / "model.onnx")
    tuned = root / "one" / "configs"
    tuned.mkdir()
    text = (root / "one" / "config.pbtxt").read_text().replace("count: 1", "count: 2")
    (tuned / "tuned.pbtxt").write_text(text)
    return root


@pytest.fixture(params=["stand-in", pytest.param("native", marks=pytest.mark.native)])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each runtime in turn, also for the processes that a test starts."""
    monkeypatch.setenv("LABKIT_RUNTIME", request.param)
    return request.param


@dataclass
class Started:
    """A Python process that has started a server, and everything that this brought about."""

    process: "subprocess.Popen[str]"
    pids: list[int]
    run_folder: str

    def leftovers(self) -> list[str]:
        """Name what is still there: processes, shared memory, the run folder."""
        alive = [f"pid {pid}" for pid in self.pids if _alive(pid)]
        files = [path.name for path in SHARED_MEMORY.glob(f"{self.run_folder}*")]
        folder = Path(tempfile.gettempdir()) / self.run_folder
        return alive + files + [str(folder)] * folder.exists()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


SCRIPT = """
import json, os, psutil, signal, sys
from labkit.server import TritonServer

server = TritonServer({repository!r}, models=["one"], log_path={log!r})

def tell():
    stubs = [child.pid for child in psutil.Process(server.pid).children()]
    supervisor = psutil.Process(server.pid).ppid()
    print(json.dumps([server._run_folder.name, supervisor, server.pid, *stubs]), flush=True)
    sys.stdin.readline()

"""

ENDINGS = {  # how the script goes on, the signal it is sent, and its exit status
    "with": ("with server: tell()", None, 0),
    "exception": ("with server:\n    tell()\n    raise RuntimeError('boom')", None, 1),
    "no stop": ("server.start(); tell()", None, 0),
    "forgotten": ("server.start(); tell(); del server; import gc; gc.collect()", None, 0),
    "sys.exit": ("server.start(); tell(); sys.exit(3)", None, 3),
    "os._exit": ("server.start(); tell(); os._exit(4)", None, 4),
    "Ctrl-C": ("with server: tell()", signal.SIGINT, -signal.SIGINT),
    "SIGTERM": ("with server: tell()", signal.SIGTERM, -signal.SIGTERM),
    "SIGKILL": ("with server: tell()", signal.SIGKILL, -signal.SIGKILL),
    "forked child goes first": (
        "server.start()\nif os.fork() == 0: server.stop(); sys.exit(0)\nos.wait(); tell()",
        None,
        0,
    ),
}


def start(repository: Path, folder: Path, ending: str, runtime: str) -> Started:
    script = SCRIPT.format(repository=str(repository), log=str(folder / "triton.log")) + ending
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("w"),
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "stderr").read_text()
    run_folder, *pids = json.loads(line)
    started = Started(process, pids, run_folder)
    # A supervisor, a tritonserver and the run folder; of a stand-in also a stub and shared memory.
    assert len(started.leftovers()) == (3 if runtime == "native" else 5), started.leftovers()
    return started


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left(
    repository: Path, tmp_path: Path, ending: str, runtime: str, eventually: Eventually
) -> None:
    code, number, status = ENDINGS[ending]
    started = start(repository, tmp_path, code, runtime)
    if number is None:
        started.process.communicate("go on\n", timeout=60)
    else:  # to the whole group, as a terminal and JupyterLab do
        os.killpg(started.process.pid, number)
    assert started.process.wait(60) == status
    eventually(lambda: not started.leftovers(), started.leftovers)


def test_nothing_is_left_when_tritonserver_crashes(
    repository: Path, tmp_path: Path, runtime: str
) -> None:
    server = TritonServer(repository, models=["one"], log_path=tmp_path / "triton.log").start()
    run_folder = server._run_folder
    assert run_folder is not None and server.pid is not None
    stubs = psutil.Process(server.pid).children()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(ServerError, match="SIGKILL"):
        server.wait()
    assert not server.running
    assert not run_folder.exists()
    assert not list(SHARED_MEMORY.glob(f"{run_folder.name}*"))
    assert not any(stub.is_running() for stub in stubs)
    server.stop()


def test_the_next_start_clears_up_after_a_killed_supervisor(
    repository: Path, tmp_path: Path, eventually: Eventually
) -> None:
    server = TritonServer(repository, models=["one"], log_path=tmp_path / "triton.log").start()
    run_folder, supervised = server._run_folder, server._supervised
    assert run_folder is not None and supervised is not None and server.pid is not None
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    supervised.process.kill()
    supervised.process.wait()
    eventually(lambda: not any(_alive(one.pid) for one in family), lambda: family)
    assert run_folder.exists()

    def cleared() -> bool:
        remove_abandoned()  # spares the folder while a shell between Triton and a stub still ends
        return not run_folder.exists()

    eventually(cleared, lambda: run_folder)
    assert not list(SHARED_MEMORY.glob(f"{run_folder.name}*"))


def test_clearing_up_spares_what_is_in_use(stand_in: TritonServer) -> None:
    foreign = SHARED_MEMORY / "labkit-triton-of-somebody-else"
    foreign.touch()
    try:
        remove_abandoned()
        assert stand_in._run_folder is not None and stand_in._run_folder.exists()
        assert list(SHARED_MEMORY.glob(f"{stand_in._run_folder.name}*"))
        assert foreign.exists()
    finally:
        foreign.unlink()


def test_a_log_that_nobody_asked_for_goes_with_a_clean_stop_only(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with TritonServer(repository, models=["one"]) as server:
        log = Path(str(server.log_path))
        assert log.is_relative_to(tmp_path / "temporary") and log.stat().st_size
    assert list((tmp_path / "temporary").iterdir()) == []
    write_config(tmp_path / "repository" / "empty", "onnxruntime", X, Y)
    with pytest.raises(ModelLoadError) as failure:
        TritonServer(tmp_path / "repository").start()
    (kept,) = (tmp_path / "temporary").iterdir()
    assert f"Whole log: {kept}" in str(failure.value)


def test_nothing_is_left_after_a_failed_load(tmp_path: Path) -> None:
    write_config(tmp_path / "repository" / "empty", "onnxruntime", X, Y)
    server = TritonServer(tmp_path / "repository", log_path=tmp_path / "triton.log")
    with pytest.raises(ModelLoadError, match=r"empty.*failed to stat file .*add model\.onnx"):
        server.start()
    assert not server.running
    assert server._run_folder is not None and not server._run_folder.exists()
    assert not list(SHARED_MEMORY.glob(f"{server._run_folder.name}*"))


def test_stops_on_a_kernel_restart(
    repository: Path, tmp_path: Path, eventually: Eventually
) -> None:
    jupyter_client = pytest.importorskip("jupyter_client")
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3")
    try:
        pids_file = tmp_path / "pids.json"
        code = f"""
import json, psutil
from pathlib import Path
from labkit.server import TritonServer
server = TritonServer({str(repository)!r}, models=["one"], log_path={str(tmp_path / "log")!r})
server.start()
children = [child.pid for child in psutil.Process(server.pid).children()]
pids = [psutil.Process(server.pid).ppid(), server.pid, *children]
Path({str(pids_file)!r}).write_text(json.dumps([server._run_folder.name, *pids]))
"""
        reply = client.execute_interactive(code, timeout=60)
        assert reply["content"]["status"] == "ok", reply["content"]
        run_folder, *pids = json.loads(pids_file.read_text())
        started = Started(manager, pids, run_folder)
        assert all(_alive(pid) for pid in pids)
        manager.restart_kernel(now=True)
        eventually(lambda: not started.leftovers(), started.leftovers)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("small") / "logs" / "triton.log"
    made = TritonServer(
        repository, models=["one"], config_name="tuned", log_path=log, runtime="stand-in"
    )
    with made as running:
        yield running


def test_serves_only_the_models_asked_for(small: TritonServer) -> None:
    with http.InferenceServerClient(small.http) as client:
        assert [model["name"] for model in client.get_model_repository_index()] == ["one"]


def test_prefers_the_named_configuration(small: TritonServer) -> None:
    with http.InferenceServerClient(small.http) as client:
        assert client.get_model_config("one")["instance_group"][0]["count"] == 2


def test_does_not_let_clients_change_the_models(small: TritonServer) -> None:
    with (
        http.InferenceServerClient(small.http) as client,
        pytest.raises(Exception, match="not allowed"),
    ):
        client.load_model("two")


def test_listens_on_the_loopback_address_only(small: TritonServer) -> None:
    assert small.pid is not None
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(small.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("endpoint", ["http", "grpc", "metrics"])
def test_a_second_server_on_a_port_learns_who_holds_it(
    small: TritonServer, repository: Path, endpoint: str
) -> None:
    port = int(getattr(small, endpoint).rpartition(":")[2])
    second = TritonServer(repository, **{f"{endpoint}_port": port})
    with pytest.raises(PortInUse) as error:
        second.start()
    assert f"{endpoint} port {port} is held by process {small.pid}: " in str(error.value)
    assert "tritonserver" in str(error.value)
    assert small.running


def test_a_port_lost_while_starting_is_reported_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setattr("labkit.server.ports.can_listen", lambda port: True)
        with pytest.raises(PortInUse, match=f"http port {port} is held by process {os.getpid()}"):
            TritonServer(repository, port, models=["one"], log_path=tmp_path / "log").start()


def test_given_ports_are_used_and_free_again(repository: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with TritonServer(repository, port, models=["one"], log_path=tmp_path / "log") as server:
            assert server.http == f"127.0.0.1:{port}"


def test_an_idle_connection_delays_the_stop_by_the_exit_timeout_only(
    repository: Path, tmp_path: Path
) -> None:
    server = TritonServer(
        repository, models=["one"], log_path=tmp_path / "log", exit_timeout_s=1
    ).start()
    with socket.create_connection(("127.0.0.1", int(server.http.rpartition(":")[2]))):
        begun = time.monotonic()
        server.stop()
    assert time.monotonic() - begun < 10


def test_misuse_is_explained(repository: Path, small: TritonServer, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="already runs"):
        small.start()
    with pytest.raises(ServerError, match="not started"):
        _ = TritonServer(repository).http
    with pytest.raises(ServerError, match=r"has no model three; it has one, two"):
        TritonServer(repository, models=["one", "three"]).start()
    with pytest.raises(ServerError, match="holds no model folder"):
        TritonServer(tmp_path).start()
    with pytest.raises(ServerError, match="not a folder"):
        TritonServer(tmp_path / "nowhere").start()
    with pytest.raises(ServerError, match=r"expected a list: \['one'\]"):
        TritonServer(repository, models="one")
    with pytest.raises(ServerError, match="no-such-flag"):
        TritonServer(repository, extra_args=["--no-such-flag"], log_path=tmp_path / "log").start()
