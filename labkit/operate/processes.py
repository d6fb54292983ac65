"""What a server's processes use, and whether they are still there."""

import time
from collections.abc import Callable

import psutil

POLL_S = 0.02
STUB = "triton_python_backend_stub"
MIB = 2**20


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait until a condition holds, at most `limit_s` seconds; return whether it does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def gone(pid: int, limit_s: float) -> bool:
    """Wait until no process has this id, or only a zombie; return whether that came true."""

    def over() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return until(over, limit_s)


def family(pid: int) -> list[psutil.Process]:
    """Return a server's process and everything it has started; empty when it is gone."""
    try:
        server = psutil.Process(pid)
        return [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def stubs(pid: int) -> list[psutil.Process]:
    """Return the processes in which a server's Python-based models run."""
    return [process for process in family(pid) if STUB in _command(process)]


def rss_mib(pid: int) -> float:
    """Return the resident memory of a server and all its processes together, in MiB."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


def cpu_s(pid: int) -> float:
    """Return the processor time that a server and all its processes have used, in seconds."""
    total = 0.0
    for process in family(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""
