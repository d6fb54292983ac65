"""JupyterLab on the lab's notebooks, with this environment's own kernel."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from labkit.errors import LabError

FIRST_NOTEBOOK = "notebooks/01_data.ipynb"
STOP_TIMEOUT_S = 20.0


class JupyterError(LabError):
    """JupyterLab cannot be started."""


def lab_command(
    project_root: Path, port: int | None = None, open_browser: bool = True
) -> list[str]:
    """Return the command that serves the project's folder with JupyterLab.

    It listens on the loopback interface only and keeps Jupyter's token: whoever reaches a
    JupyterLab can run any program as its user.

    Args:
        project_root: The folder with `notebooks/`.
        port: The port to use, or fail; None takes 8888 or the next free one.
        open_browser: Whether JupyterLab opens a browser window itself.
    """
    command = [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={project_root}",
        "--ServerApp.ip=127.0.0.1",
        f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}",
        # A course room may have no network: ask nobody about news and updates.
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
        "--ServerApp.answer_yes=True",  # Ctrl-C stops at once
    ]
    if port is not None:
        command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    if not open_browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # containers; the token still guards the loopback port
    return command


def start_lab(project_root: Path, port: int | None = None, open_browser: bool = True) -> int:
    """Run JupyterLab until it is stopped; return its exit status.

    Raises:
        JupyterError: there are no notebooks below `project_root`.
    """
    if not (project_root / "notebooks").is_dir():
        raise JupyterError(
            f"there is no folder notebooks/ in {project_root}: "
            "start `labkit lab` inside the project"
        )
    process = subprocess.Popen(lab_command(project_root, port, open_browser), cwd=project_root)
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has told JupyterLab as well
        return 0
    finally:
        _stop(process)
        signal.signal(signal.SIGTERM, previous)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Give JupyterLab time to end its kernels, then insist."""
    try:
        process.wait(timeout=STOP_TIMEOUT_S / 2)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=STOP_TIMEOUT_S / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
