"""Forked processes for a student's code: what happens in one stays in it."""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20  # of all messages of a process
MAX_ERROR_CHARACTERS = 300
NO_ANSWER = "TimeLimit: no answer in time"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

Message = dict[str, Any]
Send = Callable[[Message], None]

# Kept before any student code runs: a forked process may replace the library's names.
encode, _write, _exit = json.JSONEncoder(allow_nan=False).encode, os.write, os._exit


def describe(error: BaseException) -> str:
    """Return `Type: message`, cut to a length."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = f"{type(error).__name__}: (its message cannot be read)"
    return text[:MAX_ERROR_CHARACTERS]


def in_child(
    job: Callable[[Send], None], start_s: float, step_s: float
) -> tuple[list[Message], str]:
    """Run a job in a forked process, with a process group of its own and without a terminal.

    Args:
        job: Gets a function that sends one message. An error that it raises is sent as
            `{"failure": …}`.
        start_s: Longest wait for the first message.
        step_s: Longest wait from one message to the next.

    Returns:
        The messages, and in words how the process ended.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _be_alone(read_end)
            _run(job, write_end)
        finally:
            _exit(0)  # the parent's things are not cleaned up twice
    os.close(write_end)
    try:
        data, status = _receive(read_end, child, start_s, step_s)
    finally:
        os.close(read_end)
    if status is None:
        return _messages(data), NO_ANSWER
    if os.WIFSIGNALED(status):
        return _messages(data), f"the process was ended by signal {os.WTERMSIG(status)}"
    return _messages(data), f"the process ended, with status {os.waitstatus_to_exitcode(status)}"


def _be_alone(read_end: int) -> None:
    """In the child: a group of its own, and nothing to read from or print to."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(read_end)


def _run(job: Callable[[Send], None], pipe: int) -> None:
    """In the child: run the job."""

    def send(message: Message) -> None:
        data = encode(message).encode() + b"\n"
        while data:
            data = data[_write(pipe, data) :]

    try:
        job(send)
    except BaseException as error:
        send({"failure": describe(error)})


def _receive(pipe: int, child: int, start_s: float, step_s: float) -> tuple[bytes, int | None]:
    """Read what a child sends until it ends; kill it when it takes too long or sends too much.

    Returns:
        What it sent, and its wait status; None where it was killed.
    """
    data, status = b"", None
    deadline = time.monotonic() + start_s
    while status is None and time.monotonic() < deadline and len(data) < MAX_BYTES:
        ready, _, _ = select.select([pipe], [], [], 0.02)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
        new = os.read(pipe, 2**20) if ready else b""
        data += new
        if b"\n" in new:
            deadline = time.monotonic() + step_s
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.kill(child, signal.SIGKILL)  # also where it has left its group
        os.waitpid(child, 0)
    while len(data) < MAX_BYTES and select.select([pipe], [], [], 0)[0]:
        new = os.read(pipe, 2**20)
        if not new:
            break
        data += new
    return data, status


def _messages(data: bytes) -> list[Message]:
    """Parse the whole lines of what a child sent; whatever is no message is left out."""
    messages = []
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            messages.append(json.loads(line))
    return [message for message in messages if isinstance(message, dict)]


def adopt_orphans() -> None:
    """Become the parent of whatever a student's code starts and leaves behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_strays(kept: set[int]) -> None:
    """Kill this process's children, but for those named by their ids."""
    for _ in range(100):  # each may have children of its own, which are adopted then
        strays = _children() - kept
        if not strays:
            return
        for stray in strays:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(stray, signal.SIGKILL)
                os.waitpid(stray, 0)


def _children() -> set[int]:
    """Return the ids of this process's children; empty where the system does not tell."""
    children: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children |= {int(word) for word in path.read_text().split()}
    return children
