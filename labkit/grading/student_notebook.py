"""A notebook as students get it: stubs for solutions, and no outputs."""

import re
from copy import deepcopy
from typing import Any, Final

import nbformat
from nbformat import NotebookNode

from labkit.errors import LabError

MARKER: Final = re.compile(r"( *)### (BEGIN|END) SOLUTION\s*")
ANY_MARKER: Final = re.compile(r"(BEGIN|END)\W+SOLUTION", re.IGNORECASE)
STUB: Final = re.compile(r'raise NotImplementedError\("(\w+) is not written yet"\)')
DEF: Final = re.compile(r"( *)(?:async )?def (\w+)")
KEPT_METADATA: Final = ("kernelspec", "language_info")  # of a notebook; widgets would hold outputs
NOISE: Final = ("lines_to_next_cell", "execution", "papermill", "collapsed")  # of a cell
NBGRADER_SCHEMA = 3


class ReleaseError(LabError):
    """The student edition cannot be made from these notebooks, or not in this place."""


def release_notebook(notebook: NotebookNode, name: str = "notebook") -> NotebookNode:
    """Return a notebook as students get it: stubs for solutions, and no outputs.

    Args:
        notebook: Solved, with nbgrader's metadata; it is not changed.
        name: What an error calls it.

    Raises:
        ReleaseError: solution markers do not pair or stand outside of an exercise, an exercise has
            no check after it, a `grade_id` is there twice, or the result is not a valid notebook.
    """
    _check_exercises(notebook, name)
    released = deepcopy(notebook)
    released.metadata = NotebookNode(
        {key: value for key, value in released.metadata.items() if key in KEPT_METADATA}
    )
    for cell in released.cells:
        for key in NOISE:
            cell.metadata.pop(key, None)
        if _nbgrader(cell).get("solution"):
            where = f"{name}, {cell.metadata['nbgrader']['grade_id']}"
            cell.source = with_stubs(cell.source, where)
        if leak := ANY_MARKER.search(cell.source):
            raise ReleaseError(
                f"{name}, cell {cell.id}: got `{leak[0]}` outside of an exercise, or misspelt; "
                "expected `### BEGIN SOLUTION` and `### END SOLUTION` in a cell whose nbgrader "
                "metadata says `solution`"
            )
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    _validate(released, name)
    return released


def _nbgrader(cell: NotebookNode) -> dict[str, Any]:
    return cell.metadata.get("nbgrader", {})


def exercises_of(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Return `grade_id` → cell of the exercises, in order."""
    return {
        _nbgrader(cell)["grade_id"]: cell
        for cell in notebook.cells
        if _nbgrader(cell).get("solution")
    }


def _check_exercises(notebook: NotebookNode, name: str) -> None:
    """Refuse ids that are there twice, other schemas, and exercises without a check after them."""
    graded = [_nbgrader(cell) for cell in notebook.cells if _nbgrader(cell)]
    seen: set[str] = set()
    for entry in graded:
        grade_id, schema = entry.get("grade_id", ""), entry.get("schema_version")
        if schema != NBGRADER_SCHEMA or not grade_id:
            raise ReleaseError(
                f"{name}, {grade_id or 'a cell without grade_id'}: got nbgrader schema {schema}, "
                f"expected schema {NBGRADER_SCHEMA} with a grade_id; see the other notebooks"
            )
        if grade_id in seen:
            raise ReleaseError(f"{name}: got the grade_id {grade_id} twice; rename one of them")
        seen.add(grade_id)
    for number, entry in enumerate(graded, start=1):
        following = graded[number] if number < len(graded) else {}
        is_check = following.get("grade") and not following.get("solution")
        if entry.get("solution") and not is_check:
            raise ReleaseError(
                f"{name}, {entry['grade_id']}: got no check after this exercise; expected the next "
                "cell with nbgrader metadata to be one (`grade: true, solution: false`)"
            )


def with_stubs(source: str, where: str) -> str:
    """Replace each marked region by a stub at the same indentation; all else stands."""
    lines: list[str] = []
    inside = found = False
    for line in source.split("\n"):
        marker = MARKER.fullmatch(line)
        if marker and (marker[2] == "BEGIN") == inside:
            raise ReleaseError(
                f"{where}: got `### {marker[2]} SOLUTION` {'inside' if inside else 'without'} an "
                "open region; expected BEGIN and END in turn"
            )
        if marker and not inside:
            found, function = True, _function_around(lines, len(marker[1]))
            lines += [
                f"{marker[1]}# YOUR CODE HERE",
                f'{marker[1]}raise NotImplementedError("{function or where} is not written yet")',
            ]
        if marker:
            inside = not inside
        elif not inside:
            lines.append(line)
    if inside or not found:
        got = "`### BEGIN SOLUTION` without its END" if inside else "an exercise without a solution"
        hint = "add the marker" if inside else "mark it; or is this notebook a released one?"
        raise ReleaseError(f"{where}: got {got}; {hint}")
    return "\n".join(lines)


def _function_around(lines: list[str], indentation: int) -> str:
    """Return the last function that begins further left than `indentation`, or an empty text."""
    begins = [match for line in lines if (match := DEF.match(line))]
    return next((match[2] for match in reversed(begins) if len(match[1]) < indentation), "")


def _validate(notebook: NotebookNode, name: str) -> None:
    """Refuse what is not a valid notebook, ids of cells included."""
    ids = [cell.get("id") for cell in notebook.cells]
    if twice := sorted({str(i) for i in ids if ids.count(i) > 1}):
        raise ReleaseError(f"{name}: got the cell id {', '.join(twice)} twice; rename one")
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        reason = str(error).splitlines()[0]
        raise ReleaseError(f"{name} is not a valid notebook: {reason}") from error
