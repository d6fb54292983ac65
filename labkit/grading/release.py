"""The student edition: the project without solutions, grader, tests and outputs.

What goes in is listed in `student_edition.toml`, and whatever is not listed stays out. Of a git
checkout, files that git ignores stay out too; one that git does not track yet goes in, and a
warning names it.
"""

import logging
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nbformat
from nbformat import NotebookNode

from labkit.chain import PRACTICE, STAGES
from labkit.grading.limits import LIMITS
from labkit.grading.student_notebook import STUB, ReleaseError, exercises_of, release_notebook
from labkit.html_templates import templates
from labkit.profiles import PROFILES
from labkit.workspace import project_root

log = logging.getLogger(__name__)

EDITION: Final = tomllib.loads((Path(__file__).parent / "student_edition.toml").read_text("utf-8"))
TARGETS: Final[list[str]] = EDITION["targets"]
# What `make help` puts first: for the project, then for students.
MATTERS: Final = ("make lab   and   make test", "make jupyter   and   make lab PROFILE=smoke")


def student_makefile(text: str) -> str:
    """Return the project's Makefile with the students' targets only.

    A line that names a target which is left out (`make test`) goes too.

    Raises:
        ReleaseError: a target that students need is missing.
    """
    rule = re.compile(r"([a-z][a-z-]*):(?!=)")
    found = {match[1] for line in text.splitlines() if (match := rule.match(line))}
    if missing := [target for target in TARGETS if target not in found]:
        raise ReleaseError(f"Makefile: got no target {', '.join(missing)}, which students need")
    left_out = sorted(found - set(TARGETS))
    mention = re.compile(rf"\bmake ({'|'.join(left_out)})\b" if left_out else r"(?!)")
    kept, keeping = [], True
    for line in text.replace(*MATTERS).splitlines():
        match = rule.match(line)
        if match or not line.startswith("\t"):
            keeping = not match or match[1] in TARGETS
        if line.startswith(".PHONY:"):
            kept.append(".PHONY: " + " ".join(TARGETS))
        elif keeping and not mention.search(line):
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).rstrip() + "\n"


def student_readme(notebooks: dict[str, NotebookNode]) -> str:
    """Return the README of the student edition.

    Args:
        notebooks: Stage → released notebook.
    """
    template = templates("labkit.grading", escape=False).get_template("student_readme.md")
    text = template.render(
        notebooks=[_summary(stage, notebooks[stage]) for stage in STAGES],
        practice=[_summary(stage, notebooks[stage]) for stage in PRACTICE],
        limits=LIMITS["smoke"],
        smoke=PROFILES["smoke"],
    )
    return f"{text}\n"  # the newline at a template's end is not kept


def _summary(stage: str, notebook: NotebookNode) -> dict[str, Any]:
    """Return what the README says about a notebook: title and table of its first cell, stubs."""
    lines = notebook.cells[0].source.splitlines()
    table = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    writes, takes = table[-1][1:3] if table and len(table[-1]) >= 3 else ("", "")
    functions = STUB.findall("\n".join(cell.source for cell in notebook.cells))
    return {
        "stage": stage,
        "title": lines[0].split("·", 1)[-1].strip("# "),
        "functions": ", ".join(f"`{name}`" for name in functions),
        "writes": writes.strip(),
        "takes": takes.strip(),
    }


@dataclass(frozen=True)
class ReleaseReport:
    """What was written.

    Attributes:
        folder: The student edition.
        notebooks: Names of the released notebooks, in order.
        files: How many files there are, notebooks included.
        exercises: `grade_id` of every exercise, in order.
    """

    folder: Path
    notebooks: tuple[str, ...]
    files: int
    exercises: tuple[str, ...]


