"""Programs that labkit.operate starts: found, watched, and gone with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from fake_replicas import FakeReplica, ask, eventually, fake_replicas

from labkit.operate import MissingProgram, Program, ProgramError, find_program, programs
from labkit.operate.gateway import Gateway, GatewayError
from labkit.operate.nginx_config import SiteError
from labkit.server import PortInUse

ADDRESSES = ["127.0.0.1:8000"]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def python(code: str, folder: Path, **options: object) -> Program:
    ready = folder / "ready"
    return Program("toy", [sys.executable, "-c", code], folder / "toy.log", ready.exists, **options)  # type: ignore[arg-type]


GET_READY = "import pathlib, signal, sys, time, subprocess; ready = pathlib.Path({ready!r}); "


def code(folder: Path, text: str) -> str:
    return GET_READY.format(ready=str(folder / "ready")) + text


# ---- any program ---------------------------------------------------------------------------


def test_a_program_is_found_in_the_environment_in_path_and_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("bin", "first"), ("sbin", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("#!/bin/sh\n")
        (tmp_path / folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", (str(tmp_path / "sbin"),))
    environment = Path(sys.executable).parent
    assert find_program(Path(sys.executable).name).parent == environment
    assert find_program("first") == tmp_path / "bin" / "first"
    assert find_program("second") == tmp_path / "sbin" / "second"
    with pytest.raises(MissingProgram, match="the program third is not here"):
        find_program("third")


@pytest.mark.parametrize("name", ["nginx", "prometheus", "promtool"])
def test_a_missing_program_comes_with_a_way_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    monkeypatch.setattr(programs.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingProgram) as caught:
        find_program(name)
    assert "without root" in str(caught.value)
    assert "apt-get download" in str(caught.value)


def test_a_program_runs_within_its_block(tmp_path: Path) -> None:
    with python(code(tmp_path, "print('up'); ready.touch(); time.sleep(60)"), tmp_path) as program:
        assert program.running
        pid = program.pid
        assert alive(pid)
        with pytest.raises(ProgramError, match="already runs"):
            program.start()
    assert not program.running
    assert not alive(pid)


def test_what_a_program_has_started_ends_with_it(tmp_path: Path) -> None:
    text = (
        "child = subprocess.Popen(['sleep', '60']); ready.write_text(str(child.pid)); "
        "time.sleep(60)"
    )
    with python(code(tmp_path, text), tmp_path):
        eventually(lambda: bool((tmp_path / "ready").read_text()))
        child = int((tmp_path / "ready").read_text())
        assert alive(child)
    eventually(lambda: not alive(child))


def test_a_program_that_dies_at_once_is_explained(tmp_path: Path) -> None:
    program = python("print('no such file: x.conf'); raise SystemExit(3)", tmp_path)
    with pytest.raises(ProgramError, match=r"toy ended on its own(.|\n)*no such file: x\.conf"):
        program.start()
    assert not program.running


def test_a_program_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    program = python("import time; time.sleep(60)", tmp_path, start_limit_s=0.5)
    with pytest.raises(ProgramError, match=r"toy was not ready after 0\.5 s"):
        program.start()
    assert not program.running


def test_a_program_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "KILL_MARGIN_S", 0.5)
    text = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready.touch(); time.sleep(60)"
    with python(code(tmp_path, text), tmp_path, stop_limit_s=0.2) as program:
        pid = program.pid
    assert not alive(pid)


def test_a_program_is_asked_with_its_own_signal(tmp_path: Path) -> None:
    text = (
        "signal.signal(signal.SIGQUIT, lambda *a: (print('in order', flush=True), sys.exit())); "
        "ready.touch(); time.sleep(60)"
    )
    with python(code(tmp_path, text), tmp_path, stop_signal=signal.SIGQUIT) as program:
        pass
    assert program.last_lines() == "in order"


def test_a_program_that_cannot_be_executed_is_one_sentence(tmp_path: Path) -> None:
    program = Program("none", [tmp_path / "none"], tmp_path / "log", lambda: True)
    with pytest.raises(ProgramError, match="cannot be executed"):
        program.start()


# ---- the gateway ---------------------------------------------------------------------------

PARENT = """\
import sys, time
from pathlib import Path
import psutil
from labkit.operate.gateway import Gateway
address, folder = sys.argv[1:]
with Gateway([address], [address], Path(folder), keys={"lab": "0123456789"}) as gateway:
    workers = [child.pid for child in psutil.Process(gateway.pid).children()]
    print(gateway.http_url, gateway.pid, *workers, flush=True)
    time.sleep(120)
