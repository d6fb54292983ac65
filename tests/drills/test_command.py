"""`labkit drills`: what it does where there is no run, and where nothing can be measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

import labkit.chain
import labkit.download
import labkit.operate.drills as drills_module
from labkit.operate.commands import _model
from labkit.operate.drills import NoRun, NotMeasured, find_drills


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The notebooks, which are not run here; `find_model` finds a model once they were."""
    ran: list[Path] = []

    def find_model(run: Path | None = None) -> Path:
        if run is None or not ran:
            raise NoRun("no run has a model")
        return tmp_path / "model"

    def run_chain(workspace: Any, profile: str, on_result: Any) -> list[Any]:
        ran.append(workspace.root)
        last = SimpleNamespace(stage="08_report", status="passed", reason="")
        on_result(last)
        return [last]

    monkeypatch.setattr(drills_module, "find_model", find_model)
    monkeypatch.setattr(labkit.chain, "run_chain", run_chain)
    monkeypatch.setattr(labkit.download, "fetch", lambda: None)
    return ran


def test_without_any_run_the_notebooks_run_first(chain: list[Path], tmp_path: Path) -> None:
    """A fresh checkout: `make drills` is one command."""
    assert _model(None) == tmp_path / "model"
    assert [path.name for path in chain] == ["smoke"]


def test_a_run_that_was_named_is_not_made(chain: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NoRun):
        _model(tmp_path / "mine")
    assert chain == []


def test_nothing_measured_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_folder: Path
) -> None:
    from labkit.operate.commands import app

    def cannot(lab: Any) -> NoReturn:
        raise NotMeasured("there is no nginx")

    [drill] = find_drills(["overload"])
    monkeypatch.setattr(
        drills_module, "find_drills", lambda names: [type(drill)(drill.name, drill.title, cannot)]
    )
    ran = CliRunner().invoke(app, ["--run", str(run_folder), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 1
    assert "nothing was measured" in ran.output
    assert "there is no nginx" in ran.output
