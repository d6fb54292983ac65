"""Each cap of the sandbox, on a case so small that nothing happens where the cap does not hold.

Every program here ends by itself at a few times its cap: a cap that fails shows as `ok`.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from labkit.grading import sandbox, watch
from labkit.grading.confined_process import ANSWER_BYTES, ConfinedProcess, ConfinedProgram, Stopped
from labkit.grading.limits import MIB, Limits
from labkit.grading.results import CPU, DISK, OK, OOM, OUTPUT, PROCESSES, SHORTAGE, TIMEOUT
from labkit.grading.sandbox import NONE, Isolation
from labkit.grading.watch import POLL_S, Outcome
from labkit.grading.workdir import open_workdir

pytestmark = pytest.mark.sandbox
WIDE = Limits(wall_s=20, cpu_s=20, memory_mib=600, processes=30, disk_mib=100, files=500,
              output_mib=4)  # fmt: skip
SOON_S = 15.0  # for a breach to be noticed and everything to be stopped, on a busy machine

GROWS = (
    "import time\nhoard = []\nfor _ in range(60):\n    hoard.append(b'x' * 2**23)\ntime.sleep(8)"
)
FORKS = """
import os, time
for _ in range(60):
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
time.sleep(8)
"""
CHILDREN_GROW = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        hoard = b"x" * 60 * 2**20
        time.sleep(8)
        os._exit(0)
time.sleep(8)
"""
BURNS = "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end:\n    pass"
CHILDREN_BURN = """
import os, time
for _ in range(25):
    if os.fork() == 0:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
"""
WRITES = "import time\nopen('/tmp/one', 'wb').write(b'x' * 60 * 2**20)\ntime.sleep(4)"
SCATTERS = """
import time
for number in range(300):
    open(f"/tmp/{number}", "w").write("x")
time.sleep(4)
"""
BURIES = """
import os, time
for step in range(30):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
open("y", "wb").write(b"y" * 2**25)
time.sleep(6)
"""
PRINTS = "import time\nfor _ in range(8):\n    print('x' * 2**20, flush=True)\ntime.sleep(4)"
PRINTS_ASIDE = PRINTS.replace("flush=True", "flush=True, file=__import__('sys').stderr")
MAPPED = """
import mmap, os, time
held = os.open("/tmp/held", os.O_RDWR | os.O_CREAT)
os.write(held, b"x" * 60 * 2**20)
kept = mmap.mmap(held, 0)
os.unlink("/tmp/held")
os.close(held)
for number in os.listdir("/proc/self/fd"):
    try:
        if int(number) > 2: os.close(int(number))
    except OSError:
        pass
time.sleep(8)
"""
FAR_AWAY = """
import os, time
held = os.open("/tmp/held", os.O_RDWR | os.O_CREAT)
os.unlink("/tmp/held")
try:
    while (last := os.dup(2)) < 5_100:
        pass
except OSError as error:
    print(error)
os.dup2(held, last)
os.close(held)
os.write(last, b"x" * 60 * 2**20)
time.sleep(8)
"""
IN_SHM = """
import time
with open("/dev/shm/held", "wb") as stream:
    for _ in range(45):
        stream.write(b"x" * 2**23)
time.sleep(8)
"""
NAMELESS = """
import os, time
held = os.open("/tmp/held", os.O_RDWR | os.O_CREAT)
os.unlink("/tmp/held")
os.write(held, b"x" * 60 * 2**20)
time.sleep(8)
"""
HIDDEN = """
import os, time
os.makedirs("/tmp/a/b")
open("/tmp/a/b/held", "wb").write(b"x" * 60 * 2**20)
os.chmod("/tmp/a/b", 0)
os.chmod("/tmp/a", 0)
time.sleep(8)
"""
WITHOUT_ITS_FIRST_THREAD = """
import ctypes, threading, time
def hold():
    hoard = b"x" * 400 * 2**20
    time.sleep(8)
threading.Thread(target=hold).start()
time.sleep(0.5)
ctypes.CDLL(None).syscall(60, 0)
"""
GIVEN_TO_THE_LOG = """
import ctypes, time
give = ctypes.CDLL(None).fallocate
give.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
assert give(2, 1, 0, 300 * 2**20) == 0
time.sleep(8)
"""
EMPTY_IN_SHM = """
import time
for number in range(150_000):
    open(f"/dev/shm/{number}", "w").close()
time.sleep(8)
"""
FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
SLEEPS = "import time\ntime.sleep(8)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(8)"


@dataclass(frozen=True)
class Run:
    """What became of a confined program, and what it said."""

    outcome: Outcome
    said: str
    left: list[psutil.Process]


def wait(confined: ConfinedProcess, look: Callable[[], None]) -> Outcome:
    """Wait for a program to end, or stop it at the first limit; `look` meanwhile."""
    watch, (verdict, reason) = confined.watch, (OK, "")
    try:
        while confined.process.poll() is None:
            look()
            if breach := watch.breach():
                verdict, reason = breach
                break
            time.sleep(POLL_S)
    finally:
        status = confined.stop()
    return Outcome(verdict, reason, status, watch.seconds, watch.cpu_s, watch.peak_memory_mib)