"""


@pytest.fixture
def replica() -> Iterator[FakeReplica]:
    with fake_replicas(1) as (only,):
        yield only


@pytest.fixture
def nginx() -> Path:
    try:
        return find_program("nginx")
    except MissingProgram as error:
        pytest.skip(str(error))


@pytest.mark.nginx
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nginx_ends_with_the_process_that_started_it(
    nginx: Path, replica: FakeReplica, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", PARENT, replica.address, tmp_path / "gateway"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address, *pids = parent.stdout.readline().split()
        assert len(pids) == 3  # the master and two workers
        assert all(alive(int(pid)) for pid in pids)
        assert ask(address, "/v2", key="0123456789").status == 200
        os.kill(parent.pid, number)
        eventually(lambda: not any(alive(int(pid)) for pid in pids))
        with pytest.raises(ConnectionRefusedError):
            ask(address, "/v2")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.mark.nginx
def test_nginx_is_gone_after_the_block_and_may_start_again(
    nginx: Path, replica: FakeReplica, tmp_path: Path
) -> None:
    gateway = Gateway([replica.address], [replica.address], tmp_path / "with spaces $x")
    for _ in range(2):
        with gateway:
            pids = [gateway.pid, *(p.pid for p in psutil.Process(gateway.pid).children())]
            assert ask(gateway.http_url, "/v2", key=gateway.key).status == 200
            assert oct(gateway.folder.stat().st_mode)[-3:] == "700"
        assert gateway.pid is None
        assert not gateway.running
        assert not any(alive(pid) for pid in pids)


@pytest.mark.nginx
def test_a_request_under_way_is_answered_before_nginx_ends(
    nginx: Path, replica: FakeReplica, tmp_path: Path
) -> None:
    replica.delay_s = 1.0
    with ThreadPoolExecutor(1) as pool:
        with Gateway([replica.address], [replica.address], tmp_path / "gateway") as gateway:
            answer = pool.submit(ask, gateway.http_url, "/v2", key=gateway.key)
            eventually(lambda: replica.waiting == 1)
        assert answer.result().status == 200


@pytest.mark.nginx
def test_a_dead_gateway_is_noticed(nginx: Path, replica: FakeReplica, tmp_path: Path) -> None:
    with Gateway([replica.address], [replica.address], tmp_path / "gateway") as gateway:
        workers = [process.pid for process in psutil.Process(gateway.pid).children()]
        os.kill(gateway.pid, signal.SIGKILL)
        eventually(lambda: not gateway.running)
        assert not any(alive(pid) for pid in workers)  # left alone, they would go on
        with pytest.raises(ProgramError, match="does not run"):
            gateway.reload([replica.address], [replica.address])


@pytest.mark.nginx
def test_a_held_port_is_named(nginx: Path, replica: FakeReplica, tmp_path: Path) -> None:
    held = replica.server.server_port
    with pytest.raises(PortInUse, match=f"http port {held} is held by process {os.getpid()}"):
        Gateway(ADDRESSES, ADDRESSES, tmp_path / "gateway", http_port=held).start()


@pytest.mark.nginx
def test_a_reload_with_a_wrong_address_changes_nothing(
    nginx: Path, replica: FakeReplica, tmp_path: Path
) -> None:
    with Gateway([replica.address], [replica.address], tmp_path / "gateway") as gateway:
        for http, grpc in ((["nowhere"], ADDRESSES), (ADDRESSES, []), (ADDRESSES, "127.0.0.1:1")):
            with pytest.raises(SiteError, match="expected"):
                gateway.reload(http, grpc)
        assert ask(gateway.http_url, "/v2", key=gateway.key).status == 200


@pytest.mark.nginx
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speed": "1"}, "got the setting 'speed', expected one of body_cap, rate,"),
        ({"body_cap": "large"}, "got body_cap='large', expected a number with its unit"),
        ({"rate": "5r/s; } evil {"}, "expected a number with its unit"),
        ({"max_conns": "-1"}, "expected a number with its unit"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    nginx: Path, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    with pytest.raises(SiteError, match="expected") as caught:
        Gateway(ADDRESSES, ADDRESSES, tmp_path / "gateway", settings=settings).start()
    assert words in str(caught.value)


@pytest.mark.nginx
@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "a:1; evil", "", "a:1\nb:2"]
)
def test_a_wrong_address_is_one_sentence(nginx: Path, tmp_path: Path, address: str) -> None:
    with pytest.raises(SiteError, match="expected host:port"):
        Gateway([address], ADDRESSES, tmp_path / "gateway").start()


@pytest.mark.parametrize("key", ["", "short", 'quote"quote"', "two words", "~.*~.*~.*", "ünïcödé1"])
def test_a_key_that_nginx_would_misread_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(GatewayError, match="expected 8 to 200 letters") as caught:
        Gateway(ADDRESSES, ADDRESSES, tmp_path, keys={"lab": key})
    assert not key or key not in str(caught.value)


def test_a_key_is_made_where_none_is_given_and_never_shown(tmp_path: Path) -> None:
    first, second = (Gateway(ADDRESSES, ADDRESSES, tmp_path) for _ in range(2))
    assert len(first.key) == 64
    assert first.key != second.key
    assert first.key not in repr(first)
    with pytest.raises(GatewayError, match="not started"):
        first.http_url  # noqa: B018
    with pytest.raises(ProgramError, match="does not run"):
        first.reload(ADDRESSES, ADDRESSES)
