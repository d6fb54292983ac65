"""The committed notebooks: outputs stored, cells short, and CI's comparison really compares."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from labkit.chain import PRACTICE, STAGES
from labkit.workspace import project_root

FOLDER = project_root() / "notebooks"
NAMES = (*STAGES, *PRACTICE)
PATHS = [FOLDER / f"{name}.ipynb" for name in NAMES]
CHECKED = "NBVAL_CHECK_OUTPUT"


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, project_root() / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


notebooks = pytest.mark.parametrize("path", PATHS, ids=NAMES)


@notebooks
def test_outputs_are_stored_and_clean(path: Path) -> None:
    """nbval compares nothing where nothing is stored, so an unexecuted notebook must fail here."""
    assert load_tool("execute_notebooks").flaws(read(path)) == []


@notebooks
def test_deterministic_cells_are_marked_for_comparison(path: Path) -> None:
    marked = [cell for cell in code_cells(read(path)) if CHECKED in cell.source]
    assert marked
    assert all(cell.outputs for cell in marked), "a marked cell without output compares nothing"


@notebooks
def test_the_parameters_are_literals_with_the_lab_as_default(path: Path) -> None:
    tagged = [c for c in code_cells(read(path)) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    values: dict[str, str] = {}
    exec(tagged[0].source, values)
    assert (values["profile"], values["workspace"]) == ("standard", "runs/lab")


@notebooks
def test_cells_are_short_and_have_prose(path: Path) -> None:
    notebook = read(path)
    lengths = {c.id: len(c.source.splitlines()) for c in code_cells(notebook)}
    assert lengths.pop("imports") <= 20
    assert {cell: n for cell, n in lengths.items() if n > 12} == {}
    assert len(notebook.cells) <= 50
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    for word in ("Goals", "reads", "writes"):
        assert word in notebook.cells[0].source


@notebooks
def test_exercises_can_be_released_and_graded(path: Path) -> None:
    """nbgrader's schema 3: ids unique, a check after each solution, markers in pairs."""
    cells = code_cells(read(path))
    graded = [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]
    ids = [entry["grade_id"] for entry in graded]
    assert len(ids) == len(set(ids))
    assert all(entry["schema_version"] == 3 for entry in graded)
    solutions = [c for c in cells if c.metadata.get("nbgrader", {}).get("solution")]
    assert len(solutions) >= 1
    for cell in solutions:
        assert cell.source.count("### BEGIN SOLUTION") == cell.source.count("### END SOLUTION") >= 1
    assert sum(entry["grade"] for entry in graded) >= len(solutions)
    unmarked = [c.id for c in cells if "### BEGIN SOLUTION" in c.source and c not in solutions]
    assert unmarked == []


def nbval(folder: Path, workspace: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LABKIT_PROFILE": "smoke", "LABKIT_WORKSPACE": str(workspace)}
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env"]
    command += ["--nbval-cell-timeout", "240", "-p", "no:cacheprovider", "-q", "--timeout", "600"]
    command += ["--nbval-sanitize-with", str(project_root() / "tests/notebooks/sanitize.cfg")]
    return subprocess.run(
        [*command, *names], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(900)
def test_all_notebooks_run_and_repeat_their_marked_outputs(tmp_path: Path) -> None:
    """nbval on every notebook, in order, in `smoke`: a failing cell or a changed output fails."""
    result = nbval(FOLDER, tmp_path / "run", *[path.name for path in PATHS])
    assert result.returncode == 0, result.stdout[-6_000:] + result.stderr[-2_000:]
    cells = sum(len(code_cells(read(path))) for path in PATHS)
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) == cells, result.stdout[-1_000:]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell(f"# {CHECKED}\nprint(6 * 7)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="42\n")]
    notebook.cells = [cell]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    return tmp_path


def test_a_sound_notebook_passes_nbval(tiny: Path) -> None:
    assert nbval(tiny, tiny, "tiny.ipynb").returncode == 0


@pytest.mark.parametrize("fault", ["print(6 * 8)", "1 / 0", "import sys; sys.exit(0)"])
def test_a_broken_notebook_really_fails_nbval(tiny: Path, fault: str) -> None:
    notebook = read(tiny / "tiny.ipynb")
    notebook.cells[0].source = f"# {CHECKED}\n{fault}"
    nbformat.write(notebook, tiny / "tiny.ipynb")
    assert nbval(tiny, tiny, "tiny.ipynb").returncode != 0


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("saved to /home/ada/lab/model.onnx", "an absolute path"),
        ("UserWarning: deprecated", "a warning"),
        (" 50%|#####     | 5/10", "a progress bar"),
    ],
)
def test_unwanted_outputs_are_found(tiny: Path, text: str, flaw: str) -> None:
    notebook = read(tiny / "tiny.ipynb")
    notebook.cells[0].outputs[0].text = text
    found = load_tool("execute_notebooks").flaws(notebook)
    assert [line.split(": ", 1)[1] for line in found] == [flaw]


def test_an_unexecuted_notebook_is_found(tiny: Path) -> None:
    notebook = read(tiny / "tiny.ipynb")
    notebook.cells[0].execution_count = None
    found = load_tool("execute_notebooks").flaws(notebook)
    assert found == [f"{notebook.cells[0].id}: was not executed"]


@pytest.mark.timeout(900)
def test_the_smoke_chain_runs_on_real_data(tmp_path: Path) -> None:
    """`labkit run --profile smoke`, the whole lab, as an instructor starts it."""
    command = [sys.executable, "-m", "labkit", "run", "--profile", "smoke"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        cwd=project_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4_000:] + result.stderr[-2_000:]
    assert "8 notebooks passed" in result.stdout
    assert (tmp_path / "run" / "artifacts" / "report.html").is_file()
    shutil.rmtree(tmp_path / "run")
