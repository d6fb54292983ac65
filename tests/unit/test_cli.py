"""The command line: exit codes that mean something, errors in one sentence."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from labkit import chain, cli, download
from labkit.repository import VARIANTS, write_config
from labkit.workspace import project_root


def labkit(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "labkit", *arguments],
        cwd=cwd or project_root(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_lists_every_command() -> None:
    result = labkit("--help")
    assert result.returncode == 0
    for command in ("doctor", "data", "run", "serve", "check", "report", "lab"):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--profile", "fast"], 2, "profile 'fast' does not exist"),
        (["run", "--from", "12"], 2, "stage '12' does not exist"),
        (["run", "--unknown"], 2, "No such option"),
        (["serve", "nowhere"], 1, "nowhere"),
        (["report", "--out", "nowhere"], 1, "is not a run: it has no manifest.json"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], code: int, message: str) -> None:
    result = labkit(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_check_exits_1_on_errors_and_0_without(tmp_path: Path) -> None:
    empty = labkit("check", str(tmp_path))
    assert empty.returncode == 1
    assert "holds no model" in empty.stdout
    spec = VARIANTS["cifar10_tensorrt"]  # a plan does not tell its tensors
    write_config(tmp_path, spec)
    (tmp_path / spec.name / "1").mkdir()
    (tmp_path / spec.name / "1" / "model.plan").write_bytes(b"plan")
    good = labkit("check", str(tmp_path))
    assert good.returncode == 0, good.stdout
    assert "0 errors" in good.stdout


def test_serve_says_which_notebooks_make_the_models(tmp_path: Path) -> None:
    write_config(tmp_path, VARIANTS["cifar10_onnx"])
    result = labkit("serve", str(tmp_path))
    assert result.returncode == 1
    assert "left out, no model file yet: cifar10_onnx" in result.stdout
    assert "run notebooks 01 to 05" in result.stderr


def test_a_run_outside_the_checkout_says_how_its_python_model_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = SimpleNamespace(stage="08_report", status="passed", reason="", seconds=1.0)
    monkeypatch.setattr("labkit.chain.run_chain", lambda *_, **__: [last])
    monkeypatch.setattr("labkit.download.fetch", lambda: None)
    cli.run("smoke", None, tmp_path / "run")
    assert "run/model_repository --allow-python-models\n" in capsys.readouterr().out
    monkeypatch.setattr("labkit.repository_safety.own_repository", lambda repository: True)
    cli.run("smoke", None, tmp_path / "run")
    assert "run/model_repository\n" in capsys.readouterr().out


def test_importing_labkit_does_nothing(tmp_path: Path) -> None:
    code = "import labkit, sys; print(sorted(m for m in sys.modules if m.startswith('torch')))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("timed_out", "verdict", "advice"),
    [
        (True, "02_train took longer than 300 s", "if the machine was busy, go on with: "),
        (False, "02_train failed after 300 s: took longer", "mend it, then go on with: "),
    ],
)
def test_a_slow_notebook_has_nothing_to_mend(
    timed_out: bool, verdict: str, advice: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    last = chain.StageResult(
        "02_train", "failed", "took longer than 300 s", 300.0, "e", "l", timed_out=timed_out
    )
    monkeypatch.setattr(chain, "run_chain", lambda *arguments, **more: [last])
    monkeypatch.setattr(download, "fetch", lambda: None)
    monkeypatch.chdir(project_root())
    with pytest.raises(typer.Exit):
        cli.run("smoke", "02", tmp_path)
    said = capsys.readouterr().out
    assert verdict in said
    labkit_here = os.path.relpath(Path(sys.executable).with_name("labkit"))
    assert f"{advice}{labkit_here} run --profile smoke --from 02 --out" in said
