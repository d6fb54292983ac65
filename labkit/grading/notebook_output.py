"""One output of an executed notebook, which is hostile input, as text or as a checked PNG."""

import base64
import binascii
import re
import struct
from dataclasses import dataclass, replace
from typing import Any, Final

from labkit.grading.pages import one_line

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
