"""The student edition: complete, working, and without a trace of solutions or grader."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from solve import solve_notebook

from labkit.chain import FAILED, PRACTICE, STAGES, run_chain
from labkit.grading import release as module
from labkit.grading.release import TARGETS, ReleaseReport, release, student_makefile
from labkit.grading.student_notebook import ReleaseError, release_notebook
from labkit.workspace import Workspace, project_root

ROOT = project_root()
NOTEBOOKS = (*STAGES, *PRACTICE)
REGION = re.compile(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", re.DOTALL)

each_notebook = pytest.mark.parametrize("stage", NOTEBOOKS)


def solved(stage: str) -> NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4)


def exercises(notebook: NotebookNode) -> dict[str, NotebookNode]:
    entries = [(cell.metadata.get("nbgrader", {}), cell) for cell in notebook.cells]
    return {entry["grade_id"]: cell for entry, cell in entries if entry.get("solution")}


def solution_lines(cell: NotebookNode) -> list[str]:
    return [line.strip() for part in REGION.findall(cell.source) for line in part.split("\n")]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def texts_of(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in files_of(folder)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReleaseReport:
    return release(tmp_path_factory.mktemp("release") / "student")


@pytest.fixture(scope="module")
def edition(report: ReleaseReport) -> Path:
    return report.folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project that is no git checkout, with what lies about after work."""
    copy = tmp_path / "project"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "runs", "__pycache__", ".*_cache", "*.egg-info", "1"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name in (
        "labkit/__pycache__/cli.cpython-312.pyc",
        "labkit/.ipynb_checkpoints/cli-checkpoint.py",
        "labkit/grading/answers.py",
        "docker/.env.local",
        "model_repository/cifar10_onnx/1/model.onnx",
        "model_repository/cifar10_onnx/configs/tuned.pbtxt",
        "model_repository/cifar10_pipeline/config.pbtxt",
        "notebooks/scratch.ipynb",
        "runs/lab/artifacts/model.pt",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("private")
    return copy


# Notebooks


@each_notebook
def test_a_released_notebook_has_stubs_where_the_solutions_were(stage: str) -> None:
    before = solved(stage)
    released = release_notebook(before)
    outside = "\n".join(REGION.sub("", cell.source) for cell in before.cells)
    after = "\n".join(cell.source for cell in released.cells)
    assert "SOLUTION" not in after
    assert exercises(before)
    for cell in exercises(before).values():
        own = [line for line in solution_lines(cell) if len(line) > 4 and line not in outside]
        assert own, "a solution without a line of its own proves nothing"
        assert [line for line in own if line in after] == []


@each_notebook
def test_the_contract_stands(stage: str) -> None:
    before, after = exercises(solved(stage)), exercises(release_notebook(solved(stage)))
    assert list(before) == list(after)
    for name, cell in after.items():
        head, within, tail = re.split(
            r"^( +)### BEGIN SOLUTION\n.*### END SOLUTION", before[name].source, flags=re.M | re.S
        )
        function = re.findall(r"^ *def (\w+)", head, re.MULTILINE)[-1]
        stub = (
            f'# YOUR CODE HERE\n{within}raise NotImplementedError("{function} is not written yet")'
        )
        assert cell.source == f"{head}{within}{stub}{tail}"


@each_notebook
def test_everything_but_solutions_and_outputs_is_as_before(stage: str) -> None:
    before = solved(stage)
    released = release_notebook(before)
    nbformat.validate(released)
    assert [cell.id for cell in released.cells] == [cell.id for cell in before.cells]
    for old, new in zip(before.cells, released.cells, strict=True):
        assert new.metadata.get("nbgrader") == old.metadata.get("nbgrader")
        assert new.metadata.get("tags") == old.metadata.get("tags")
        assert "lines_to_next_cell" not in new.metadata
        if not old.metadata.get("nbgrader", {}).get("solution"):
            assert new.source == old.source
        if new.cell_type == "code":
            assert (new.outputs, new.execution_count) == ([], None)
    assert any(cell.get("outputs") for cell in before.cells), "the argument was changed"
    assert set(released.metadata) == {"kernelspec", "language_info"}


@each_notebook
def test_solutions_can_be_put_back(stage: str) -> None:
    before = solved(stage)
    released = release_notebook(before)
    again = solve_notebook(released, before)
    assert [cell.source for cell in again.cells] == [cell.source for cell in before.cells]
    assert [cell.metadata for cell in again.cells] == [cell.metadata for cell in released.cells]
    assert not any(cell.get("outputs") for cell in again.cells)
    assert "NotImplementedError" in "".join(cell.source for cell in released.cells)


def test_a_solved_notebook_of_another_stage_is_refused() -> None:
    with pytest.raises(ReleaseError, match="no cell with the grade_id ex-01-leak, ex-01-stat"):
        solve_notebook(release_notebook(solved("01_data")), solved("02_train"))


BEGIN, END = "    ### BEGIN SOLUTION", "    ### END SOLUTION"
SOLUTION = f'def half(x):\n    """Contract."""\n{BEGIN}\n    return x / 2\n{END}'


def cell(source: str, grade_id: str = "", solution: bool = False) -> NotebookNode:
    made = nbformat.v4.new_code_cell(source)
    if grade_id:
        entry = {"grade_id": grade_id, "schema_version": 3, "locked": not solution, "task": False}
        made.metadata["nbgrader"] = {**entry, "solution": solution, "grade": not solution}
    return made


def notebook(*cells: NotebookNode) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


CHECK = "assert half(4) == 2"


def test_several_regions_at_several_depths() -> None:
    source = (
        f"def half(x):\n{BEGIN}\n    return x / 2\n{END}\n\n\nclass A:\n    def b(self):\n"
        "        ### BEGIN SOLUTION\n        return 1\n        ### END SOLUTION\n        # the end"
    )
    released = release_notebook(notebook(cell(source, "ex", True), cell(CHECK, "check")))
    assert released.cells[0].source == (
        "def half(x):\n    # YOUR CODE HERE\n"
        '    raise NotImplementedError("half is not written yet")'
        "\n\n\nclass A:\n    def b(self):\n        # YOUR CODE HERE\n"
        '        raise NotImplementedError("b is not written yet")\n        # the end'
    )


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([cell(f"{BEGIN}\n1", "ex", True), cell(CHECK, "c")], "n.ipynb, ex: got .*without its END"),
        ([cell(f"1\n{END}", "ex", True), cell(CHECK, "c")], "ex: got `### END SOLUTION` without"),
        (
            [cell(f"{BEGIN}\n{BEGIN}\n1\n{END}", "ex", True), cell(CHECK, "c")],
            "ex: got `### BEGIN SOLUTION` inside",
        ),
        ([cell("def half(x): ...", "ex", True), cell(CHECK, "c")], "without a solution.*released"),
        (
            [cell(f"{SOLUTION}\n    # BEGIN SOLUTION", "ex", True), cell(CHECK, "c")],
            "got `BEGIN SOLUTION`.* misspelt",
        ),
        ([cell(SOLUTION)], "outside of an exercise"),
        ([cell(SOLUTION, "check")], "outside of an exercise"),
        ([nbformat.v4.new_markdown_cell("### BEGIN SOLUTION")], "outside of an exercise"),
        (
            [cell(SOLUTION, "ex", True), cell(CHECK, "ex")],
            "n.ipynb: got the grade_id ex twice",
        ),
        ([cell(CHECK, "c"), cell(SOLUTION, "ex", True)], "n.ipynb, ex: got no check"),
        ([cell(SOLUTION, "ex", True), cell(CHECK)], "ex: got no check"),
        (
            [cell(SOLUTION, "ex", True), cell(SOLUTION, "ex2", True), cell(CHECK, "c")],
            "ex: got no check",
        ),
    ],
)
def test_a_broken_exercise_is_refused_by_name(cells: list[NotebookNode], message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        release_notebook(notebook(*cells), "n.ipynb")


def test_widgets_and_timestamps_go_with_the_outputs() -> None:
    executed = notebook(cell("1"))
    executed.metadata = NotebookNode({"widgets": {"state": {}}, "kernelspec": {"name": "python3"}})
    executed.metadata.kernelspec["display_name"] = "Python 3"
    executed.cells[0].metadata = NotebookNode({"execution": {}, "papermill": {}, "tags": ["a"]})
    released = release_notebook(executed)
    assert set(released.metadata) == {"kernelspec"}
    assert released.cells[0].metadata == {"tags": ["a"]}


def test_another_schema_is_refused() -> None:
    old = notebook(cell(SOLUTION, "ex", True), cell(CHECK, "check"))
    assert release_notebook(old)
    old.cells[1].metadata["nbgrader"]["schema_version"] = 2
    with pytest.raises(ReleaseError, match="check: got nbgrader schema 2, expected schema 3"):
        release_notebook(old)


def test_invalid_notebooks_are_refused() -> None:
    twice = notebook(cell("1"), cell("2"))
    twice.cells[1].id = twice.cells[0].id
    with pytest.raises(ReleaseError, match=r"the cell id .* twice"):
        release_notebook(twice)
    invalid = notebook(cell("1"))
    invalid.cells[0].metadata["tags"] = "no list"
    with pytest.raises(ReleaseError, match="not a valid notebook"):
        release_notebook(invalid)


def test_a_released_notebook_cannot_be_released_again() -> None:
    with pytest.raises(ReleaseError, match="is this notebook a released one"):
        release_notebook(release_notebook(solved("01_data")))


@pytest.mark.data
def test_a_released_notebook_runs_up_to_its_first_exercise(edition: Path, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "run")
    (result,) = run_chain(workspace, "smoke", ("01_data",), notebooks=edition / "notebooks")
    assert result.status == FAILED
    assert "NotImplementedError: leaked is not written yet" in result.reason
    code = [c for c in nbformat.read(result.notebook, as_version=4).cells if c.cell_type == "code"]
    failed = [c.id for c in code if any(o.output_type == "error" for o in c.outputs)]
    assert failed == ["check-01-leak"]
    stop = [c.id for c in code].index("check-01-leak")
    assert all(c.execution_count for c in code[:stop])
    assert not any(c.execution_count for c in code[stop + 1 :])


# The folder


def test_the_report_says_what_is_there(report: ReleaseReport) -> None:
    assert report.notebooks == tuple(f"{stage}.ipynb" for stage in NOTEBOOKS)
    assert report.files == len(files_of(report.folder))
    assert len(report.exercises) == len(set(report.exercises)) == 21
    for name in report.notebooks:
        written = nbformat.read(report.folder / "notebooks" / name, as_version=4)
        assert written == release_notebook(solved(name.removesuffix(".ipynb")))


def test_nothing_of_the_instructors_is_in_it(edition: Path) -> None:
    names = files_of(edition)
    parts = {part for name in names for part in name.split("/")}
    unwanted = {
        "grading",
        "grading.py",
        "tests",
        "benchmarks",
        ".ci",
        ".git",
        ".venv",
        "runs",
        "__pycache__",
    }
    assert parts & unwanted == set()
    assert [name for name in names if name.startswith("docs/")] == ["docs/native.md"]
    assert {name for name in names if name.endswith((".onnx", ".pt", ".pyc", ".plan"))} == set()
    assert {name.split("/")[0] for name in names} == {
        *("docker", "docs", "labkit", "model_repository", "notebooks", "tools"),
        *("LICENSE", "Makefile", "README.md", "constraints.txt", "environment.yml"),
        *("pyproject.toml", ".dockerignore", ".gitignore"),
    }


def test_the_library_is_there_with_its_other_files(edition: Path) -> None:
    """`labkit triton build` verifies what it compiles by a list beside the code."""
    assert (edition / "labkit" / "server" / "native" / "sources.sha256").is_file()


def test_no_sentence_of_the_grader_is_in_it(edition: Path) -> None:
    """Every docstring under labkit/grading begins with a sentence; none is among the files."""
    sentences = set()
    for path in (ROOT / "labkit" / "grading").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                sentences.add((ast.get_docstring(node) or "").split("\n")[0])
    long = {sentence for sentence in sentences if len(sentence) >= 30}
    assert len(long) > 10
    texts = texts_of(edition)
    assert [(name, s) for name, text in texts.items() for s in long if s in text] == []
    assert [name for name, text in texts.items() if re.search(r"\boracles?\b", text, re.I)] == []
    naming = {name for name, text in texts.items() if "labkit.grading" in text}

    assert naming <= {"labkit/cli.py", "labkit/doctor.py", "pyproject.toml"}


def test_no_other_file_holds_a_solution(edition: Path) -> None:
    texts = texts_of(edition)
    found = {
        (grade_id, name)
        for stage in NOTEBOOKS
        for grade_id, exercise in exercises(solved(stage)).items()
        for line in solution_lines(exercise)
        if len(line) >= 30
        for name, text in texts.items()
        if line in text
    }
    assert found == set()


def test_a_copy_without_git_gives_the_same_edition(project: Path, edition: Path) -> None:
    copied = release(project.parent / "out", project)
    assert files_of(copied.folder) == files_of(edition)
    assert "private" not in texts_of(copied.folder).values()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_checkout_releases_what_git_does_not_ignore(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a git hook
    environment = {key: value for key, value in os.environ.items() if key != "GIT_DIR"}
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(project), *command], check=True, env=environment)
    (project / ".git" / "info" / "exclude").write_text("scratch.py\n")
    for name in ("labkit/scratch.py", "labkit/grading/new.py", "notes/a.md"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("private")
    release(project.parent / "before", project)
    assert caplog.messages == []
    (project / "labkit" / "new module.py").write_text("x = 1")
    names = files_of(release(project.parent / "out", project).folder)
    assert caplog.messages == ["released, although git does not track it yet: labkit/new module.py"]
    assert names - files_of(project.parent / "before") == {"labkit/new module.py"}
    assert not any("scratch" in name for name in names)
    assert {"labkit/cli.py", "labkit/templates/report.html", "docker/serve.sh"} <= names
    with pytest.raises(ReleaseError, match="among the project's own files"):
        release(project / "tests" / "student", project)
    assert release(project / "student", project).files == len(names)
    assert release(project / "notes" / "student", project).files == len(names)
    shutil.rmtree(project / ".git")
    assert "labkit/scratch.py" in files_of(release(project.parent / "folder", project).folder)


def test_every_file_of_the_library_is_released(project: Path) -> None:
    """A new kind of file must be added to the list, or students miss it."""
    shutil.rmtree(project / "labkit" / "grading")
    wanted = {name for name in files_of(project) if name.startswith(("labkit/", "docker/"))}
    wanted = {n for n in wanted if "__pycache__" not in n and "checkpoint" not in n}
    names = files_of(release(project.parent / "out", project).folder)
    assert wanted - names == {"docker/.env.local"}
    assert os.access(project.parent / "out" / "docker" / "serve.sh", os.X_OK)


# Where it may be written


def test_a_second_release_into_the_same_folder_is_refused(edition: Path) -> None:
    before = files_of(edition)
    with pytest.raises(ReleaseError, match="is not empty; name a new folder"):
        release(edition)
    assert files_of(edition) == before


@pytest.mark.parametrize("place", ["labkit/student", ".git/student", ".new", "notebooks/a/b"])
def test_a_place_among_the_projects_files_is_refused(project: Path, place: str) -> None:
    with pytest.raises(ReleaseError, match=r"among the project's own files.*runs/"):
        release(project / place, project)
    assert not (project / place).exists()


def test_the_project_itself_and_a_file_are_refused(project: Path) -> None:
    with pytest.raises(ReleaseError, match="is not empty"):
        release(project, project)
    with pytest.raises(ReleaseError, match="which is a file"):
        release(project / "LICENSE", project)


@pytest.mark.parametrize("place", ["project/runs/release/student", "empty", "a/b"])
def test_runs_and_empty_folders_are_fine(project: Path, place: str) -> None:
    (project.parent / "empty").mkdir()
    written = release(project.parent / place, project)
    assert written.folder == project.parent / place
    assert written.files == len(files_of(written.folder)) > 50


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "notebooks/05_configure.ipynb").unlink(),
            "05_configure.ipynb is mis",
        ),
        (lambda root: (root / "notebooks/05_configure.ipynb").write_text("{"), "not a notebook"),
        (lambda root: (root / "tools/make_env.sh").unlink(), "has no tools/make_env.sh"),
        (lambda root: (root / "Makefile").write_text("help:\n\ttrue\n"), "no target env, data"),
    ],
)
def test_a_failure_leaves_nothing(
    project: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(project)
    with pytest.raises(ReleaseError, match=message):
        release(project.parent / "student", project)
    assert [path.name for path in project.parent.iterdir()] == ["project"]


def test_a_full_disk_leaves_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.nbformat, "write", full)
    with pytest.raises(OSError, match="No space left"):
        release(project.parent / "student", project)
    assert [path.name for path in project.parent.iterdir()] == ["project"]


