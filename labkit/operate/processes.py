"""Whether a server's processes are still there."""

import time
from collections.abc import Callable

import psutil

POLL_S = 0.02


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
