"""An executed notebook of a student → one page that can do nothing but be read.

The notebook is hostile input: its kernel could write anything into it. So only text, code and PNG
figures are shown; every text is escaped and cut; nothing in it reaches the page as HTML.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import mistune
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from labkit.chain import CellFinding, first_line_of
from labkit.errors import LabError
from labkit.grading.pages import environment, one_line
from labkit.grading.results import OK
from labkit.grading.untrusted import short_line

MAX_TEXT_CHARS: Final = 20_000  # of one output, or of the source of one cell
MAX_TEXT_LINES: Final = 200
MAX_IMAGE_BYTES: Final = 2_000_000
MAX_IMAGE_PIXELS: Final = 25_000_000  # a small PNG can unpack to gigabytes in a browser
PNG_START: Final = b"\x89PNG\r\n\x1a\n"

# What a terminal takes for colour and cursor: CSI sequences, OSC strings, two-character escapes.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")


@dataclass(frozen=True)
class Output:
    """One output of a cell.

    Attributes:
        kind: `stdout`, `stderr`, `result` or `error`.
        text: What is shown of its text.
        image: Base64 of a PNG; empty for text.
        left_out: A sentence on what is not shown; empty where everything is.
    """

    kind: str
    text: str = ""
    image: str = ""
    left_out: str = ""


def read_output(raw: Any) -> Output:
    """Return one output as it is shown."""
    raw = raw if isinstance(raw, dict) else {}
    kind = raw.get("output_type")
    if kind == "stream":
        name = "stderr" if raw.get("name") == "stderr" else "stdout"
        return _printed(name, text_of(raw.get("text")))
    if kind == "error":
        lines = raw.get("traceback")
        lines = lines if isinstance(lines, list) else []
        trace = "\n".join(line for line in lines if isinstance(line, str))
        return _printed("error", trace or error_line(raw))
    if kind in ("display_data", "execute_result"):
        data = raw.get("data")
        return _display(data if isinstance(data, dict) else {})
    return Output("result", left_out="An output of unknown kind is not shown here.")


def _display(data: dict[str, Any]) -> Output:
    """Return what is shown of an output in several formats: a PNG, else its plain text."""
    if "image/png" in data:
        image = _png(text_of(data["image/png"]))
        if image:
            return Output("result", image=image)
        return Output("result", left_out="A figure is not shown: it is damaged or too large.")
    printed = _printed("result", text_of(data.get("text/plain")))
    other = [one_line(name)[:60] for name in data if name != "text/plain"]
    if not other:
        return printed
    left_out = f"{printed.left_out} Not shown here: {', '.join(other[:5])}.".strip()
    return replace(printed, left_out=left_out)


def error_line(raw: Any) -> str:
    """Return name and message of an error output on one line; empty for any other output."""
    if not isinstance(raw, dict) or raw.get("output_type") != "error":
        return ""
    name, message = text_of(raw.get("ename"))[:100], text_of(raw.get("evalue"))[:1000]
    line = one_line(_terminal_text(f"{name or 'error'}: {message}"))
    return line if len(line) <= 200 else f"{line[:200]} …"


def _png(encoded: str) -> str:
    """Return a PNG's base64, made anew from its bytes; empty where it is none, or too large."""
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        return ""
    head = content[:24]  # signature, length and name of the first chunk, width, height
    if len(head) < 24 or not head.startswith(PNG_START) or head[12:16] != b"IHDR":
        return ""
    width, height = struct.unpack(">II", head[16:24])
    if len(content) > MAX_IMAGE_BYTES or width * height > MAX_IMAGE_PIXELS:
        return ""
    return base64.b64encode(content).decode()


