"""Results → `class.html`: how the class did, and what needs a look, on one page."""

import base64
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from labkit.grading.needs_review import SameFiles, needs_review, same_files
from labkit.grading.pages import (
    by_name,
    environment,
    feedback_link,
    points_text,
    words_for,
    write_page,
)
from labkit.grading.results import GRADED, Result
from labkit.grading.roster import Roster, read_roster
from labkit.plots.grading import (
    CheckShare,
    Duration,
    missed_checks,
    slowest_submissions,
    totals_histogram,
    verdicts_by_notebook,
)

MOST_CHECKS: Final = 12
MOST_SLOW: Final = 12
PNG_DPI: Final = 150


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        title: What the reader sees in it.
        alt: The same for whoever cannot see it.
        image: Base64 of a PNG.
        width, height: Pixels of the page.
    """

    title: str
    alt: str
    image: str
    width: int
    height: int


def class_pictures(results: Sequence[Result]) -> Iterable[Picture]:
    """Yield the figures for which there is something to show.

    Args:
        results: The class, in the order of the table below the figures.
    """
    graded = [result for result in results if result.status == GRADED]
    if graded:
        totals = [result.points for result in graded]
        maximum = max(result.maximum for result in graded) or 1.0
        yield _picture(
            "How the totals spread",
            f"Histogram of {len(totals)} totals, median {statistics.median(totals):.1f} of "
            f"{points_text(maximum)} points.",
            totals_histogram(totals, maximum),
        )
    stages = stages_of(results)
    if stages:
        counts = {stage: verdict_kinds(results, stage) for stage in stages}
        ran = ", ".join(f"{stage} {counts[stage].get('ran', 0)}" for stage in stages)
        yield _picture(
            "What became of the notebooks",
            f"Students whose notebook ran without an error: {ran}.",
            verdicts_by_notebook(counts),
        )
    checks = checks_by_loss(graded)[:MOST_CHECKS]
    if checks:
        worst = checks[0]
        yield _picture(
            "Checks that cost points most often",
            f"Most missed: {worst.title}, by {100 * (worst.none + worst.some):.0f} % of students.",
            missed_checks(checks),
        )
    slow = slowest(results)[:MOST_SLOW]
    if slow:
        yield _picture(
            "Slowest submissions",
            f"Slowest: {slow[0].student}, {slow[0].notebooks_s + slow[0].measure_s:,.0f} s.",
            slowest_submissions(slow),
        )


def checks_by_loss(graded: Sequence[Result]) -> list[CheckShare]:
    """Return the checks on which somebody lost points, the most missed first."""
    items: dict[str, list[tuple[str, float]]] = {}
    for result in graded:
        for item in result.items:
            title = item.title if item.visible else f"hidden: {item.title}"
            share = item.points / item.maximum if item.maximum else 1.0
            items.setdefault(item.id, []).append((title, share))
    checks = []
    for found in items.values():
        none = sum(share <= 0 for _, share in found) / len(found)
        some = sum(0 < share < 1 for _, share in found) / len(found)
        if none + some > 0:
            checks.append(CheckShare(found[0][0], some, none))
    return sorted(checks, key=lambda check: (-(check.none + check.some), -check.none))


def verdict_kinds(results: Iterable[Result], stage: str) -> dict[str, int]:
    """Return kind of verdict → students, for one notebook."""
    records = (record for result in results for record in result.stages if record.stage == stage)
    return dict(Counter(words_for(record.verdict).kind for record in records))


def slowest(results: Sequence[Result]) -> list[Duration]:
    """Return how long each submission took, the slowest first."""
    durations = [
        Duration(
            result.shown,
            number,
            result.timings.get("notebooks", 0.0),
            result.timings.get("measure", 0.0),
        )
        for number, result in enumerate(results, start=1)
        if result.timings
    ]
    return sorted(durations, key=lambda one: -(one.notebooks_s + one.measure_s))


def _picture(title: str, alt: str, figure: Figure) -> Picture:
    """Return a figure as a PNG inside the page, and close it."""
    width, height = figure.get_size_inches() * 100
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PNG_DPI)
    plt.close(figure)
    image = base64.b64encode(stream.getvalue()).decode()
    return Picture(title, alt, image, int(width), int(height))


def stages_of(results: Iterable[Result]) -> list[str]:
    """Return every notebook that a result knows, in order."""
    return list(dict.fromkeys(record.stage for result in results for record in result.stages))


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
    people = read_roster(roster, rubric_title)
    return write_page(out / PAGE, render_class_page(by_name(results), rubric_title, people))


def render_class_page(results: Sequence[Result], rubric_title: str, people: Roster) -> str:
    """Return the page as HTML; `results` in the order of the table."""
    groups: list[SameFiles] = same_files(results)
    return (
        environment()
        .get_template("class.html")
        .render(
            title=rubric_title or "The class at a glance",
            summary=class_summary(results),
            matters=needs_review(results, people),
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
