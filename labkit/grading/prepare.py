"""A student's notebook made ready to run headless, without losing what the student did."""

import re
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell

from labkit.grading.notebook_file import INJECTED, grade_id, repair_ids, tags
from labkit.grading.printable import MAX_CLASS, short_line

PARAMETERS = "parameters"
GOES_ON = "raises-exception"  # papermill runs the other cells although this one raised
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
NEW_CELL = {"code": new_code_cell, "markdown": new_markdown_cell, "raw": new_raw_cell}
SETS_A_PARAMETER = re.compile(r"""^(profile|workspace)\s*=\s*["']""", re.MULTILINE)
IMPORTS = re.compile(r"^(import|from)\s+\w", re.MULTILINE)


@dataclass(frozen=True)
class Prepared:
    """A notebook as the grader runs it.

    Attributes:
        notebook: Valid, without outputs; every code cell goes on after an error.
        notes: What was changed, for the student: a sentence each.
        required: How many code cells have to run: those that are not blank.
    """

    notebook: NotebookNode
    notes: list[str]
    required: int


def prepare(
    notebook: NotebookNode, reference: NotebookNode, profile: str, workspace: str
) -> Prepared:
    """Return a student's notebook as the grader runs it; the one given stays as it is.

    Args:
        notebook: As `read_notebook` returns it.
        reference: The same stage's notebook as it was handed out: its check cells count.
        profile: `smoke`, `standard` or `full`; written only where no cell has the parameters.
        workspace: The folder of the run, likewise.
    """
    notes: list[str] = []
    cells = [_clean(cell) for cell in notebook.cells if INJECTED not in tags(cell)]
    if len(cells) < len(notebook.cells):
        notes.append("a cell that papermill had added in an earlier run was left out")
    _put_checks_back(cells, reference, notes)
    _keep_one_parameters_cell(cells, profile, workspace, notes)
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in code:
        cell.metadata["tags"] = [*tags(cell), GOES_ON]
    kernel = short_line(str(notebook.metadata.get("kernelspec", KERNEL)["name"]), MAX_CLASS)
    if kernel != KERNEL["name"]:
        notes.append(f"it was run with the kernel python3, not with {kernel}")
    repair_ids(cells)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    prepared = new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(prepared)
    return Prepared(prepared, notes, sum(bool(cell.source.strip()) for cell in code))


def _clean(cell: NotebookNode) -> NotebookNode:
    """Return a new cell with source, id, nbgrader's metadata and the tag that the grader needs.

    Outputs, attachments, and what other tools or other tags would make of the cell, are dropped.
    """
    fresh = NEW_CELL[cell.cell_type](source=cell.source)
    fresh["id"] = cell.get("id")
    if name := grade_id(cell):
        entry = cell.metadata.nbgrader
        flags = {key: entry.get(key) is True for key in ("grade", "locked", "solution")}
        fresh.metadata["nbgrader"] = {"grade_id": name, "schema_version": 3, "task": False, **flags}
    if PARAMETERS in tags(cell):
        fresh.metadata["tags"] = [PARAMETERS]
    return fresh


def _put_checks_back(cells: list[NotebookNode], reference: NotebookNode, notes: list[str]) -> None:
    """Give the check cells their source back, where the student changed it."""
    for check in reference.cells:
        flags = check.metadata.get("nbgrader", {})
        if not (flags.get("grade") and flags.get("locked") and check.cell_type == "code"):
            continue
        name = grade_id(check)
        found = [index for index, cell in enumerate(cells) if grade_id(cell) == name]
        if not found:
            notes.append(f"the check cell {name} is missing; its exercise is graded all the same")
        for index in found:
            if _as_read(cells[index]) != _as_read(check):
                notes.append(f"the check cell {name} was put back")
            cells[index] = _clean(check)


def _as_read(cell: NotebookNode) -> tuple[str, list[str]]:
    """Return what a person would compare of two cells: no blanks at the ends of lines."""
    return cell.cell_type, [line.rstrip() for line in cell.source.strip().splitlines()]


def _keep_one_parameters_cell(
    cells: list[NotebookNode], profile: str, workspace: str, notes: list[str]
) -> None:
    """Make exactly one code cell the one that papermill's parameters follow."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell for cell in cells if tags(cell)]
    chosen = next((cell for cell in tagged if cell.cell_type == "code"), None)
    for cell in tagged:
        cell.metadata["tags"] = []
    if chosen is None and (setting := [cell for cell in code if _set_here(cell)]):
        chosen = max(setting, key=_set_here)  # the first of the best
        notes.append("the cell that sets profile and workspace got its tag `parameters` back")
    elif chosen is None:
        source = f"profile = {profile!r}\nworkspace = {workspace!r}"
        chosen = new_code_cell(source, id="added-parameters")
        cells.insert(_after_imports(cells), chosen)
        notes.append("a cell that sets profile and workspace was missing and was added")
    elif len(tagged) > 1:
        notes.append(f"{len(tagged)} cells were tagged `parameters`; the first one kept the tag")
    chosen.metadata["tags"] = [PARAMETERS]


def _set_here(cell: NotebookNode) -> int:
    """Return how many of the two parameters a cell sets to a literal."""
    return len(set(SETS_A_PARAMETER.findall(cell.source)))


def _after_imports(cells: list[NotebookNode]) -> int:
    """Return the place behind the first cell with imports; before all code where there is none."""
    code = [index for index, cell in enumerate(cells) if cell.cell_type == "code"]
    imports = (index + 1 for index in code if IMPORTS.search(cells[index].source))
    return next(imports, code[0] if code else len(cells))
