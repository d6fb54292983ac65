"""Start a program under the supervisor, which ends it with this process and cleans up behind it."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import weakref
from dataclasses import asdict
from pathlib import Path

from labkit.server import supervisor
from labkit.server.job import Job

logger = logging.getLogger(__name__)


class Supervised:
    """A program that runs under the supervisor, until `end`, or until nobody holds this any more.

    Attributes:
        pid: The program's process id; None where it could not be executed.
        process: The supervisor.
    """

    def __init__(
        self,
        job: Job,
        run_folder: tuple[Path, int],
        log_path: Path,
        grace_s: float,
        remove_log: bool = False,
    ) -> None:
        """Start the supervisor, which starts the program.

        Args:
            job: The program, with its arguments and all of its environment variables.
            run_folder: Its private folder, and the descriptor of the folder's lock.
            log_path: File for what it prints; begun anew.
            grace_s: How long it may take to end before it is killed.
            remove_log: Remove the log when the program ended because it was asked to, also where
                this process is killed; `keep_log` overrules it.
        """
        self._folder, lock_fd = run_folder
        self._owner_pid = os.getpid()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.write_bytes(b"")
        order = asdict(job) | {
            "run_folder": str(self._folder),
            "lock_fd": lock_fd,
            "log_path": str(log_path),
            "grace_s": grace_s,
            "remove_log": remove_log,
            "parent_pid": self._owner_pid,
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__],
                stdin=subprocess.PIPE,  # every user of the machine can read a command line
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[lock_fd],
                start_new_session=True,  # a terminal's Ctrl-C reaches only this process
            )
        except BaseException:
            supervisor.remove_files(self._folder)
            raise
        finally:
            os.close(lock_fd)
        weakref.finalize(self, _terminate, self.process, self._owner_pid)  # also at exit
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as told:
            json.dump(order, told)
        with self.process.stdout as output:
            first_line = output.readline().strip()
        self.pid = int(first_line) if first_line.isdecimal() else None

    @property
    def running(self) -> bool:
        """Whether the program is alive."""
        return self.process.poll() is None

    @property
    def is_a_copy(self) -> bool:
        """Whether this is a forked child of the process that started it, which only has a copy."""
        return os.getpid() != self._owner_pid

    def end(self, limit_s: float) -> None:
        """End the program in order, else, after `limit_s`, by force; wait until it is gone."""
        if self.is_a_copy:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            logger.warning("process %s did not stop in time; killing it", self.pid)
            self.process.kill()  # the program dies with its supervisor
            self.process.wait()
            supervisor.remove_files(self._folder)


def keep_log(run_folder: Path) -> None:
    """Keep the log of the program in this run folder, however it ends."""
    with contextlib.suppress(FileNotFoundError):  # it has ended, and kept its log
        (run_folder / supervisor.KEEP_LOG).touch()


def _terminate(process: "subprocess.Popen[str]", owner_pid: int) -> None:
    """Ask a supervisor to end, unless this is a forked child of the process that started it."""
    if os.getpid() == owner_pid and process.poll() is None:
        process.terminate()
