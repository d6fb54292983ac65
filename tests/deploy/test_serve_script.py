"""docker/serve.sh against a stand-in for the server that prints its arguments."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "serve.sh"


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A folder with an empty repository, a place for links and a fake tritonserver."""
    for name in ("repository", "models", "bin"):
        (tmp_path / name).mkdir()
    server = tmp_path / "bin" / "tritonserver"
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    return tmp_path


def add_model(box: Path, name: str, version: str | None, file: str | None = "model.onnx") -> None:
    folder = box / "repository" / name
    folder.mkdir()
    (folder / "config.pbtxt").write_text("")
    if version is not None:
        (folder / version).mkdir()
        if file is not None:
            (folder / version / file).write_text("")


def serve(box: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments],
        env={
            "PATH": f"{box / 'bin'}:/usr/bin:/bin",
            "REPOSITORY": str(box / "repository"),
            "MODELS": str(box / "models"),
        },
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def without_password(arguments: str) -> str:
    return re.sub(r"(lab-operator=)[0-9a-f]{64}", r"\1", arguments)


def test_only_complete_models_are_served(box: Path) -> None:
    add_model(box, "complete", "1")
    add_model(box, "two words", "12")
    add_model(box, "no_version", None)
    add_model(box, "empty_version", "1", file=None)
    add_model(box, "only_configs", "configs", "tuned.pbtxt")
    done = serve(box)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (box / "models").iterdir()) == ["complete", "two words"]
    assert (box / "models" / "complete" / "1" / "model.onnx").is_file()
    for name in ("no_version", "empty_version", "only_configs"):
        assert f"left out, no model file yet: {name}" in done.stderr


def test_a_model_in_a_folder_of_files_is_served(box: Path) -> None:
    # Python-based and multi-file models keep their files one level down.
    add_model(box, "nested", "1", file=None)
    (box / "repository" / "nested" / "1" / "model.savedmodel").mkdir()
    (box / "repository" / "nested" / "1" / "model.savedmodel" / "weights").write_text("")
    assert serve(box).returncode == 0
    assert (box / "models" / "nested").is_symlink()


def test_started_twice_it_serves_the_same(box: Path) -> None:
    add_model(box, "complete", "1")
    first, second = (without_password(serve(box).stdout) for _ in range(2))
    assert first == second
    assert [path.name for path in (box / "repository" / "complete").iterdir()].count(
        "complete"
    ) == 0


def test_an_empty_repository_is_one_sentence(box: Path) -> None:
    assert serve(box).returncode == 1
    add_model(box, "no_version", None)
    done = serve(box)
    assert done.returncode == 1
    assert "nothing to serve" in done.stderr
    assert done.stdout == ""


def test_the_server_cannot_be_told_to_load_models(box: Path) -> None:
    add_model(box, "complete", "1")
    arguments = serve(box, "--log-verbose=1").stdout.splitlines()
    assert "--model-control-mode=none" in arguments
    assert "--exit-timeout-secs=20" in arguments
    assert arguments[-1] == "--log-verbose=1"


def test_calls_that_change_the_server_ask_for_a_password_that_nobody_knows(box: Path) -> None:
    add_model(box, "complete", "1")
    first, second = (serve(box).stdout.splitlines() for _ in range(2))
    for flag in ("--http-restricted-api=", "--grpc-restricted-protocol="):
        values = [
            next(line for line in arguments if line.startswith(flag)).removeprefix(flag)
            for arguments in (first, second)
        ]
        pattern = r"model-repository,shared-memory,trace,logging:lab-operator=[0-9a-f]{64}"
        assert all(re.fullmatch(pattern, value) for value in values)
        assert values[0] != values[1]
