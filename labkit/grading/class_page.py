"""Results → `class.html`: how the class did, and what needs a look, on one page."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from labkit.grading.attention import SameFiles, attention, same_files
from labkit.grading.class_pictures import class_pictures, stages_of
from labkit.grading.pages import by_name, environment, feedback_link, words_for, write_page
from labkit.grading.results import GRADED, Result
from labkit.grading.roster import Person, read_roster

PAGE: Final = "class.html"
MOST_GROUPS: Final = 12


@dataclass(frozen=True)
class Row:
    """A line of the table of students.

    Attributes:
        result: The submission.
        page: Link to its feedback.
        kinds: Notebook → kind of its verdict.
    """

    result: Result
    page: str
    kinds: dict[str, str]


def class_summary(results: Iterable[Result]) -> dict[str, Any]:
    """Return the numbers behind the page.

    Returns:
        `submissions`, `graded`, `rejected`, `failed`: counts; `maximum`: highest points; `n`,
        `mean`, `median`, `lower_quartile`, `upper_quartile`, `lowest`, `highest`: of the totals of
        graded submissions, in points, None where `n` is 0.
    """
    found = list(results)
    counts = Counter(result.status for result in found)
    totals = [result.points for result in found if result.status == GRADED]
    quartiles: list[float | None] = [None] * 5
    if totals:
        quartiles = [float(value) for value in np.percentile(totals, [0, 25, 50, 75, 100])]
    lowest, lower, median, upper, highest = quartiles
    return {
        "submissions": len(found),
        "graded": counts["graded"],
        "rejected": counts["rejected"],
        "failed": counts["failed"],
        "maximum": max((result.maximum for result in found), default=0.0),
        "n": len(totals),
        "mean": statistics.fmean(totals) if totals else None,
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "lowest": lowest,
        "highest": highest,
    }


def write_class_page(
    out: Path, results: Iterable[Result], rubric_title: str = "", roster: Path | None = None
) -> Path:
    """Write `class.html` for the instructor; it names students and is not for them.

    Args:
        out: Folder of the grades; the page links to `feedback/` below it.
        results: The class, in any order.
        rubric_title: Heading of the page.
        roster: As for the gradebook; says who handed in nothing.

    Raises:
        RosterError: the roster cannot be used.
    """
    people = read_roster(roster) if roster else {}
    return write_page(out / PAGE, render_class_page(by_name(results), rubric_title, people))


def render_class_page(
    results: Sequence[Result], rubric_title: str, people: dict[str, Person]
) -> str:
    """Return the page as HTML; `results` in the order of the table."""
    groups: list[SameFiles] = same_files(results)
    return (
        environment()
        .get_template("class.html")
        .render(
            title=rubric_title or "The class at a glance",
            summary=class_summary(results),
            matters=attention(results, people),
            pictures=list(class_pictures(results)),
            groups=groups[:MOST_GROUPS],
            more_groups=max(0, len(groups) - MOST_GROUPS),
            rows=[_row(result) for result in results],
            stages=stages_of(results),
        )
    )


def _row(result: Result) -> Row:
    """Return a student's line of the table."""
    kinds = {record.stage: words_for(record.verdict).kind for record in result.stages}
    return Row(result, feedback_link(result.student), kinds)
