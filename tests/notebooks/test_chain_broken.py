"""The chain must not be fooled: tiny notebooks, each broken in its own way, run for real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest

from labkit import chain
from labkit.chain import FAILED, PASSED, UnknownStage, UnsafePath, run_chain, stages_from
from labkit.checks import CheckResult
from labkit.workspace import Workspace, read_json

STAGE = "01_data"
GOOD = "print('step 1')"


def write_notebook(folder: Path, *cells: str, tag: bool = True, name: str = STAGE) -> None:
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell('profile = "standard"\nworkspace = "runs/lab"')
    parameters.metadata["tags"] = ["parameters"] if tag else []
    notebook.cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "run")


@pytest.fixture(autouse=True)
def no_stage_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifacts are another test's; here only the notebook is judged."""
    monkeypatch.setattr(chain, "check_stage", lambda stage, workspace, profile: [])


def run_one(tmp_path: Path, workspace: Workspace, limit_s: float = 60) -> chain.StageResult:
    results = run_chain(workspace, "smoke", (STAGE,), tmp_path / "notebooks", wall_limit_s=limit_s)
    assert len(results) == 1
    return results[0]


def test_a_good_notebook_passes_with_its_parameters(tmp_path: Path, workspace: Workspace) -> None:
    write_notebook(tmp_path / "notebooks", "print(profile, workspace)")
    result = run_one(tmp_path, workspace)
    assert result.status == PASSED, result.reason
    executed = nbformat.read(result.notebook, as_version=4)
    assert executed.cells[-1].outputs[0].text == f"smoke {workspace.root}\n"
    run = read_json(workspace.root / "run.json")
    assert run["profile"] == "smoke"
    assert run["stages"][0]["status"] == PASSED
    assert run["stages"][0]["seconds"] > 0
    assert run["environment"]["cores"] >= 1


def test_an_error_names_cell_and_error_and_keeps_the_notebook(
    tmp_path: Path, workspace: Workspace
) -> None:
    write_notebook(tmp_path / "notebooks", GOOD, "1 / 0", "print('never')")
    result = run_one(tmp_path, workspace)
    assert result.status == FAILED
    assert "ZeroDivisionError: division by zero" in result.reason
    assert "code cell 4 of 5" in result.reason  # papermill has put its parameters before
    assert "`1 / 0`" in result.reason
    assert "step 1" in Path(result.notebook).read_text()
    assert "ZeroDivisionError" in Path(result.log).read_text()


@pytest.mark.parametrize(
    "fault",
    [
        "import sys; sys.exit(0)",  # papermill's exit code is 0
        "import os; os._exit(0)",  # metadata says every cell completed
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_leaving_the_kernel_is_no_success(tmp_path: Path, workspace: Workspace, fault: str) -> None:
    write_notebook(tmp_path / "notebooks", GOOD, fault, "print('never')")
    result = run_one(tmp_path, workspace)
    assert result.status == FAILED
    assert "did not run" in result.reason or "SystemExit" in result.reason


def test_an_endless_cell_is_stopped_with_everything_it_started(
    tmp_path: Path, workspace: Workspace
) -> None:
    pid_file = tmp_path / "pid"
    write_notebook(
        tmp_path / "notebooks",
        "import subprocess, time, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "while True:\n"
        "    try:\n        time.sleep(1)\n"
        "    except KeyboardInterrupt:\n        pass",
    )
    begin = time.monotonic()
    result = run_one(tmp_path, workspace, limit_s=15)
    assert result.status == FAILED
    assert result.timed_out
    assert result.reason == (
        "took longer than 15 s: it was in code cell 3 of 3 (`import subprocess, time, pathlib`)"
    )
    assert time.monotonic() - begin < 40
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_what_a_notebook_left_in_the_background_is_stopped(
    tmp_path: Path, workspace: Workspace
) -> None:
    pid_file = tmp_path / "pid"
    write_notebook(
        tmp_path / "notebooks",
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))",
    )
    assert run_one(tmp_path, workspace).status == PASSED
    assert not running(int(pid_file.read_text()))


def test_a_resumed_run_keeps_the_earlier_stages(tmp_path: Path, workspace: Workspace) -> None:
    write_notebook(tmp_path / "notebooks", GOOD)
    write_notebook(tmp_path / "notebooks", GOOD, name="02_train")
    run_chain(workspace, "smoke", (STAGE, "02_train"), tmp_path / "notebooks")
    run_chain(workspace, "smoke", ("02_train",), tmp_path / "notebooks")
    stages = read_json(workspace.root / "run.json")["stages"]
    assert [entry["stage"] for entry in stages] == [STAGE, "02_train"]


