"""Every user of a machine can read every process's command line: none may hold the environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from labkit.workspace import project_root

SECRET = "a-token-that-only-its-owner-may-see"
LIMIT_S = 240


@pytest.mark.sandbox
def test_no_process_of_the_grader_shows_a_variable_of_the_environment(
    reference: Path, tmp_path: Path
) -> None:
    student = tmp_path / "class" / "ada"
    student.mkdir(parents=True)
    shutil.copy(project_root() / "notebooks" / "01_data.ipynb", student)
    command = [sys.executable, "-m", "labkit", "grade", str(tmp_path / "class")]
    command += ["--out", str(tmp_path / "grades"), "--reference", str(reference)]
    seen: set[str] = set()
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            command, env=os.environ | {"LABKIT_TEST_SECRET": SECRET}, stdout=log, stderr=log
        ) as process,
    ):
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            for one in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    seen.add(" ".join(one.cmdline()))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        process.kill()
    assert process.returncode == 0, (tmp_path / "log").read_text()
    lines = "\n".join(sorted(seen))
    for part in ("labkit.grading.classroom", "bwrap", "ipykernel"):
        assert part in lines, f"{part} was not seen among\n{lines}"
    assert SECRET not in lines
