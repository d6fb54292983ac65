"""The process between the notebook and Triton: it outlives a crash of either and cleans up.

Run by path with nothing but the standard library: `python -I supervisor.py`. It reads what to run
from its standard input (every user of the machine can read a command line, and the environment
holds secrets), starts the server, prints its process id, and ends it when told to (SIGTERM) or when
the process that asked for it is gone, whichever way that went. Then it kills what the server left
behind and removes the run folder and the shared-memory files of this server, and of no other.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

POLL_S = 0.1
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
KEEP_LOG = "keep-log"  # a file in the run folder


def main() -> int:
    """Run the server described on standard input, in JSON; return its exit status."""
    job: dict[str, Any] = json.load(sys.stdin)
    stop = _StopSignal()
    adopt_orphans()
    run_folder = Path(job["run_folder"])
    try:
        with Path(job["log_path"]).open("wb") as log:
            child = subprocess.Popen(
                job["command"],
                env=job["environment"],
                cwd=run_folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[job["lock_fd"]],
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        print(child.pid, flush=True)
        while child.poll() is None and not stop.received and os.getppid() == job["parent_pid"]:
            time.sleep(POLL_S)
        asked = child.poll() is None  # else it ended by itself, and its log says why
        _end(child, job["grace_s"])
        if job["remove_command"]:
            subprocess.run(job["remove_command"], capture_output=True, check=False, timeout=60)
        kill_group(child.pid)
        if job.get("remove_log") and asked and not (run_folder / KEEP_LOG).exists():
            Path(job["log_path"]).unlink(missing_ok=True)
    finally:
        remove_files(run_folder)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


class _StopSignal:
    """Remembers that somebody asked to stop; nothing else happens in the handler."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def adopt_orphans() -> None:
    """Become the parent of the server's own children when it dies before them (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    """In the server, before it starts: default signals, and no life without the supervisor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Ask the server to end, wait for its in-flight work, and kill it when it does not."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def kill_group(group: int) -> None:
    """Kill and reap what is left of the server's process group: its Python stubs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def remove_files(run_folder: Path) -> None:
    """Remove a server's run folder and its shared-memory files, which bear the folder's name."""
    if SHARED_MEMORY.is_dir():
        for region in SHARED_MEMORY.glob(f"{run_folder.name}-*"):
            region.unlink(missing_ok=True)
    shutil.rmtree(run_folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