# What students do with it


# The environment of the tests finds the project's own modules wherever it is started; a student's
# environment does not, because it was made in the student's folder.
STRANGER = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
from importlib.util import find_spec
"""


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def labkit_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"{STRANGER}from labkit.cli import main; main()"
    return run_in(folder, sys.executable, "-c", program, *arguments)


def test_the_command_line_works_without_the_grader(edition: Path) -> None:
    program = f"{STRANGER}import labkit.cli; print(labkit.__file__, find_spec('labkit.grading'))"
    imported = run_in(edition, sys.executable, "-c", program)
    assert imported.stdout.split() == [str(edition / "labkit" / "__init__.py"), "None"]
    listed = labkit_in(edition, "--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "doctor" in listed.stdout
    checked = labkit_in(edition, "check")
    assert (checked.returncode, checked.stderr) == (1, "")  # no model files yet
    assert "put the model at cifar10_onnx/1/model.onnx" in checked.stdout


def test_the_doctor_looks_at_the_edition(edition: Path) -> None:
    said = labkit_in(edition, "doctor")
    assert said.returncode in (0, 1)  # as this machine is; a traceback would be 1 with stderr
    assert said.stderr == ""
    assert "no pins to compare with" not in said.stdout
    assert "could not be looked at" not in said.stdout


def test_every_make_target_has_what_it_needs(edition: Path) -> None:
    makefile = (edition / "Makefile").read_text()
    rules = dict(re.findall(r"^([a-z-]+):(?!=)([^#\n]*)", makefile, re.MULTILINE))
    assert set(rules) == set(TARGETS)
    assert {name for needs in rules.values() for name in needs.split()} <= {"$(STAMP)", *rules}
    for path in re.findall(r"\b(?:tools|tests|benchmarks|labkit|\.ci)/[\w./-]+", makefile):
        assert (edition / path).is_file(), path
    assert not re.search(r"\bmake (test|lint|bench|format|notebooks)|STEPS|grad", makefile)
    assert "\n\n\n" not in makefile


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_help_lists_the_students_targets(edition: Path) -> None:
    listed = run_in(edition, "make", "help")
    assert listed.returncode == 0, listed.stderr
    assert re.findall(r"^  make ([a-z-]+)", listed.stdout, re.MULTILINE) == list(TARGETS)
    assert "make jupyter   and   make lab PROFILE=smoke" in listed.stdout


def test_a_makefile_keeps_its_other_lines() -> None:
    rules = "".join(f"{name}: ## Do\n\t@true\n\n" for name in TARGETS)
    text = (
        "A := 1\n.PHONY: all\n\ngrade: env ## No\n\t@a\n\t  b\n\nB := 2\n# see make grade\n" + rules
    )
    phony = f".PHONY: {' '.join(TARGETS)}\n"
    assert student_makefile(text) == f"A := 1\n{phony}\nB := 2\n{rules}".rstrip() + "\n"


def test_what_students_have_not_is_named_as_the_projects(edition: Path) -> None:
    """Texts that are right in the project and in the student edition."""
    lacking = re.compile(r"`[^`\n]*\b(?:tests|benchmarks)/[^`\n]*`|`labkit grade[^`\n]*`")
    texts = {name: text for name, text in texts_of(edition).items() if name.endswith(".md")}
    said = {
        " ".join(paragraph.split())
        for text in texts.values()
        for paragraph in text.split("\n\n")
        if lacking.search(paragraph)
    }
    assert said
    assert [paragraph for paragraph in said if "in the project's repository" not in paragraph] == []


def test_the_readme_says_what_to_hand_in(edition: Path) -> None:
    text = (edition / "README.md").read_text(encoding="utf-8")
    for stage in NOTEBOOKS:
        assert f"](notebooks/{stage}.ipynb)" in text
        for exercise in exercises(solved(stage)).values():
            written, _ = exercise.source.split("### BEGIN SOLUTION")
            function = re.findall(r"^ *def (\w+)", written, re.MULTILINE)[-1]
            assert f"`{function}`" in text
    for phrase in (
        "make env",
        "make jupyter",
        "named after you",
        "`parameters`",
        "`smoke` profile",
    ):
        assert phrase in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not (edition / link).exists()] == []
    targets = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert targets and targets <= set(TARGETS)
    assert "{{" not in text and "{%" not in text
