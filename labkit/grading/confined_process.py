"""A confined program while it runs: started, watched, asked, stopped with all that it started."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import psutil

from labkit.chain import end_with_parent, stopped_at_the_end
from labkit.errors import LabError
from labkit.grading import inside
from labkit.grading.limits import MIB, Limits, Scope
from labkit.grading.results import OK
from labkit.grading.sandbox import (
    BUBBLEWRAP,
    START_TIMEOUT_S,
    Isolation,
    Sandbox,
    bubblewrap_command,
)
from labkit.grading.watch import POLL_S, Outcome, Watch, descendants, starved


class ConfinedProcess:
    """One running program with its watch; a context manager that leaves nothing running.

    Args:
        isolation: How to confine it.
        sandbox: What it sees. Without bubblewrap its paths are translated by the caller.
        command: What to run.
        limits: What it may use.
        watched: The folder whose disk use counts.
        log: File for its output.
        pipes: Connect its standard input and output to `process.stdin` and `process.stdout`.
    """

    def __init__(
        self,
        isolation: Isolation,
        sandbox: Sandbox,
        command: Sequence[str],
        limits: Limits,
        watched: Path,
        log: Path,
        pipes: bool = False,
    ) -> None:
        self._isolation, self._ended = isolation, False
        confined_ = isolation.kind == BUBBLEWRAP
        line = bubblewrap_command(isolation, sandbox, command, limits) if confined_ else command
        self._scope = Scope(limits)
        self._adoption = None if confined_ else stopped_at_the_end()
        if self._adoption:
            self._adoption.__enter__()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                line,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                env={} if confined_ else dict(sandbox.environment),
                cwd=None if confined_ else sandbox.folder,
                start_new_session=True,
                preexec_fn=self._begin,
            )
        self.watch = Watch(self.process.pid, limits, watched, log)

    def _begin(self) -> None:
        """In the child: end with the grader, in a scope of its own."""
        end_with_parent()
        self._scope.enter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Kill it and everything that it started, wait for that, and return its exit status."""
        if self._ended:
            return self.process.returncode
        self._ended = True
        if self.process.poll() is None:
            # Inside, the first process is init: when it dies, the kernel kills all others, and
            # bubblewrap, its parent, ends after the last of them.
            members = list(islice(descendants(self.process.pid), 2))  # of a fork bomb, no more
            target = (
                members[1] if self._isolation.kind == BUBBLEWRAP and members[1:] else members[0]
            )
            _kill(target)
            try:
                self.process.wait(START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                _kill(self.process.pid)
                self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        self._scope.close()
        if self._adoption:
            self._adoption.__exit__(None, None, None)
        return self.process.returncode


class Stopped(LabError):
    """A confined program has ended, exceeded a limit, or not answered; the message says which."""


# The program's text is sent to it: what runs inside finds no file of it, and no request in one.
BOOT = """
import sys, types
*modules, (_, program) = eval(sys.stdin.readline())
for name, text in modules:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, '<labkit>', 'exec'), vars(module))
exec(compile(program, '<labkit>', 'exec'))
"""
ANSWER_BYTES = 8 * MIB  # of one line; a file that an exercise writes is 4 MiB at most
SHOWN_BYTES = 64 * MIB  # of one line about a cell, with all that it shows
# Of one line; each list, object or entry takes a hundred bytes of the grader's memory and more.
MOST_LISTS, MOST_ENTRIES = 500_000, 4_000_000


class ConfinedProgram(ConfinedProcess):
    """A confined program that is asked, and answers, with a line of JSON each.

    Args:
        sources: The files of its text, of `labkit.grading.inside`: modules that it imports, and
            last the program itself.
        isolation, sandbox, limits, watched, log: See `ConfinedProcess`.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        isolation: Isolation,
        sandbox: Sandbox,
        limits: Limits,
        watched: Path,
        log: Path,
    ) -> None:
        command = [sys.executable, "-I", "-c", BOOT]
        super().__init__(isolation, sandbox, command, limits, watched, log, pipes=True)
        self.folder = sandbox.folder
        self._buffer = b""
        texts = [(f"{inside.__name__}.{s.stem}", s.read_text(encoding="utf-8")) for s in sources]
        self._send(ascii(texts).encode())

    def tell(self, **request: Any) -> None:
        """Send one request.

        Raises:
            Stopped: it has ended.
        """
        self._send(json.dumps(request).encode())

    def _send(self, line: bytes) -> None:
        stream = self.process.stdin
        assert stream is not None
        os.set_blocking(stream.fileno(), False)  # it may have been stopped by a signal
        rest = memoryview(line + b"\n")
        while rest:
            if select.select([], [stream], [], POLL_S)[1]:
                try:
                    rest = rest[os.write(stream.fileno(), rest) :]
                except OSError as error:
                    raise Stopped(f"it had ended ({error.strerror})") from None
            else:
                self._look()

    def _look(self) -> None:
        """Look at its limits.

        Raises:
            Stopped: it exceeds one.
        """
        if breach := self.watch.breach():
            self.breach = breach
            raise Stopped(f"it {breach[1]}")

    def hear(self, limit_s: float = math.inf, most_bytes: int = ANSWER_BYTES) -> dict[str, Any]:
        """Wait for one line of JSON, with an eye on its limits.

        Args:
            limit_s: Longest time to wait.
            most_bytes: Longest line.

        Raises:
            Stopped: it ended, exceeded a limit (then `outcome` says which), took too long, or said
                more than the grader can read.
        """
        stream = self.process.stdout
        assert stream is not None
        deadline, next_look = time.monotonic() + limit_s, 0.0
        while b"\n" not in self._buffer:
            if time.monotonic() > next_look:
                self._look()
                next_look = time.monotonic() + POLL_S
            if select.select([stream], [], [], POLL_S)[0]:
                part = os.read(stream.fileno(), 1 << 20)
                if not part or len(self._buffer) > most_bytes:
                    raise Stopped("it ended, or said too much")
                self._buffer += part
            if time.monotonic() > deadline:
                raise Stopped(f"no answer after {limit_s:g} s")
        line, self._buffer = self._buffer.split(b"\n", 1)
        lists = line.count(b"[") + line.count(b"{")
        if lists > MOST_LISTS or line.count(b",") > MOST_ENTRIES:
            raise Stopped("its answer has more parts than are read")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise Stopped("its answer is no JSON") from None
        if not isinstance(answer, dict):
            raise Stopped("its answer is no JSON object")
        return answer

    def extend(self, wall_s: float, cpu_s: float) -> None:
        """Give it so much time from now on, for what comes next."""
        watch = self.watch
        wall_s, cpu_s = watch.seconds + wall_s, watch.cpu_s + cpu_s
        watch.limits = replace(watch.limits, wall_s=wall_s, cpu_s=cpu_s)

    @property
    def used(self) -> tuple[float, float]:
        """Seconds, and CPU seconds, so far."""
        return self.watch.seconds, self.watch.cpu_s

    def starved_since(self, used: tuple[float, float]) -> bool:
        """Say whether it got too little CPU time, see `watch.starved`, since it had used this."""
        return starved(self.watch.cpu_s - used[1], self.watch.seconds - used[0])

    def pause(self) -> None:
        """Let a moment pass, with an eye on its limits."""
        time.sleep(POLL_S / 2)
        self._look()

    breach: tuple[str, str] | None = None  # the limit that it has exceeded, and a sentence

    @property
    def outcome(self) -> Outcome:
        """What it has used so far, and the limit that stopped it."""
        watch, (verdict, reason) = self.watch, self.breach or (OK, "")
        status = self.process.returncode or 0
        return Outcome(verdict, reason, status, watch.seconds, watch.cpu_s, watch.peak_memory_mib)


def _kill(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).send_signal(signal.SIGKILL)
