"""What a fault is, what is laid out for it to find, and the small notebooks that carry it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

PROJECT = Path(__file__).resolve().parents[3]
PARAMETERS = "profile = 'smoke'\nworkspace = 'runs/lab'"
LAST = "print('the last cell ran')"  # shows that the notebook went on after the fault


@dataclass(frozen=True)
class Bait:
    """What a test lays out for the class; the secret stands in no notebook.

    Attributes:
        reference: A complete smoke run: its artifacts are handed in by some.
        home: The instructor's home; a file in it holds the secret.
        classroom: The folder of all submissions; a file of `control-a` holds the secret.
        grades: The folder that the grader writes into.
        drop: A folder that everybody may write to: a file in it was written outside the sandbox.
        secret: Must turn up nowhere in `grades`; also in the grader's environment.
        port: Of a listener on 127.0.0.1, and part of the name of one on an abstract socket.
        marker: In the command line of whatever a notebook leaves running.
    """

    reference: Path = PROJECT / "runs" / "smoke"
    home: Path = Path("/home/instructor")
    classroom: Path = Path("/home/instructor/class")
    grades: Path = Path("/home/instructor/grades")
    drop: Path = Path("/home/instructor/drop")
    secret: str = "an-example-secret"
    port: int = 9
    marker: str = "left-behind-by-a-notebook"

    def artifact(self, name: str) -> bytes:
        """Return an artifact of the reference run."""
        return (self.reference / "artifacts" / name).read_bytes()


class NoBait(Bait):
    """For a class whose names alone are asked for: pytest collects before any run was made."""

    def artifact(self, name: str) -> bytes:
        return b'{"variants": []}'


@dataclass(frozen=True)
class Fault:
    """One submission, and what grading it must come to.

    Attributes:
        name: Of the student.
        does: One phrase.
        notebooks: Path in the submission → notebook, or bytes that are none.
        files: Further files; in a zip their names are written as they are.
        links: Path → where a symbolic link points.
        verdicts: Stage → verdicts of which one must be given. Other stages are missing.
        points: Least and most points of the whole submission.
        says: A regular expression for what the result's reasons and notes must say.
        shows: A regular expression for what the executed notebooks must show: the fault happened.
        status: Of the result.
        zipped: Whether it is handed in as a zip.
        quick: Graded in seconds and the same every time.
    """

    name: str
    does: str
    notebooks: Mapping[str, NotebookNode | bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    points: tuple[float, float] = (0, 0)
    says: str = ""
    shows: str = ""
    status: str = "graded"
    zipped: bool = False
    quick: bool = False


def tiny(*cells: str | NotebookNode, last: str = LAST) -> NotebookNode:
    """Return a notebook: the parameters' cell, these cells, and one that says that it ran."""
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    middle = [new_code_cell(cell.strip()) if isinstance(cell, str) else cell for cell in cells]
    return numbered([first, *middle, new_code_cell(last)])


def numbered(cells: Iterable[NotebookNode]) -> NotebookNode:
    """Return a notebook of these cells, with ids that are the same every time."""
    cells = list(cells)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return new_notebook(cells=cells)


@cache
def solved(stage: str) -> NotebookNode:
    """Return a notebook of the project, as its author solved it."""
    return nbformat.read(PROJECT / "notebooks" / f"{stage}.ipynb", as_version=4)


def exercises(stage: str) -> list[NotebookNode]:
    """Return the solved cells of a stage's exercises."""
    return [
        new_code_cell(cell.source, metadata={"nbgrader": dict(cell.metadata.nbgrader)})
        for cell in solved(stage).cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    ]
