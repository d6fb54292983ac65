"""`labkit serve` as a person starts it: which models, Ctrl-C everywhere, and no secret in `ps`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_lines import no_secret_shown
from tiny_models import ONE_THREAD, X, Y, save_double, write_config

from labkit.server import TritonServer

PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve") / "model_repository"
    version = write_config(root / "one", "onnxruntime", X, Y, parameters=ONE_THREAD)
    save_double(version / "model.onnx")
    return root


@contextmanager
def serving(
    *arguments: str, cwd: Path | None = None, ignore_sigint: bool = False
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run `labkit serve` until it is ready; yield it with what it has printed."""

    def prepare() -> None:
        if ignore_sigint:  # as a shell without job control starts a background job
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-m", "labkit", "serve", *arguments, *PORTS],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=prepare,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "stop with Ctrl-C" not in lines[-1]:
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        yield process, "".join(lines)
    finally:
        process.kill()
        process.wait(30)


def test_no_command_line_holds_a_variable_of_the_environment(
    repository: Path, eventually: Callable[..., None]
) -> None:
    parts = ("labkit serve", "supervisor.py", "tritonserver", "triton_python_backend_stub")
    with no_secret_shown(*parts) as seen, serving(str(repository)):
        eventually(
            lambda: all(any(part in line for line in list(seen)) for part in parts),
            lambda: list(seen),
        )


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_ends_it_wherever_it_was_started(repository: Path, ignored: bool) -> None:
    with serving(str(repository), ignore_sigint=ignored) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_its_log_goes_when_it_ends_well_and_lies_beside_the_models(repository: Path) -> None:
    logs = repository.parent / "logs"
    logs.mkdir(exist_ok=True)
    server = TritonServer(repository)
    with server:
        assert Path(str(server.log_path)).parent == logs
        assert list(logs.iterdir()) == [server.log_path]
    deadline = time.monotonic() + 10
    while list(logs.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(logs.iterdir()) == []
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="SIGKILL"):
        server.wait()
    assert [log.read_text() != "" for log in logs.iterdir()] == [True]


def test_without_a_repository_the_newest_models_are_served(
    repository: Path, tmp_path: Path
) -> None:
    for folder in ("notebooks", "model_repository", "runs/old", "runs/new"):
        (tmp_path / folder).mkdir(parents=True)
    for run, age_s in (("old", 1_000), ("new", 10)):
        target = tmp_path / "runs" / run / "model_repository" / f"of_{run}"
        version = write_config(target, "onnxruntime", X, Y, parameters=ONE_THREAD)
        save_double(version / "model.onnx")
        os.utime(version / "model.onnx", (time.time() - age_s,) * 2)
    with serving(cwd=tmp_path) as (_, said):
        assert "serving the newest models, of runs/new/model_repository" in said
    with serving("--run", "old", cwd=tmp_path) as (_, said):
        assert "1 models" in said
    wrong = [sys.executable, "-m", "labkit", "serve", "--run", "none"]
    done = subprocess.run(wrong, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "runs/none/model_repository" in done.stderr
