"""A notebook that a stranger has written: read, and made ready to run.

Nothing in it may stop the grader: all that can be wrong ends in an `IntakeError`, which says so in
a sentence. Only what counts is taken over: the cells' kinds, sources, ids, tags and nbgrader's
names. Outputs and other metadata, which editors and platforms damage, are not looked at.
"""

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbformat import NotebookNode

from labkit.errors import LabError
from labkit.grading.limits import MIB
from labkit.grading.student_notebook import NBGRADER_SCHEMA
from labkit.grading.untrusted import MAX_CLASS, UnfitFile, read_plain, short_line

MAX_NOTEBOOK_BYTES: Final = 64 * MIB  # with all that it has shown
MAX_PARTS: Final = 500_000  # objects and lists: each takes hundreds of bytes once parsed
MAX_CELLS: Final = 2_000
MAX_REST: Final = 16  # characters after the end, of a program that wrote over a longer file
CELL_ID: Final = re.compile(r"[a-zA-Z0-9-_]{1,64}")
INJECTED: Final = "injected-parameters"  # tag of the cell that papermill adds
PARAMETERS: Final = "parameters"  # tag of the cell that it follows
KERNEL: Final = {"display_name": "Python 3", "language": "python", "name": "python3"}
SETS_A_PARAMETER: Final = re.compile(r"""^(profile|workspace)\s*=\s*["']""", re.MULTILINE)
DEFINES: Final = re.compile(r"^(?:async +)?(?:def|class) +(\w+)", re.MULTILINE)
IMPORTS: Final = re.compile(r"^(import|from)\s+\w", re.MULTILINE)
CODE_KINDS: Final = frozenset({"code", "markdown", "raw"})


class IntakeError(LabError):
    """Something that was handed in cannot be used."""


def read_notebook(path: Path, limit_bytes: int = MAX_NOTEBOOK_BYTES) -> NotebookNode:
    """Read a stranger's notebook of format 2, 3 or 4, in any encoding that JSON may have.

    Args:
        path: A regular file; a link is not followed.
        limit_bytes: Largest accepted size.

    Returns:
        A notebook of format 4.5, without outputs.

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
        cells = [make_cell(**_fields(raw)) for raw in _raw_cells(record)]
        metadata = record.get("metadata")
        kernel = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise IntakeError(
            f"{path.name} is not a valid notebook ({type(error).__name__}: {_first_line(error)}): "
            "open it in JupyterLab, save it and hand it in again"
        ) from error
    if len(cells) > MAX_CELLS:
        raise IntakeError(f"{path.name} has {len(cells):,} cells, expected at most {MAX_CELLS:,}")
    repair_ids(cells)
    return make_notebook(cells, kernel if isinstance(kernel, dict) else {})


def _parse(name: str, content: bytes) -> dict[str, Any]:
    """Parse a notebook file that may be built to break the parser.

    NaN, which is not JSON and which some tools write, is as good as any number here.
    """
    try:
        text = _text(content)
        record, end = json.JSONDecoder(strict=False).raw_decode(text)
        if len(text) - end > MAX_REST:
            raise ValueError(f"{len(text) - end:,} characters after its end")
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise IntakeError(
            f"{name} is not JSON ({type(error).__name__}: {_first_line(error)}), expected a "
            "notebook: save it in JupyterLab and hand it in again"
        ) from error
    if not isinstance(record, dict) or not {"nbformat", "cells", "worksheets"} & record.keys():
        raise IntakeError(
            f"{name} is JSON, but not a notebook: save it in JupyterLab and hand it in again"
        )
    version = str(record.get("nbformat", 4))
    if version.removesuffix(".0") not in ("2", "3", "4"):
        raise IntakeError(
            f"{name} has notebook format {short_line(version, MAX_CLASS)}, expected 4: save it in "
            "JupyterLab and hand it in again"
        )
    return record


def _text(content: bytes) -> str:
    """Decode a file, whatever follows its end; bytes that are no UTF-8 are read as Windows' own."""
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        text = content.decode(encoding, "replace" if "utf-8" not in encoding else "as-windows")
    return text.lstrip("\ufeff \t\r\n").rstrip("\0\x1a\ufffd \t\r\n")


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    """Decode the bytes at which UTF-8 has failed, see `codecs.register_error`."""
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    return wrong.decode("cp1252", "replace"), error.end


codecs.register_error("as-windows", _as_windows)


def _writable(text: str) -> str:
    """Return a text with question marks for halves of characters, which cannot be written."""
    return text.encode(errors="replace").decode()


