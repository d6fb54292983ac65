"""tools/try_system.sh, which is run by hand: what it says where it cannot start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "try_system.sh"


def run(*arguments: str, path: str = "/usr/bin:/bin") -> tuple[int, list[str]]:
    done = subprocess.run(
        ["/bin/sh", SCRIPT, *arguments],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    "arguments", [(), ("buster",), ("trixie", "--wth", "g++"), ("trixie", "--with")]
)
def test_a_wrong_argument_is_one_sentence_with_the_right_ones(arguments: tuple[str, ...]) -> None:
    status, (said,) = run(*arguments)
    assert status == 2
    assert "got " in said and "usage: tools/try_system.sh bookworm|trixie" in said


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "git").symlink_to("/bin/true")
    status, (said,) = run("trixie", path=str(tmp_path))
    assert status == 2
    assert "missing here: mmdebstrap bwrap setpriv python3;" in said
    assert "apt-get install mmdebstrap" in said
