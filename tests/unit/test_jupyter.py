"""The command that starts JupyterLab; tests/browser starts it for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from labkit import jupyter


def test_it_listens_on_loopback_and_keeps_the_token(tmp_path: Path) -> None:
    for command in (jupyter.lab_command(tmp_path), jupyter.lab_command(tmp_path, 9000, False)):
        assert command[0] == sys.executable
        assert "--ServerApp.ip=127.0.0.1" in command
        text = " ".join(command).lower()
        assert not any(word in text for word in ("token", "password", "disable_check_xsrf"))


def test_a_named_port_is_used_or_refused(tmp_path: Path) -> None:
    command = jupyter.lab_command(tmp_path, 9000)
    assert {"--ServerApp.port=9000", "--ServerApp.port_retries=0"} <= set(command)
    assert not any("port=" in part for part in jupyter.lab_command(tmp_path))


def test_root_is_allowed_only_where_we_are_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--allow-root" not in jupyter.lab_command(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-root" in jupyter.lab_command(tmp_path)


def test_outside_the_project_it_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(jupyter.JupyterError, match="inside the project"):
        jupyter.start_lab(tmp_path)


def test_its_exit_status_is_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    monkeypatch.setattr(jupyter, "lab_command", lambda *arguments: command)
    assert jupyter.start_lab(tmp_path) == 7


def test_when_it_is_terminated_jupyterlab_goes_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "notebooks").mkdir()
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    begun = time.monotonic()
    assert jupyter.start_lab(tmp_path) == -signal.SIGTERM
    assert time.monotonic() - begun < 30
    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGTERM) is before