def release(out: Path, project: Path | None = None) -> ReleaseReport:
    """Write the student edition, all or nothing.

    Args:
        out: A folder that does not exist yet, or is empty.
        project: The project to release; the one around the current folder when None.

    Raises:
        ReleaseError: `out` is not empty or lies among the project's own folders, a notebook cannot
            be released, or a file is missing.
    """
    root, target = (project or project_root()).resolve(), out.resolve()
    listed = _listed(root)
    _refuse_unfit(target, root, listed)
    notebooks = {stage: _read_and_release(root, stage) for stage in (*STAGES, *PRACTICE)}
    exercises = [name for notebook in notebooks.values() for name in exercises_of(notebook)]
    with _folder_beside(target) as folder:
        for name in _copied(root, listed):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
        (folder / "notebooks").mkdir()
        for stage, notebook in notebooks.items():
            nbformat.write(notebook, folder / "notebooks" / f"{stage}.ipynb")
        makefile = student_makefile((root / "Makefile").read_text(encoding="utf-8"))
        (folder / "Makefile").write_text(makefile, encoding="utf-8")
        (folder / "README.md").write_text(student_readme(notebooks), encoding="utf-8")
        files = sum(path.is_file() for path in folder.rglob("*"))
    return ReleaseReport(target, tuple(f"{s}.ipynb" for s in notebooks), files, tuple(exercises))


def _read_and_release(root: Path, stage: str) -> NotebookNode:
    """Read a notebook of the project and return it as students get it."""
    path = root / "notebooks" / f"{stage}.ipynb"
    if not path.is_file():
        raise ReleaseError(f"{path} is missing; a student edition has all notebooks")
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many types for damaged files
        raise ReleaseError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from error
    return release_notebook(notebook, path.name)


def _listed(root: Path) -> dict[str, bool] | None:
    """Return file → whether git tracks it, of those that it does not ignore.

    None where the project is no checkout of its own.
    """
    if not (root / ".git").exists():
        return None  # also where a surrounding folder is a checkout of something else
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    which = ("--cached", "--others", "--exclude-standard")
    command = ["git", "-C", str(root), "ls-files", "-z", "-t", *which]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        log.warning("git does not list the project's files (%s): taken from the folder", reason)
        return None
    entries = [entry for entry in done.stdout.split("\0") if entry]
    return {entry[2:]: entry[0] != "?" for entry in entries}  # such as `H tracked` and `? new`


def _copied(root: Path, listed: Mapping[str, bool] | None) -> list[str]:
    """Return the files that students get unchanged, relative to the project."""
    names: set[str] = set()
    for pattern in EDITION["copied"]:
        paths = [path for path in root.glob(pattern) if path.is_file() and not path.is_symlink()]
        matching = {path.relative_to(root).as_posix() for path in paths}
        found = {name for name in matching if ".ipynb_checkpoints" not in name}
        found = found if listed is None else found & listed.keys()
        if not found:
            raise ReleaseError(f"{root} has no {pattern}, which a student edition needs")
        names |= {name for name in found if not name.startswith(tuple(EDITION["hidden"]))}
    if new := sorted(name for name in names if listed is not None and not listed[name]):
        log.warning("released, although git does not track it yet: %s", ", ".join(new))
    return sorted(names)


def _refuse_unfit(target: Path, root: Path, listed: Mapping[str, bool] | None) -> None:
    """Refuse a place where the student edition would mix with something."""
    if target.exists() and not target.is_dir():
        raise ReleaseError(f"got {target}, which is a file; expected a folder that is new or empty")
    if target.is_dir() and any(target.iterdir()):
        raise ReleaseError(f"{target} is not empty; name a new folder, or empty this one first")
    if not target.is_relative_to(root):
        return
    everything = [path.name for path in root.iterdir()]
    names = everything if listed is None else [name for name in listed if listed[name]]
    own = {name.split("/")[0] for name in names} - {"runs"}
    first, *below = target.relative_to(root).parts
    if first.startswith(".") or (first in own and below):
        raise ReleaseError(
            f"got {target}, among the project's own files; expected a folder outside of the "
            f"project, or below runs/, such as runs/{target.name}"
        )


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`; it gets that name on success, and goes on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes folders private
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