def test_a_half_written_notebook_is_a_verdict_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    assert "cannot be read" in chain.cell_failure(tmp_path / "half.ipynb")


def test_a_lost_parameters_tag_is_a_failure(tmp_path: Path, workspace: Workspace) -> None:
    write_notebook(tmp_path / "notebooks", GOOD, tag=False)
    result = run_one(tmp_path, workspace)
    assert result.status == FAILED
    assert "0 cells tagged `parameters`, expected one" in result.reason


def test_a_missing_and_an_invalid_notebook(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "notebooks").mkdir()
    assert "01_data.ipynb is missing" in run_one(tmp_path, workspace).reason
    (tmp_path / "notebooks" / f"{STAGE}.ipynb").write_text("{")
    assert "not a valid notebook" in run_one(tmp_path, workspace).reason


def test_evidence_of_an_earlier_run_does_not_count(tmp_path: Path, workspace: Workspace) -> None:
    write_notebook(tmp_path / "notebooks", GOOD)
    assert run_one(tmp_path, workspace).status == PASSED
    (tmp_path / "notebooks" / f"{STAGE}.ipynb").unlink()
    assert run_one(tmp_path, workspace).status == FAILED


def test_files_that_fail_their_check_fail_the_stage(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = CheckResult("split sizes", False, "{}", "see make_splits")
    monkeypatch.setattr(chain, "check_stage", lambda *arguments: [failed])
    write_notebook(tmp_path / "notebooks", GOOD)
    result = run_one(tmp_path, workspace)
    assert result.status == FAILED
    assert result.reason == "split sizes: {} (see make_splits)"


def test_the_chain_stops_at_the_first_failure(tmp_path: Path, workspace: Workspace) -> None:
    write_notebook(tmp_path / "notebooks", "1 / 0")
    write_notebook(tmp_path / "notebooks", GOOD, name="02_train")
    results = run_chain(workspace, "smoke", (STAGE, "02_train"), tmp_path / "notebooks")
    assert [result.stage for result in results] == [STAGE]


def test_the_environment_does_not_override_the_chain(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_PROFILE", "full")
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path / "elsewhere"))
    write_notebook(tmp_path / "notebooks", "import os; assert 'LABKIT_PROFILE' not in os.environ")
    assert run_one(tmp_path, workspace).status == PASSED
    assert read_json(workspace.root / "run.json")["profile"] == "smoke"


def test_braces_in_a_path_are_refused_because_papermill_formats_them(tmp_path: Path) -> None:
    with pytest.raises(UnsafePath, match="formats braces"):
        run_chain(Workspace.at(tmp_path / "{x}"), "smoke", (STAGE,), tmp_path)


def test_resuming_starts_at_the_named_notebook() -> None:
    assert stages_from(None) == chain.STAGES
    for name in ("03", "3", "03_export"):
        assert stages_from(name)[0] == "03_export"
    for name in ("9", "03_wrong", "export"):
        with pytest.raises(UnknownStage, match="choose one of: 01_data"):
            stages_from(name)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A chain in a process of its own, in the middle of an endless cell."""
    ready = tmp_path / "ready"
    write_notebook(
        tmp_path / "notebooks",
        f"import os, pathlib, time\npathlib.Path({str(ready)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)",
    )
    code = (
        "import pathlib\nfrom labkit.chain import run_chain\n"
        "from labkit.workspace import Workspace\n"
        f"run_chain(Workspace.at({str(tmp_path / 'run')!r}), 'smoke', ('{STAGE}',), "
        f"pathlib.Path({str(tmp_path / 'notebooks')!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: ready.is_file() and ready.read_text().isdecimal(), 60)
    yield child
    child.kill()
    child.wait()


def wait_for(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_kernel_outlives_the_chain(
    tmp_path: Path, runner: "subprocess.Popen[bytes]", how: signal.Signals
) -> None:
    kernel = int((tmp_path / "ready").read_text())
    papermill = [child.pid for child in psutil.Process(runner.pid).children()]
    assert papermill
    os.kill(runner.pid, how)
    wait_for(lambda: not any(map(running, [kernel, *papermill])), 30)


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_run_json_is_valid_json_after_a_failure(tmp_path: Path, workspace: Workspace) -> None:
    write_notebook(tmp_path / "notebooks", "1 / 0")
    run_one(tmp_path, workspace)
    run = json.loads((workspace.root / "run.json").read_text())
    assert run["stages"][0]["reason"]