def run(isolation: Isolation, folder: Path, program: str, limits: Limits = WIDE) -> Run:
    """Run a program in a workdir of its own."""
    seen: dict[tuple[int, float], psutil.Process] = {}

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            seen[process.pid, process.create_time()] = process

    with open_workdir(folder, isolation) as workdir:
        workdir.hand_over()
        command = [sys.executable, "-I", "-c", program]
        sandbox = workdir.sandbox("smoke")
        with ConfinedProcess(
            isolation, sandbox, command, limits, workdir.writable, workdir.log
        ) as confined:
            outcome = wait(confined, look)
        said = workdir.log.read_text(errors="replace")
    assert not list(folder.iterdir()), "the workdir is removed, with everything in it"
    return Run(outcome, said, [process for process in seen.values() if runs(process)])


def runs(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and waits to be forgotten does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("verdict", "program", "caps"),
    [
        pytest.param(OOM, GROWS, {"memory_mib": 200}, id="memory"),
        pytest.param(OOM, CHILDREN_GROW, {"memory_mib": 200}, id="memory of children"),
        pytest.param(PROCESSES, FORKS, {"processes": 20}, id="processes"),
        pytest.param(OOM, IN_SHM, {"memory_mib": 200}, id="memory behind a file"),
        pytest.param(OOM, WITHOUT_ITS_FIRST_THREAD, {"memory_mib": 200}, id="memory, no leader"),
        pytest.param(OOM, EMPTY_IN_SHM, {"memory_mib": 100}, id="memory of empty files"),
        pytest.param(OUTPUT, GIVEN_TO_THE_LOG, {"output_mib": 1}, id="output that is not written"),
        pytest.param(PROCESSES, FORK_BOMB, {"processes": 20}, id="processes without end"),
        pytest.param(DISK, NAMELESS, {"disk_mib": 20}, id="disk without a name"),
        pytest.param(DISK, MAPPED, {"disk_mib": 20}, id="disk that is mapped only"),
        pytest.param(DISK, FAR_AWAY, {"disk_mib": 20}, id="disk behind thousands of files"),
        pytest.param(DISK, HIDDEN, {"disk_mib": 20}, id="disk in a folder that is hidden"),
        pytest.param(DISK, WRITES, {"disk_mib": 20}, id="disk"),
        pytest.param(DISK, BURIES, {}, id="below where any path leads"),
        pytest.param(DISK, SCATTERS, {"files": 100}, id="files"),
        pytest.param(OUTPUT, PRINTS, {"output_mib": 1}, id="output"),
        pytest.param(OUTPUT, PRINTS_ASIDE, {"output_mib": 1}, id="error output"),
        pytest.param(TIMEOUT, SLEEPS, {"wall_s": 1}, id="wall clock"),
        pytest.param(TIMEOUT, DEAF, {"wall_s": 1}, id="wall clock, deaf to signals"),
        pytest.param(CPU, BURNS, {"cpu_s": 1}, id="CPU time"),
        pytest.param(CPU, CHILDREN_BURN, {"cpu_s": 2}, id="CPU time of ended children"),
    ],
)
def test_a_cap_stops_what_exceeds_it_and_nothing_else_would(
    isolation: Isolation, tmp_path: Path, verdict: str, program: str, caps: dict[str, int]
) -> None:
    begin = time.monotonic()
    capped = run(isolation, tmp_path, program, WIDE.changed(caps))
    assert capped.outcome.verdict == verdict, capped
    assert capped.outcome.reason
    assert not capped.left
    assert time.monotonic() - begin < SOON_S


@pytest.mark.parametrize("program", [GROWS, FORKS.replace("60", "20"), WRITES, CHILDREN_BURN])
def test_under_wider_caps_the_same_programs_end_by_themselves(
    isolation: Isolation, tmp_path: Path, program: str
) -> None:
    free = run(isolation, tmp_path, program.replace("sleep(8)", "sleep(1)"))
    assert (free.outcome.verdict, free.outcome.status) == (OK, 0), free
    assert not free.left


def test_the_kernel_itself_refuses_a_file_that_is_far_too_large(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "FILE_MARGIN_MIB", 15)
    program = "open('/tmp/one', 'wb').write(b'x' * 30 * 2**20)"
    refused = run(isolation, tmp_path, program, WIDE.changed({"disk_mib": 5}))
    assert "File too large" in refused.said


def test_the_kernel_itself_refuses_a_task_too_many(isolation: Isolation, tmp_path: Path) -> None:
    limits = WIDE.changed({"processes": 3})
    program = f"""
import threading, time
started = 0
try:
    while started < {4 * limits.tasks}:
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
        started += 1
except RuntimeError as error:
    print(started, error)
"""
    refused = run(isolation, tmp_path, program, limits)
    assert "can't start new thread" in refused.said, refused
    assert int(refused.said.split()[0]) <= limits.tasks


