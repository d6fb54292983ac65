"""A notebook file that a stranger, or a stranger's code, has written.

Nothing in it may stop the grader: all that can be wrong ends in an `IntakeError`, which says so in
a sentence.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.errors import LabError
from labkit.grading.files import UnfitFile, read_plain
from labkit.grading.limits import MIB
from labkit.grading.printable import MAX_CLASS, short_line

MAX_NOTEBOOK_BYTES = 20 * MIB
MAX_PARTS = 500_000  # objects and lists: each takes hundreds of bytes once parsed
CELL_ID = re.compile(r"[a-zA-Z0-9-_]{1,64}")
INJECTED = "injected-parameters"  # tag of the cell that papermill adds


class IntakeError(LabError):
    """Something that was handed in cannot be used."""


def read_notebook(path: Path, limit_bytes: int = MAX_NOTEBOOK_BYTES) -> NotebookNode:
    """Read a stranger's notebook, bring it to format 4 and repair what does not matter.

    Args:
        path: A regular file; a link is not followed.
        limit_bytes: Largest accepted size.

    Raises:
        IntakeError: it cannot be read, is too large, or is not a notebook.
    """
    try:
        content = read_plain(path.parent, path.name, limit_bytes / MIB)
    except (UnfitFile, OSError) as error:
        raise IntakeError(
            f"{error}; expected a notebook of at most {limit_bytes / MIB:g} MiB: clear its "
            "outputs, save it and hand it in again"
        ) from error
    if content.count(b"{") + content.count(b"[") > MAX_PARTS:
        raise IntakeError(
            f"{path.name} has more than {MAX_PARTS:,} parts: clear its outputs and save it again"
        )
    record = _parse(path.name, content)
    try:
        notebook = _upgraded(record)
        nbformat.validate(notebook, relax_add_props=True)
    except Exception as error:  # nbformat raises many types for damaged notebooks
        raise IntakeError(
            f"{path.name} is not a valid notebook ({type(error).__name__}: {_first_line(error)}): "
            "open it in JupyterLab, save it and hand it in again"
        ) from error
    return notebook


def _parse(name: str, content: bytes) -> dict[str, Any]:
    """Parse a notebook file that may be built to break the parser.

    NaN, which is not JSON and which some tools write, becomes null. Halves of characters, which
    cannot be written again, become question marks.
    """
    try:
        record = json.loads(content, parse_constant=lambda constant: None)
        if b"\\ud" in content.lower():
            text = json.dumps(record, ensure_ascii=False).encode(errors="replace")
            record = json.loads(text, parse_constant=lambda constant: None)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise IntakeError(
            f"{name} is not JSON ({type(error).__name__}: {_first_line(error)}), expected a "
            "notebook: save it in JupyterLab and hand it in again"
        ) from error
    version = record.get("nbformat") if isinstance(record, dict) else None
    if type(version) is not int:
        raise IntakeError(
            f"{name} is JSON, but not a notebook: save it in JupyterLab and hand it in again"
        )
    if version not in nbformat.versions:
        raise IntakeError(
            f"{name} has notebook format {short_line(str(version), MAX_CLASS)}, expected 4: save "
            "it in JupyterLab and hand it in again"
        )
    return record


def _upgraded(record: dict[str, Any]) -> NotebookNode:
    """Return a parsed notebook in format 4.5, what is missing filled in where it is no matter."""
    version = record["nbformat"]
    if version == 4:
        _fill_in(record)
    reader = nbformat.versions[version]
    notebook = nbformat.convert(reader.to_notebook_json(record, minor=0), 4)
    notebook.nbformat_minor = max(notebook.nbformat_minor, nbformat.current_nbformat_minor)
    repair_ids(notebook.cells)
    return notebook


def _fill_in(record: dict[str, Any]) -> None:
    """Add the empty fields that some tools leave out."""
    record.setdefault("nbformat_minor", 0)
    record.setdefault("metadata", {})
    for cell in record["cells"]:
        cell.setdefault("metadata", {})
        if cell.get("cell_type") == "code":
            cell.setdefault("outputs", [])
            cell.setdefault("execution_count", None)


def repair_ids(cells: list[NotebookNode]) -> None:
    """Give a cell whose id is missing, invalid or taken another one, the same in every run."""
    taken: set[str] = set()
    for number, cell in enumerate(cells):
        identity = str(cell.get("id") or "")
        if not CELL_ID.fullmatch(identity) or identity in taken:
            identity = f"cell-{number}"
            while identity in taken:
                identity += "x"
        taken.add(identity)
        cell["id"] = identity


def grade_id(cell: NotebookNode) -> str:
    """Return the name that nbgrader's metadata gives a cell; empty for other cells."""
    entry = cell.metadata.get("nbgrader")
    name = entry.get("grade_id") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else ""


def grade_ids(notebook: NotebookNode) -> frozenset[str]:
    """Return the names of all cells that have one, see `grade_id`."""
    return frozenset(map(grade_id, notebook.cells)) - {""}


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.metadata.get("tags", []))


def _first_line(error: Exception) -> str:
    """Return what an error says, without the explanations that follow."""
    return short_line(str(error).partition("\n")[0])
