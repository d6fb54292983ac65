"""The whole lab headless, on stand-ins; nbval runs the same notebooks natively."""

import os
import subprocess
import sys

import pytest

from labkit.grading.carry_forward import Reference, reference_folder
from labkit.workspace import project_root


@pytest.mark.timeout(1_800)
def test_the_smoke_chain_runs_on_real_data() -> None:
    """The run is left where gradings look for their reference, so that their tests find one."""
    folder = reference_folder("smoke")
    command = [sys.executable, "-m", "labkit", "run", "--profile", "smoke", "--out", str(folder)]
    result = subprocess.run(
        command,
        cwd=project_root(),
        env=os.environ | {"LABKIT_RUNTIME": "stand-in"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4_000:] + result.stderr[-2_000:]
    assert "9 notebooks passed" in result.stdout
    assert (folder / "artifacts" / "report.html").is_file()
    Reference.of(folder, "smoke")
