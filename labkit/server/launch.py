"""Start a program under the supervisor, which ends it with this process and cleans up behind it."""

import contextlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.server import supervisor

Supervisor = subprocess.Popen[str]


def start_supervised(
    owner: object,
    command: Sequence[str],
    environment: Mapping[str, str],
    run_folder: tuple[Path, int],
    log_path: Path,
    grace_s: float,
    remove_command: Sequence[str] = (),
    remove_log: bool = False,
) -> tuple[Supervisor, int | None]:
    """Start the supervisor, which starts the program.

    Args:
        owner: The program ends when this object is collected, at the latest.
        command: The program and its arguments.
        environment: All of its environment variables.
        run_folder: Its private folder, and the descriptor of the folder's lock.
        log_path: File for what it prints; begun anew.
        grace_s: How long it may take to end before it is killed.
        remove_command: Removes what outlives it, such as a container.
        remove_log: Remove the log when the program ended because it was asked to, also where this
            process is killed; `keep_log` overrules it.

    Returns:
        The supervisor, and the program's process id; None where it could not be executed.
    """
    folder, lock_fd = run_folder
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log_path.write_bytes(b"")
    job = {
        "command": list(command),
        "environment": dict(environment),
        "remove_command": list(remove_command),
        "run_folder": str(folder),
        "lock_fd": lock_fd,
        "log_path": str(log_path),
        "grace_s": grace_s,
        "remove_log": remove_log,
        "parent_pid": os.getpid(),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__],
            stdin=subprocess.PIPE,  # every user of the machine can read a command line
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[lock_fd],
            start_new_session=True,  # a terminal's Ctrl-C reaches only this process
        )
    except BaseException:
        supervisor.remove_files(folder)
        raise
    finally:
        os.close(lock_fd)
    weakref.finalize(owner, terminate, process, os.getpid())  # also at interpreter exit
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as told:
        json.dump(job, told)
    with process.stdout as output:
        first_line = output.readline().strip()
    return process, int(first_line) if first_line.isdecimal() else None


def keep_log(run_folder: Path) -> None:
    """Keep the log of the program in this run folder, however it ends."""
    with contextlib.suppress(FileNotFoundError):  # it has ended, and kept its log
        (run_folder / supervisor.KEEP_LOG).touch()


def terminate(process: Supervisor, owner_pid: int) -> None:
    """Ask a supervisor to end, unless this is a forked child of the process that started it."""
    if os.getpid() == owner_pid and process.poll() is None:
        process.terminate()
