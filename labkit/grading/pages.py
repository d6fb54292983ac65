"""What the pages of a graded class share: words for verdicts, numbers, safe text, templates."""

import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

import jinja2

from labkit.grading.find_submissions import safe_name
from labkit.grading.results import Result
from labkit.html_templates import templates
from labkit.workspace import write_text

INDEX: Final = "index.html"

# What a browser may load while it shows one of these pages: nothing but what is in the page.
POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


@dataclass(frozen=True)
class Words:
    """A verdict as a person reads it, see `verdicts.toml`.

    Attributes:
        kind: `ran`, `raised`, `stopped`, `limit`, `absent` or `grader`; decides the colour.
        label: Two or three words.
        sentence: What happened, for the student.
        not_run: Why it was not run; empty where it was.
        ask: What the student should do about that.
    """

    kind: str
    label: str
    sentence: str
    not_run: str = ""
    ask: str = ""

    @property
    def cut_short(self) -> bool:
        """Whether the notebook began and was stopped, so that its last cells did not run."""
        return self.kind in ("stopped", "limit")


_TEXTS: Final = tomllib.loads((Path(__file__).parent / "verdicts.toml").read_text("utf-8"))
KINDS: Final[dict[str, dict[str, str]]] = _TEXTS["kind"]  # the sign of each, and its text
VERDICT_WORDS: Final = {verdict: Words(**words) for verdict, words in _TEXTS["verdict"].items()}
_UNKNOWN: Final = Words(**_TEXTS["unknown"])


def words_for(verdict: str) -> Words:
    """Return the words for a verdict; a result of a newer grader may hold one that is unknown."""
    return VERDICT_WORDS.get(verdict, _UNKNOWN)


def points_text(value: float) -> str:
    """Print points with at most two decimals: 8, 7.5, 92.33. Every page and table uses this."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def seconds_text(value: float) -> str:
    """Print a duration in seconds as a person says it: 42 s, 3 min 05 s, 1 h 02 min."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plain(text: str) -> str:
    """Return text that every file can hold.

    Names of folders may hold bytes that are not UTF-8, and notebooks may hold control characters;
    both are replaced, newlines and tabs stay.
    """
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", valid.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return `plain` text on one line."""
    return " ".join(plain(text).split())


def sentence(text: str) -> str:
    """Return text on one line, with a capital at its start and a full stop at its end."""
    line = one_line(text)
    return line[:1].upper() + line[1:] + ("" if not line or line[-1] in ".!?" else ".")


def href(*parts: str) -> str:
    """Return a relative link to `parts`, a folder or file name each."""
    return "/".join(quote(os.fsencode(part), safe="") for part in parts)


def feedback_link(student: str) -> str:
    """Return the link from the class page to a student's feedback."""
    return href("feedback", safe_name(student), INDEX)


def by_name(found: Iterable[Result]) -> list[Result]:
    """Return results in the order of every list: by the submission's name, case aside."""
    return sorted(found, key=lambda result: (result.student.casefold(), result.student))


@cache
def environment() -> jinja2.Environment:
    """Return the template environment: everything that is filled in is escaped."""
    made = templates("labkit.grading")
    made.filters.update(points=points_text, duration=seconds_text, sentence=sentence)
    made.globals.update(
        policy=POLICY, kinds=KINDS, words_for=words_for, feedback_link=feedback_link
    )
    return made


def write_page(path: Path, html: str) -> Path:
    """Write a page, all or nothing; returns its path."""
    write_text(path, plain(html))
    return path
