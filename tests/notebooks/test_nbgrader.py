"""The way of docs/grading.md to run the lab under nbgrader: a workspace for each student."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.workspace import project_root, read_json


@pytest.mark.timeout(300)
def test_each_student_has_a_workspace(tmp_path: Path) -> None:
    """nbgrader autograde executes a submission by nbconvert, as here, in its own folder."""
    for student in ("ada", "bob"):
        folder = tmp_path / "submitted" / student / "lab"
        folder.mkdir(parents=True)
        shutil.copy(project_root() / "notebooks" / "01_data.ipynb", folder)
        workspace = tmp_path / student
        subprocess.run(
            [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace",
             folder / "01_data.ipynb"],
            env=os.environ | {"LABKIT_WORKSPACE": str(workspace), "LABKIT_PROFILE": "smoke"},
            check=True,
        )  # fmt: skip
        splits = read_json(workspace / "artifacts" / "splits.json")["indices"]
        assert len(splits["train"]) == 44_000
        assert [path.name for path in folder.iterdir()] == ["01_data.ipynb"]