@pytest.mark.parametrize(
    ("cpu_s", "expected"), [(0.1, False), (0.6, True), (7.0, True), (9.8, False), (19.0, False)]
)
def test_who_slept_or_had_a_core_was_not_starved(cpu_s: float, expected: bool) -> None:
    assert watch.starved(cpu_s, 10.0) is expected


@pytest.mark.parametrize(
    ("line", "most_bytes", "why"),
    [
        ("""'{"a": [' + '[],' * 600_000 + '1]}'""", 64 * MIB, "more parts than are read"),
        ("""'{"a": [' + '{},' * 600_000 + '1]}'""", 64 * MIB, "more parts than are read"),
        ("""'{"a": [' + '1,' * 4_100_000 + '1]}'""", 64 * MIB, "more parts than are read"),
        ("""'{"a": "' + 'x' * 10 * 2**20 + '"}'""", ANSWER_BYTES, "said too much"),
    ],
    ids=["lists", "objects", "entries", "bytes"],
)
def test_an_answer_that_would_fill_the_graders_memory_is_not_read(
    tmp_path: Path, line: str, most_bytes: int, why: str
) -> None:
    source = tmp_path / "says.py"
    source.write_text(f"print({line}, flush=True)")
    open_ = Isolation(NONE)
    with open_workdir(tmp_path / "work", open_) as workdir:
        sandbox_ = workdir.sandbox("smoke", data=False)
        with (
            ConfinedProgram(
                [source], open_, sandbox_, WIDE, workdir.writable, workdir.log
            ) as program,
            pytest.raises(Stopped, match=why),
        ):
            program.hear(30, most_bytes)


def test_shared_memory_is_small(isolation: Isolation, tmp_path: Path) -> None:
    program = "print(__import__('os').statvfs('/dev/shm').f_blocks * 4096 // 2**20)"
    assert int(run(isolation, tmp_path, program).said) <= 512


def test_memory_that_belongs_to_nobody_and_other_cores_are_refused(
    isolation: Isolation, tmp_path: Path
) -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for call in ((29, 0, 1 << 20, 0o1600), (319, b"held", 0), (447, 0)):
    print(libc.syscall(*call), os.strerror(ctypes.get_errno()))
before = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(before)})
print(os.sched_getaffinity(0) == before)
"""
    said = run(isolation, tmp_path, program).said.splitlines()
    assert said == ["-1 Function not implemented"] * 3 + ["True"]


def test_what_a_program_leaves_behind_ends_with_it(isolation: Isolation, tmp_path: Path) -> None:
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
time.sleep(1)
"""
    ended = run(isolation, tmp_path, program)
    assert (ended.outcome.verdict, ended.left) == (OK, [])


def test_a_program_is_no_user_of_this_machine_and_has_no_network(
    isolation: Isolation, tmp_path: Path
) -> None:
    program = """
import os, socket
from pathlib import Path
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print([name for _, name in socket.if_nameindex()])
print(int(status["CapEff"], 16), int(status["CapBnd"], 16) == 0 or os.getuid() != 0)
print(len([name for name in os.listdir("/proc") if name.isdigit()]) < 6)
print(sorted(os.listdir("/home")), Path("/etc/shadow").exists(), Path("/etc/hosts").exists())
"""
    said = run(isolation, tmp_path, program).said.splitlines()
    assert said == ["['lo']", "0 True", "True", "['student'] False False"]


def test_no_user_namespace_and_no_hidden_table_of_files_opens_inside(
    isolation: Isolation, tmp_path: Path
) -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: libc.unshare(0x10000000), lambda: libc.syscall(56, 0x10000011, 0, 0, 0, 0),
             lambda: libc.unshare(0x400), lambda: libc.syscall(56, 0x10900, 0, 0, 0, 0),
             lambda: libc.syscall(435, 0, 0), lambda: libc.syscall(436, 100_000, 100_001, 2),
             lambda: libc.syscall(425, 1, 0)):
    print(call(), os.strerror(ctypes.get_errno()))
"""
    said = run(isolation, tmp_path, program).said.splitlines()
    assert said == ["-1 Operation not permitted"] * 4 + ["-1 Function not implemented"] * 3


def test_a_shortage_of_the_machine_stops_the_largest_only(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others use more, nobody is stopped on their account; and it is nobody's verdict."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    check_the_largest_only(isolation, tmp_path, monkeypatch, "memory")


def test_a_shortage_of_disk_stops_the_largest_only(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    check_the_largest_only(isolation, tmp_path, monkeypatch, "disk")


def check_the_largest_only(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    monkeypatch.setattr(watch, "PEERS", tmp_path / "peers")
    (tmp_path / "peers" / of).mkdir(parents=True)
    place = tmp_path / "workdir"
    place.mkdir()
    other = tmp_path / "peers" / of / "1"
    other.write_text("100000")
    os.utime(other, (time.time() + 3600,) * 2)  # a watch that is alive, however slow this machine
    small = run(isolation, place, "import time\ntime.sleep(2)", WIDE)
    other.unlink()
    alone = run(isolation, place, "import time\ntime.sleep(8)", WIDE)
    assert (small.outcome.verdict, alone.outcome.verdict) == (OK, SHORTAGE)
