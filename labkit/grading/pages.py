"""What the pages of a graded class share: words for verdicts, numbers, safe text, templates."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

import jinja2

from labkit.grading import results
from labkit.grading.results import Result, StageRecord
from labkit.grading.submission import safe_name
from labkit.html_templates import templates
from labkit.workspace import MADE_BY, write_text

INDEX: Final = "index.html"
NOT_RUN: Final = frozenset({results.MISSING, results.AMBIGUOUS, results.INVALID})

# What a browser may load while it shows one of these pages: nothing but what is in the page.
POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


@dataclass(frozen=True)
class Words:
    """A verdict as a person reads it.

    Attributes:
        label: Two or three words.
        sentence: What happened, for the student.
        kind: `ran`, `raised`, `stopped`, `limit`, `absent` or `grader`; decides the colour.
    """

    label: str
    sentence: str
    kind: str


VERDICT_WORDS: Final[dict[str, Words]] = {
    results.OK: Words("ran", "Every cell ran without an error.", "ran"),
    results.ERROR: Words(
        "error in a cell", "At least one cell raised an error; the other cells ran.", "raised"
    ),
    results.STOPPED: Words(
        "stopped early",
        "A cell ended the kernel; those after it ran in another kernel, as far as one started.",
        "stopped",
    ),
    results.TIMEOUT: Words(
        "time limit", "It was still running at the time limit and was stopped there.", "limit"
    ),
    results.CPU: Words(
        "CPU limit", "It used up the CPU time that a notebook may use and was stopped.", "limit"
    ),
    results.OOM: Words(
        "memory limit", "It needed more memory than a notebook may use and was stopped.", "limit"
    ),
    results.PROCESSES: Words(
        "process limit", "It started more processes than a notebook may start.", "limit"
    ),
    results.DISK: Words(
        "disk limit", "It wrote more data, or more files, than a notebook may write.", "limit"
    ),
    results.OUTPUT: Words(
        "output limit", "It printed more than a notebook may print and was stopped.", "limit"
    ),
    results.MISSING: Words(
        "missing", "The submission has no such notebook, so nothing was run.", "absent"
    ),
    results.AMBIGUOUS: Words(
        "ambiguous", "Several notebooks could be this one, so none of them was run.", "absent"
    ),
    results.INVALID: Words(
        "not readable", "The file cannot be read as a notebook, so it was not run.", "absent"
    ),
    results.GRADER_ERROR: Words(
        "grader failed", "The grader itself failed here. This is not your fault.", "grader"
    ),
}
_UNKNOWN: Final = Words("unknown", "The grader left no verdict that it knows.", "grader")


def words_for(verdict: str) -> Words:
    """Return the words for a verdict; a result of a newer grader may hold one that is unknown."""
    return VERDICT_WORDS.get(verdict, _UNKNOWN)


def was_cut_short(record: StageRecord) -> bool:
    """Return whether a notebook began and was stopped, so that its last cells did not run."""
    return words_for(record.verdict).kind in ("stopped", "limit")


def carried(result: Result) -> list[str]:
    """Return the stages instead of whose files a notebook that ran was given the reference's."""
    ran = [record for record in result.stages if record.verdict not in NOT_RUN]
    used = {MADE_BY.get(name) for record in ran for name in record.used_reference}
    return [
        record.stage for record in result.stages if not record.accepted and record.stage in used
    ]


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
    made.globals.update(policy=POLICY, words_for=words_for)
    return made


def write_page(path: Path, html: str) -> Path:
    """Write a page, all or nothing; returns its path."""
    write_text(path, plain(html))
    return path
