"""Ports, the container's command, finding the wheel, and the supervisor, without a Triton."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.server import (
    PortInUse,
    ServerError,
    TritonNotFound,
    TritonServer,
    choose_runtime,
    container,
    engine_of,
    find_triton,
    libpython,
    ports,
    run_folder,
    runtime_of,
    supervisor,
)
from labkit.server.engine import own_precision, two_onnxruntimes
from labkit.server.find import TritonBinary
from labkit.server.job import local_job

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the wheel's binary is for Linux")


def test_free_ports_differ() -> None:
    chosen = ports.choose_ports({"http": None, "grpc": None, "metrics": None})
    assert list(chosen) == ["http", "grpc", "metrics"]
    assert len(set(chosen.values())) == 3


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_have_a_range(port: int) -> None:
    with pytest.raises(ServerError, match=f"got http port {port}, expected 1 to 65535"):
        ports.choose_ports({"http": port})


def test_endpoints_do_not_share_a_port() -> None:
    with pytest.raises(ServerError, match="a different port for each endpoint"):
        ports.choose_ports({"http": 8000, "grpc": 8000})


def test_a_held_port_is_refused_with_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse) as error:
            ports.choose_ports({"http": None, "grpc": port})
    assert f"grpc port {port} is held by process {os.getpid()}: " in str(error.value)
    assert ports.choose_ports({"grpc": port}) == {"grpc": port}  # free again, TIME_WAIT or not


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container engine that writes down what it was asked to do."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked-$1\ntest $1 != image\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TRITON_IMAGE", "triton:test")
    return program


def test_the_container_command(engine: Path, tmp_path: Path) -> None:
    command = container.run_command(
        str(engine),
        "labkit-triton-x",
        {"net": tmp_path / "my models" / "net"},
        {"http": 18000, "grpc": 18001, "metrics": 18002},
        ["--model-control-mode=none"],
    )
    assert command == [
        str(engine),
        "run",
        "--rm",
        "--name",
        "labkit-triton-x",
        "--shm-size=1g",
        "--publish=127.0.0.1:18000:8000",
        "--publish=127.0.0.1:18001:8001",
        "--publish=127.0.0.1:18002:8002",
        f"--mount=type=bind,source={tmp_path}/my models/net,target=/models/net,readonly",
        "triton:test",
        "tritonserver",
        "--model-repository=/models",
        "--model-control-mode=none",
    ]


def test_the_image_is_pinned_where_compose_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_IMAGE", raising=False)
    pins = (Path(__file__).parents[2] / "docker" / ".env").read_text().splitlines()
    assert f"TRITON_IMAGE={container.image()}" in pins


@ON_LINUX
def test_runtime_container_asks_the_engine_and_clears_up(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "repository" / "net").mkdir(parents=True)
    server = TritonServer(
        tmp_path / "repository",
        runtime="container",
        config_name="tuned",
        extra_args=["--log-verbose=1"],
        log_path=tmp_path / "log",
    )
    with pytest.raises(ServerError, match="Triton ended"):  # this engine starts nothing
        server.start()
    assert (tmp_path / "asked-pull").read_text().split() == ["pull", "triton:test"]
    asked = (tmp_path / "asked-run").read_text().splitlines()
    assert asked[-6:] == [
        "--model-repository=/models",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--exit-timeout-secs=3",
        "--model-config-name=tuned",
        "--log-verbose=1",
    ]
    name = asked[asked.index("--name") + 1]
    assert (tmp_path / "asked-rm").read_text().split() == ["rm", "--force", name]


def test_without_an_engine_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TritonNotFound, match="install Docker"):
        container.require_engine()


def test_a_binary_that_is_not_whole_says_so(tmp_path: Path) -> None:
    binary = find_triton()
    if binary is None:
        pytest.skip("the server is not in the cache")
    assert binary.problem is None
    assert "pytriton" not in sys.modules
    absent = tmp_path / "absent"
    assert "labkit triton fetch" in str(replace(binary, executable=absent).problem)
    assert "labkit triton build" in str(replace(binary, stub=absent).problem)
    assert "apt-get install libpython3." in str(replace(binary, libpython=None).problem)


def test_the_run_folder_never_needs_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "with space"))
    folder, lock_fd = run_folder.make_run_folder()
    os.close(lock_fd)
    supervisor.remove_files(folder)
    assert " " not in str(folder)


@pytest.mark.parametrize("runtime", ["docker", ""])
def test_an_unknown_runtime_is_refused(runtime: str) -> None:
    with pytest.raises(ServerError, match="expected one of"):
        TritonServer(".", runtime=runtime)


def test_runtime_of_a_configuration() -> None:
    assert runtime_of({"backend": "onnxruntime", "runtime": "model.py"}) == "stand-in"
    assert runtime_of({"backend": "onnxruntime", "runtime": ""}) == "native"
    assert runtime_of({"backend": "onnxruntime"}) == "native"
    assert runtime_of({"backend": "python", "runtime": "model.py"}) == "python"


def test_the_engine_is_named_with_the_version_that_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"onnxruntime": "1.99", "openvino": "2026.9", "torch": "2.99"}
    monkeypatch.setattr("importlib.metadata.version", installed.__getitem__)
    assert engine_of("onnxruntime", "stand-in") == "ONNX Runtime 1.99"
    assert engine_of("onnxruntime", "native") == "ONNX Runtime 1.24.1", "built in"
    monkeypatch.setattr("labkit.server.engine.own_precision", lambda: "bf16")
    assert engine_of("openvino", "native") == "OpenVINO 2026.9, float layers in bf16"
    assert engine_of("pytorch", "stand-in") == "PyTorch 2.99"
    assert engine_of("tensorrt", "container") == "tensorrt of the official image"


def test_openvinos_own_precision_is_what_a_model_gets_that_asks_for_none(tmp_path: Path) -> None:
    import openvino

    x = openvino.opset13.parameter([1], openvino.Type.f32)
    compiled = openvino.Core().compile_model(openvino.Model([openvino.opset13.relu(x)], [x]), "CPU")
    hint = compiled.get_property("INFERENCE_PRECISION_HINT")
    assert own_precision() == hint.get_type_name()
    assert own_precision() in ("f32", "bf16", "f16")


def test_native_is_chosen_where_served_and_in_process_are_one_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LABKIT_RUNTIME", raising=False)
    monkeypatch.setattr("labkit.server.server.built_backends", lambda: tmp_path)
    monkeypatch.setattr("labkit.server.server.unsupported", lambda: "")
    chosen = {}
    for version in ("1.24.1", "1.32.0"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, version=version: version)
        chosen[version] = choose_runtime()
    assert chosen == {"1.24.1": "native", "1.32.0": "stand-in"}
    assert "pip install onnxruntime==1.24.1" in two_onnxruntimes()
    assert choose_runtime("native") == "native", "who asks for it gets it"


def test_native_without_native_backends_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = tmp_path / "repository" / "net" / "1"
    version.mkdir(parents=True)
    config = 'backend: "onnxruntime" max_batch_size: 8'
    (version.parent / "config.pbtxt").write_text(config)
    bare = fake_binary(tmp_path)
    monkeypatch.setattr("labkit.server.server.require_triton", lambda: bare)
    server = TritonServer(version.parents[1], runtime="native", log_path=tmp_path / "log")
    with pytest.raises(TritonNotFound, match=r"runtime='native' needs .*labkit triton build"):
        server.start()


def fake_binary(root: Path) -> TritonBinary:
    """The files of a server that does nothing, without native backends."""
    names = ("tritonserver", "libraries", "python", "caches", "stub", libpython.NAME)
    server, libraries, python, caches, stub, library = (root / name for name in names)
    for folder in (libraries, python, caches):
        folder.mkdir()
    for file in (server, stub, library):
        file.touch()
    return TritonBinary(server, libraries, python, stub, True, caches, "2.51.0", library, None)


def test_the_running_pythons_library_comes_before_a_bundled_one(tmp_path: Path) -> None:
    """The wheel's stub for Python 3.13 asks for a copy beside it, which lacks parts of Python."""
    binary = fake_binary(tmp_path)
    minor = libpython.PYTHON[2:]
    bundled = f"libpython3-0a1b2c3d.{minor}.so.1.0"
    (binary.libraries / bundled).write_text("bundled")
    (binary.libraries / "libpython3-0a1b2c3d.9.so.1.0").touch()
    run = tmp_path / "run"
    run.mkdir()
    job = local_job(binary, False, run, [], {"http": 8000}, [])
    links = {path.name: path.resolve() for path in (run / "lib").iterdir()}
    assert links == dict.fromkeys((libpython.NAME, bundled), binary.libpython)
    searched = job.environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert searched[:2] == [str(run / "lib"), str(binary.libraries)]