def _raw_cells(record: Mapping[str, Any]) -> list[Any]:
    """Return the cells as they are in the file; before format 4 they lie in worksheets.

    Raises:
        ValueError: there is no list of them.
    """
    found, sheets = record.get("cells"), record.get("worksheets")
    if not isinstance(found, list) and isinstance(sheets, list):
        found = [cell for sheet in sheets for cell in sheet.get("cells") or ()]
    if not isinstance(found, list):
        raise ValueError("it has no list of cells")
    cells = [cell for cell in found if isinstance(cell, dict)]
    if found and not cells:
        raise ValueError("nothing in its list of cells is a cell")
    return cells


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is taken over of one cell.

    Raises:
        ValueError, TypeError, AttributeError, ArithmeticError: it is no cell.
    """
    is_run = {"outputs", "execution_count", "prompt_number"} & raw.keys()
    kind = str(raw.get("cell_type") or ("code" if is_run else "markdown")).lower()
    source = _strings(raw.get("source", raw.get("input", "")))
    if kind == "heading":  # of format 3
        level = raw.get("level")
        depth = level if isinstance(level, int) and level in range(1, 7) else 1
        kind, source = "markdown", f"{'#' * depth} {source}"
    metadata = raw.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    tags_ = metadata.get("tags")
    return {
        "kind": kind if kind in CODE_KINDS else "raw",
        "source": source,
        "identity": str(raw.get("id") or ""),
        "nbgrader": metadata.get("nbgrader"),
        "tags": [tag for tag in tags_ if isinstance(tag, str)] if isinstance(tags_, list) else [],
    }


def _strings(value: Any) -> str:
    """Return the text of a source: a text, or a list of texts; what else is in it is none."""
    parts = value if isinstance(value, list) else [value]
    return "".join(part for part in parts if isinstance(part, str))


def make_cell(
    kind: str, source: str, identity: str = "", nbgrader: Any = None, tags: list[str] | None = None
) -> NotebookNode:
    """Return a cell of format 4.5, without outputs; of nbgrader's metadata what grading reads."""
    metadata = NotebookNode()
    name = nbgrader.get("grade_id") if isinstance(nbgrader, Mapping) else None
    if isinstance(name, str) and name:
        flags = {key: nbgrader.get(key) is True for key in ("grade", "locked", "solution")}
        metadata["nbgrader"] = NotebookNode(
            grade_id=_writable(name), schema_version=NBGRADER_SCHEMA, task=False, **flags
        )
    if tags:
        metadata["tags"] = tags
    text = _writable(source)
    cell = NotebookNode(cell_type=kind, id=identity, metadata=metadata, source=text)
    if kind == "code":
        cell.update(outputs=[], execution_count=None)
    return cell


def make_notebook(cells: list[NotebookNode], kernelspec: Mapping[str, Any]) -> NotebookNode:
    """Return a notebook of format 4.5."""
    metadata = NotebookNode(kernelspec=NotebookNode(kernelspec), language_info={"name": "python"})
    return NotebookNode(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)


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


def lines_of(source: str) -> str:
    """Return what a person would compare of two sources: no blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in source.strip().splitlines())


@dataclass(frozen=True)
class Prepared:
    """A notebook as the grader runs it.

    Attributes:
        notebook: Valid, without outputs.
        notes: What was changed, for the student: a sentence each.
    """

    notebook: NotebookNode
    notes: list[str]


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
    named = notebook.metadata.get("kernelspec", {}).get("name") or KERNEL["name"]
    kernel = short_line(str(named), MAX_CLASS)
    if kernel != KERNEL["name"]:
        notes.append(f"it was run with the kernel python3, not with {kernel}")
    repair_ids(cells)
    return Prepared(make_notebook(cells, KERNEL), notes)


def _clean(cell: NotebookNode) -> NotebookNode:
    """Return a new cell with source, id, nbgrader's metadata and the tag that the grader needs.

    Outputs, attachments, and what other tools or other tags would make of the cell, are dropped.
    """
    kept = [PARAMETERS] if PARAMETERS in tags(cell) else []
    nbgrader = cell.metadata.get("nbgrader")
    return make_cell(cell.cell_type, cell.source, str(cell.get("id") or ""), nbgrader, kept)


def _put_checks_back(cells: list[NotebookNode], reference: NotebookNode, notes: list[str]) -> None:
    """Give the check cells their source back, where the student changed it.

    Editors merge cells under the name of one of them: definitions that were not in the check stay,
    in a cell before it.
    """
    for check in reference.cells:
        flags = check.metadata.get("nbgrader", {})
        if not (flags.get("grade") and flags.get("locked") and check.cell_type == "code"):
            continue
        name = grade_id(check)
        found = [index for index, cell in enumerate(cells) if grade_id(cell) == name]
        if not found:
            notes.append(f"the check cell {name} is missing; its exercise is graded all the same")
        for index in reversed(found):
            written = cells[index].source
            if _as_read(cells[index]) != _as_read(check):
                notes.append(f"the check cell {name} was put back")
            cells[index] = _clean(check)
            if set(DEFINES.findall(written)) - set(DEFINES.findall(check.source)):
                own = written.replace(check.source.strip(), "")
                cells.insert(index, make_cell("code", own))


def _as_read(cell: NotebookNode) -> tuple[str, str]:
    """Return what a person would compare of two cells."""
    return cell.cell_type, lines_of(cell.source)


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
        chosen = make_cell("code", source, "added-parameters")
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
