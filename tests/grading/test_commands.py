"""The instructor's commands: wrong input is one sentence, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_notebook

from labkit.workspace import project_root


def labkit(*arguments: object) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "labkit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=project_root(),
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def classroom(tmp_path: Path) -> Path:
    write_notebook(tmp_path / "class" / "ada", "01_data", "print(1)")
    return tmp_path / "class"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "eve"], "--only eve, expected one of: ada"),
        (["--profile", "huge"], "'huge' does not exist"),
        (["--rubric", "nowhere.toml"], "rubric nowhere.toml cannot be read"),
        (["--roster", "nowhere.csv"], "nowhere.csv"),
        (["--isolation", "hope"], "'hope'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options(classroom: Path, tmp_path: Path, options: list[str], words: str) -> None:
    status, said = labkit("grade", classroom, "--out", tmp_path / "grades", *options)
    assert status in (1, 2)
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "grades").exists()


def test_submissions_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        status, said = labkit("grade", tmp_path / folder, "--out", tmp_path / "grades")
        assert status != 0
        assert folder in said
        assert "Traceback" not in said


def test_regrade_needs_a_grading(tmp_path: Path) -> None:
    status, said = labkit("regrade", tmp_path)
    assert status == 2
    assert "is no grading" in said


def test_a_release_is_not_written_over_something(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    status, said = labkit("release", tmp_path)
    assert status != 0
    assert "Traceback" not in said
    assert (tmp_path / "note.txt").read_text() == "mine"
