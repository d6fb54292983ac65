"""The whole lab headless, on stand-ins; nbval runs the same notebooks natively."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labkit.chain import STAGES
from labkit.grading.carry_forward import Reference, reference_folder
from labkit.workspace import Workspace, project_root


@pytest.fixture(scope="module")
def chain() -> tuple["subprocess.CompletedProcess[str]", Workspace]:
    """The run is left where gradings look for their reference, so that their tests find one."""
    folder = reference_folder("smoke")
    command = [sys.executable, "-m", "labkit", "run", "--profile", "smoke", "--out", str(folder)]
    environment = os.environ | {"LABKIT_RUNTIME": "stand-in"}
    result = subprocess.run(
        command, cwd=project_root(), env=environment, capture_output=True, text=True, check=False
    )
    return result, Workspace.at(folder)


def marked_outputs(path: Path) -> dict[str, list[str]]:
    """Return what the cells show that nbval compares, with what it takes as equal."""
    same = configparser.ConfigParser()
    same.read(Path(__file__).parent / "sanitize.cfg")
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if "nbval-check-output" in cell.metadata.get("tags", ()):
            printed = [o.text for o in cell.outputs if o.get("name") == "stdout"]
            texts = ["".join(printed)]
            texts += [o.data.get("text/plain", "") for o in cell.outputs if "data" in o]
            for name in same.sections():
                regex, replace = same[name]["regex"], same[name]["replace"]
                texts = [re.sub(regex, replace, text) for text in texts]
            found[cell.id] = texts
    return found


@pytest.mark.timeout(1_800)
def test_the_smoke_chain_runs_on_real_data(
    chain: tuple["subprocess.CompletedProcess[str]", Workspace],
) -> None:
    result, workspace = chain
    assert result.returncode == 0, result.stdout[-4_000:] + result.stderr[-2_000:]
    assert "9 notebooks passed" in result.stdout
    assert workspace.path("report.html").is_file()
    Reference.of(workspace.root, "smoke")


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("stage", STAGES)
def test_marked_outputs_are_the_same_on_stand_ins(
    chain: tuple["subprocess.CompletedProcess[str]", Workspace], stage: str
) -> None:
    """The committed ones were made natively, and nbval compares them with such a run."""
    committed = marked_outputs(project_root() / "notebooks" / f"{stage}.ipynb")
    assert committed
    assert marked_outputs(chain[1].executed / f"{stage}.ipynb") == committed
