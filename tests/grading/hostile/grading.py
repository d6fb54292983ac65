"""Run `labkit grade` as a person would, under limits of its own, with an eye on its processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from labkit.chain import end_with_parent

GIB = 2**30
POLL_S = 0.3
END_S = 20.0  # for everything to be gone after the grader has ended, on a busy machine


class Grading:
    """One `labkit grade` that runs, or has run.

    Args:
        classroom: The submissions.
        out: Where the grades go.
        options: Of the command line.
        environment: Variables in addition to this process's own.
    """

    def __init__(
        self,
        classroom: Path,
        out: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.out, self.log = out, out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        command = [sys.executable, "-m", "labkit", "grade", str(classroom), "--out", str(out)]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=fasten_belt,
            )
        self._seen: dict[tuple[int, float], psutil.Process] = {}
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def _look(self) -> None:
        """Note every process below the grader for as long as it runs."""
        grader = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            try:
                for process in grader.children(recursive=True):
                    self._seen[process.pid, process.create_time()] = process
            except psutil.NoSuchProcess:
                pass  # one has ended meanwhile
            time.sleep(POLL_S)

    def wait(self, limit_s: float) -> int:
        """Wait for its end; return the exit status. What runs too long is killed, and fails."""
        try:
            return self.process.wait(limit_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the grader, and only the grader, without a warning."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._watch.join()

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def processes(self) -> int:
        """How many processes it has started that were seen."""
        return len(self._seen)

    def left(self) -> list[psutil.Process]:
        """Return those of its processes that still run; a few seconds are given to them."""
        deadline = time.monotonic() + END_S
        while (left := [p for p in self._seen.values() if runs(p)]) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return left


def runs(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and waits to be forgotten does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(marker: str) -> list[psutil.Process]:
    """Return the processes with a marker in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if marker in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def fasten_belt() -> None:
    """Before the grader starts: limits of the kernel, for the case that all of its own fail.

    It also ends with the test that started it, which may itself be stopped or killed.
    """
    end_with_parent()
    own = sum(process.uids().real == os.getuid() for process in psutil.process_iter())
    for kind, most in (
        (resource.RLIMIT_AS, 16 * GIB),  # of each process
        (resource.RLIMIT_FSIZE, 4 * GIB),
        (resource.RLIMIT_NPROC, own + 2_500),  # of each user, threads included
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