def test_only_folders_whose_owners_are_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(supervisor, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    used, used_lock = run_folder.make_run_folder()
    gone, gone_lock = run_folder.make_run_folder()
    for folder in (used, gone):
        (tmp_path / "shm" / f"{folder.name}-region").touch()
    os.close(gone_lock)
    assert run_folder.remove_abandoned() == [gone]
    assert {path.name for path in tmp_path.iterdir()} == {"shm", used.name}
    assert [path.name for path in (tmp_path / "shm").iterdir()] == [f"{used.name}-region"]
    os.close(used_lock)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@ON_LINUX
def test_the_supervisor_kills_a_server_that_ignores_it_and_its_children(tmp_path: Path) -> None:
    folder, lock_fd = run_folder.make_run_folder()
    job = {
        "command": [sys.executable, "-c", STUBBORN],
        "environment": dict(os.environ),
        "run_folder": str(folder),
        "lock_fd": lock_fd,
        "log_path": str(tmp_path / "log"),
        "grace_s": 0.2,
        "parent_pid": os.getpid(),
        "remove_command": [],
    }
    with subprocess.Popen(
        [sys.executable, "-I", supervisor.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[lock_fd],
    ) as process:
        os.close(lock_fd)
        assert process.stdin is not None and process.stdout is not None
        with process.stdin as told:
            json.dump(job, told)
        server_pid = int(process.stdout.readline())
        deadline = time.monotonic() + 20
        while not (tmp_path / "log").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.02)
        child_pid = int((tmp_path / "log").read_text())
        process.terminate()
        assert process.wait(20) == 128 + 9
    for pid in (server_pid, child_pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            pytest.fail(f"process {pid} is left")
    assert not folder.exists()
