"""An executed notebook of a student → one page that can do nothing but be read.

The notebook is hostile input: its kernel could write anything into it. So only text, code and PNG
figures are shown; every text is escaped and cut; nothing in it reaches the page as HTML.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from labkit.chain import CellFinding, first_line_of
from labkit.errors import LabError
from labkit.grading.notebook_file import INJECTED
from labkit.grading.notebook_output import Output, cut, error_line, read_output, text_of
from labkit.grading.pages import environment
from labkit.grading.printable import short_line
from labkit.grading.results import OK

MAX_FILE_BYTES: Final = 20_000_000
MAX_PAGE_CHARS: Final = 6_000_000
MAX_CELLS: Final = 500
MAX_OUTPUTS: Final = 40  # of one cell
MOST_ERRORS: Final = 5  # listed on top of the page
OF_PAPERMILL: Final = frozenset({INJECTED, "papermill-error-cell-tag"})  # tags of its own cells

# Bold, then italics; what is between the marks holds no further mark.
_EMPHASIS = re.compile(r"\*\*([^*]+)\*\*|\*(?=\S)([^*\n]+)(?<=\S)\*")
_FORMATTER = HtmlFormatter(nowrap=True, style="default")


class UnreadableNotebook(LabError):
    """An executed notebook that cannot be shown."""


@dataclass(frozen=True)
class Block:
    """A piece of a markdown cell.

    Attributes:
        kind: `text`, `item` of a list, `heading` or `pre`.
        text: Escaped.
        level: Of a heading, from 1.
    """

    kind: str
    text: Markup
    level: int = 0


@dataclass(frozen=True)
class Cell:
    """One cell as it is shown.

    Attributes:
        number: Among the code cells that are not blank, from 1, as every page counts them; 0 for
            any other cell.
        is_code: Whether it is a code cell.
        code: Source, coloured.
        blocks: A markdown cell's pieces.
        outputs: What it printed and drew.
        more_outputs: How many further outputs are not shown.
        left_out: A sentence on what is not shown of the source.
        error: First line of the error that it raised; empty where it raised none.
    """

    number: int
    is_code: bool = False
    code: Markup = field(default_factory=Markup)
    blocks: list[Block] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    more_outputs: int = 0
    left_out: str = ""
    error: str = ""

    @property
    def size(self) -> int:
        """About how many characters of the page it takes."""
        outputs = sum(len(escape(out.text)) + len(out.image) + 200 for out in self.outputs)
        return len(self.code) + sum(len(block.text) + 50 for block in self.blocks) + outputs + 200


def render_notebook(
    path: Path, student: str, stage: str, verdict: str = OK, stopped: CellFinding | None = None
) -> str:
    """Return the page of an executed notebook as HTML; a damaged one gives a page that says so.

    Args:
        path: The notebook, as the sandbox left it.
        student: Name of the submission.
        stage: Such as `03_export`.
        verdict: What became of it.
        stopped: The cell at which it was stopped, see `stopped_cell`; None where it was not.
    """
    problem, found, cells = "", [], []
    try:
        found = read_cells(path)
        cells = list(_cells_that_fit(found))
    except UnreadableNotebook as error:
        problem = str(error)
    return (
        environment()
        .get_template("notebook.html")
        .render(
            student=student,
            stage=stage,
            problem=problem,
            verdict=verdict,
            stopped=stopped,
            cells=cells,
            more_cells=len(found) - len(cells),
            errors=[cell for cell in cells if cell.error],
            most_errors=MOST_ERRORS,
            highlighting=Markup(_FORMATTER.get_style_defs("pre")),
        )
    )


def stopped_cell(path: Path) -> CellFinding | None:
    """Return the code cell at which a notebook was stopped; None where none shows it.

    It is the one that papermill says is running, else the first that has no execution count.
    """
    try:
        code = [cell for cell in read_cells(path) if _is_counted(cell)]
    except UnreadableNotebook:
        return None
    running = [place for place, cell in enumerate(code) if _is_running(cell)]
    silent = [place for place, cell in enumerate(code) if cell.get("execution_count") is None]
    for place in running or silent:
        first_line = short_line(first_line_of(text_of(code[place].get("source"))))
        return CellFinding(place + 1, len(code), first_line, ran=False)
    return None


def _is_counted(cell: Any) -> bool:
    """Return whether a cell has a number: a code cell that is not blank."""
    is_code = isinstance(cell, dict) and cell.get("cell_type") == "code"
    return is_code and bool(text_of(cell.get("source")).strip())


def _is_running(cell: dict[str, Any]) -> bool:
    """Return whether papermill last wrote that the cell was running."""
    entry = _metadata(cell).get("papermill")
    return isinstance(entry, dict) and entry.get("status") == "running"


def _is_papermills(cell: Any) -> bool:
    """Return whether papermill put the cell in: its parameters, or its note on an error."""
    tags = _metadata(cell).get("tags")
    return isinstance(tags, list) and any(tag in OF_PAPERMILL for tag in map(text_of, tags))


def _metadata(cell: Any) -> dict[str, Any]:
    """Return a cell's metadata, of which nothing is known yet."""
    metadata = cell.get("metadata") if isinstance(cell, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def read_cells(path: Path) -> list[Any]:
    """Return the cells of a notebook file, of which nothing is known yet, without papermill's own.

    Raises:
        UnreadableNotebook: it is missing, too large, not JSON, or has no list of cells.
    """
    if path.is_symlink() or not path.is_file():
        raise UnreadableNotebook(
            "The notebook as it ran was not kept: it was stopped before it could be saved."
        )
    with path.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise UnreadableNotebook(
            f"The notebook as it ran is larger than {MAX_FILE_BYTES / 1e6:.0f} MB and is not "
            "shown: print less, and draw fewer figures."
        )
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableNotebook(
            "The notebook as it ran is damaged (it is not JSON, or nested too deeply) and cannot "
            "be shown."
        ) from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise UnreadableNotebook(
            "The notebook as it ran has no list of cells, as notebooks of version 4 have, and "
            "cannot be shown."
        )
    return [cell for cell in cells if not _is_papermills(cell)]


def _cells_that_fit(found: list[Any]) -> Iterator[Cell]:
    """Yield cells until the page is full."""
    used = counted = 0
    for raw in found[:MAX_CELLS]:
        counted += _is_counted(raw)
        number = counted if _is_counted(raw) else 0
        cell = _cell(number, raw if isinstance(raw, dict) else {})
        used += cell.size
        if used > MAX_PAGE_CHARS:
            return
        yield cell


def _cell(number: int, raw: dict[str, Any]) -> Cell:
    """Return one cell as it is shown."""
    source, left_out = cut(text_of(raw.get("source")))
    kind = raw.get("cell_type")
    if kind == "markdown":
        return Cell(number, blocks=list(_blocks(source)), left_out=left_out)
    if kind != "code":
        return Cell(number, blocks=[Block("pre", escape(source))], left_out=left_out)
    outputs = raw.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    return Cell(
        number,
        is_code=True,
        code=Markup(highlight(source, PythonLexer(), _FORMATTER)),
        outputs=[read_output(entry) for entry in outputs[:MAX_OUTPUTS]],
        more_outputs=max(0, len(outputs) - MAX_OUTPUTS),
        left_out=left_out,
        error=next(filter(None, map(error_line, outputs)), ""),
    )


def _blocks(source: str) -> Iterator[Block]:
    """Yield the pieces of a markdown cell, blank lines left out."""
    kept: list[str] = []
    kind = "blank"
    for found, line in _lines(source):
        goes_on = found == kind == "pre" or (found == "text" and kind in ("text", "item"))
        if not goes_on:
            yield from _block(kind, kept)
            kept, kind = [], found
        kept.append(line)
    yield from _block(kind, kept)


def _lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield every line of markdown with its kind: a `Block.kind`, `fence` or `blank`."""
    fenced = False
    for line in source.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            yield "fence", ""
        elif fenced or line.startswith("|"):
            yield "pre", line
        elif re.match(r"#{1,6} ", line):
            yield "heading", line
        elif re.match(r"\s*(?:[-*+]|\d{1,3}[.)]) ", line):
            yield "item", line
        else:
            yield ("text" if line.strip() else "blank"), line


def _block(kind: str, lines: list[str]) -> Iterator[Block]:
    """Yield the lines as one block, unless they are blank."""
    text = "\n".join(lines)
    if not text.strip():
        return
    if kind == "heading":
        title = text.lstrip("#")
        yield Block(kind, _inline(title.strip()), len(text) - len(title))
    else:
        yield Block(kind, escape(text) if kind == "pre" else _inline(text))


def _inline(text: str) -> Markup:
    """Return markdown with `code`, **bold** and *italics* marked, everything else escaped."""
    marked = Markup()
    for place, piece in enumerate(re.split(r"`([^`\n]+)`", text)):
        if place % 2:
            marked += Markup("<code>{}</code>").format(piece)
            continue
        for index, part in enumerate(_EMPHASIS.split(piece)):
            tag = ("{}", "<b>{}</b>", "<i>{}</i>")[index % 3]
            marked += Markup(tag).format(part) if part else ""
    return marked