def text_of(value: Any) -> str:
    """Return a notebook's text, which is a string or a list of strings."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _printed(kind: str, text: str) -> Output:
    """Return printed text as a terminal would leave it, cut."""
    begin = text[: 10 * MAX_TEXT_CHARS]  # so that megabytes of colour codes cost nothing
    shown, left_out = cut(_terminal_text(begin), len(text) - len(begin))
    return Output(kind, shown, left_out=left_out)


def _terminal_text(text: str) -> str:
    """Return text without colours, and without what a carriage return wrote over."""
    lines = _ANSI.sub("", text).split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def cut(text: str, missing: int = 0) -> tuple[str, str]:
    """Cut a text to what a person would read.

    Args:
        text: Of any length.
        missing: Characters that were cut off before.

    Returns:
        The beginning of the text, and a sentence on what is missing; empty when nothing is.
    """
    text = text.rstrip("\n")
    shown = "\n".join(text.split("\n", MAX_TEXT_LINES)[:MAX_TEXT_LINES])[:MAX_TEXT_CHARS]
    missing += len(text) - len(shown)
    return shown, f"… {missing:,} more characters" if missing else ""


MAX_FILE_BYTES: Final = 20_000_000
MAX_PAGE_CHARS: Final = 6_000_000
MAX_CELLS: Final = 500
MAX_OUTPUTS: Final = 40  # of one cell
MOST_ERRORS: Final = 5  # listed on top of the page

_FORMATTER = HtmlFormatter(nowrap=True, style="default")


class UnreadableNotebook(LabError):
    """An executed notebook that cannot be shown."""


@dataclass(frozen=True)
class Cell:
    """One cell as it is shown.

    Attributes:
        number: Among the code cells that are not blank, from 1, as every page counts them; 0 for
            any other cell.
        is_code: Whether it is a code cell.
        code: Source, coloured.
        text: A markdown cell's text as HTML; of a raw cell, as it stands.
        outputs: What it printed and drew.
        more_outputs: How many further outputs are not shown.
        left_out: A sentence on what is not shown of the source.
        error: First line of the error that it raised; empty where it raised none.
    """

    number: int
    is_code: bool = False
    code: Markup = field(default_factory=Markup)
    text: Markup = field(default_factory=Markup)
    outputs: list[Output] = field(default_factory=list)
    more_outputs: int = 0
    left_out: str = ""
    error: str = ""

    @property
    def size(self) -> int:
        """About how many characters of the page it takes."""
        outputs = sum(len(escape(out.text)) + len(out.image) + 200 for out in self.outputs)
        return len(self.code) + len(self.text) + outputs + 200


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

    It is the first that has no execution count.
    """
    try:
        code = [cell for cell in read_cells(path) if _is_counted(cell)]
    except UnreadableNotebook:
        return None
    silent = [place for place, cell in enumerate(code) if cell.get("execution_count") is None]
    for place in silent:
        first_line = short_line(first_line_of(text_of(code[place].get("source"))))
        return CellFinding(place + 1, len(code), first_line, ran=False)
    return None


def _is_counted(cell: Any) -> bool:
    """Return whether a cell has a number: a code cell that is not blank."""
    is_code = isinstance(cell, dict) and cell.get("cell_type") == "code"
    return is_code and bool(text_of(cell.get("source")).strip())


def read_cells(path: Path) -> list[Any]:
    """Return the cells of a notebook file, of which nothing is known yet.

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
    return cells


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
        return Cell(number, text=_text(source), left_out=left_out)
    if kind != "code":
        return Cell(number, text=Markup("<pre>{}</pre>").format(source), left_out=left_out)
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


class _Inert(mistune.HTMLRenderer):
    """Markdown without anything that leads out of the page."""

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Show a link's words."""
        return text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """Show what stands for an image."""
        return text

    def strong(self, text: str) -> str:
        """Show bold text."""
        return f"<b>{text}</b>"

    def emphasis(self, text: str) -> str:
        """Show italics."""
        return f"<i>{text}</i>"

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        """Show a heading that is none of the page's own."""
        return f'<p class="h h{level}">{text}</p>\n'


_MARKDOWN = mistune.create_markdown(renderer=_Inert(escape=True), plugins=["table"])


def _text(source: str) -> Markup:
    """Return markdown as HTML of which nothing is live; as it stands where it cannot be read."""
    try:
        return Markup(_MARKDOWN(source))
    except (RecursionError, ValueError, IndexError):  # built to break a parser
        return Markup("<pre>{}</pre>").format(source)
