"""Results → `class.html`: how the class did, and what needs a look, on one page."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from labkit.grading.exercises import EXERCISES
from labkit.grading.find_notebooks import IGNORED_WORK
from labkit.grading.pages import (
    by_name,
    environment,
    feedback_link,
    points_text,
    words_for,
    write_page,
)
from labkit.grading.results import FAILED, GRADED, GRADER_ERROR, REJECTED, Result
from labkit.grading.roster import NOBODY, Roster

PAGE: Final = "class.html"
MOST_BARS: Final = 12  # of a figure
MOST_GROUPS: Final = 12
MOST_NAMES: Final = 8  # of a list
RANGES: Final = 10  # of totals
NO_ISOLATION: Final = "none"
ALIKE: Final = "looks like it"  # in the note of `find_submissions`
HIGH_SHARE: Final = 0.9  # of the points: with an error as well, one of the two may be wrong


def write_class_page(
    out: Path, results: Iterable[Result], rubric_title: str = "", people: Roster = NOBODY
) -> Path:
    """Write `class.html` for the instructor; it names students and is not for them.

    Args:
        out: Folder of the grades; the page links to `feedback/` below it.
        results: The class, in any order.
        rubric_title: Heading of the page.
        people: Says who handed in nothing.
    """
    ordered = by_name(results)
    graded = [result for result in ordered if result.status == GRADED]
    summary = class_summary(ordered)
    stages = dict.fromkeys(record.stage for result in ordered for record in result.stages)
    page = environment().get_template("class.html")
    html = page.render(
        title=rubric_title or "The class at a glance",
        results=ordered,
        summary=summary,
        totals=count_totals([result.points for result in graded], summary["maximum"]),
        notebooks={stage: verdict_kinds(ordered, stage) for stage in stages},
        checks=checks_by_loss(graded)[:MOST_BARS],
        slowest=slowest(ordered)[:MOST_BARS],
        matters=needs_review(ordered, people),
        groups=same_files(ordered),
        most_groups=MOST_GROUPS,
        most_names=MOST_NAMES,
    )
    return write_page(out / PAGE, html)


# ---- numbers and figures


def class_summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return the numbers behind the page.

    Returns:
        `submissions`, `graded`, `rejected`, `failed`: counts; `maximum`: highest points; `mean`,
        `median`, `lower_quartile`, `upper_quartile`, `lowest`, `highest`: of the totals of graded
        submissions, in points, None where there are none.
    """
    counts = Counter(result.status for result in results)
    totals = [result.points for result in results if result.status == GRADED]
    names = ("lowest", "lower_quartile", "median", "upper_quartile", "highest")
    quartiles = np.percentile(totals, [0, 25, 50, 75, 100]).tolist() if totals else [None] * 5
    return {
        "submissions": len(results),
        **{status: counts[status] for status in (GRADED, REJECTED, FAILED)},
        "maximum": max((result.maximum for result in results), default=0.0),
        "mean": statistics.fmean(totals) if totals else None,
        **dict(zip(names, quartiles, strict=True)),
    }


@dataclass(frozen=True)
class Totals:
    """How many totals lie in each of about ten equal ranges.

    Attributes:
        width: Of a range, whole points.
        counts: Students in each range, from 0 points on.
    """

    width: int
    counts: list[int]


def count_totals(totals: Sequence[float], maximum: float) -> Totals:
    """Count totals, in points, in ranges from 0 to `maximum`."""
    width = max(1, math.ceil(maximum / RANGES))
    ranges = max(1, math.ceil(maximum / width))
    counts, _ = np.histogram(totals, bins=ranges, range=(0, ranges * width))
    return Totals(width, counts.tolist())


def verdict_kinds(results: Iterable[Result], stage: str) -> dict[str, int]:
    """Return kind of verdict → students, for one notebook."""
    records = (record for result in results for record in result.stages if record.stage == stage)
    return dict(Counter(words_for(record.verdict).kind for record in records))


@dataclass(frozen=True)
class CheckShare:
    """How a class did on one check.

    Attributes:
        title: What is checked.
        some: Share of students with some of the points, in [0, 1].
        none: Share of students with no points, in [0, 1].
    """

    title: str
    some: float
    none: float


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


def slowest(results: Iterable[Result]) -> list[Result]:
    """Return the submissions that ran, the slowest first."""
    ran = [result for result in results if result.timings]
    return sorted(
        ran, key=lambda r: -(r.timings.get("notebooks", 0.0) + r.timings.get("measure", 0.0))
    )


@dataclass(frozen=True)
class SameFiles:
    """Students who handed in the same files, byte for byte.

    Attributes:
        students: Who.
        artifacts: The files that are the same for all of them.
    """

    students: list[str]
    artifacts: list[str]


def same_files(results: Sequence[Result]) -> list[SameFiles]:
    """Return who shares which files: small groups with many files first, as they say most."""
    shown = {result.student: result.shown for result in results}
    shared: dict[tuple[str, ...], set[str]] = {}
    for result in results:
        for artifact, others in result.same_as.items():
            if others:
                students = tuple(sorted({result.student, *others}))
                shared.setdefault(students, set()).add(artifact)
    order = sorted(shared.items(), key=lambda entry: (-len(entry[1]), len(entry[0]), entry[0]))
    return [
        SameFiles([shown.get(student, student) for student in students], sorted(artifacts))
        for students, artifacts in order
    ]


# ---- what an instructor should look at by hand, before the points go out


@dataclass(frozen=True)
class Mention:
    """A student in a list: name, link to the feedback (empty where there is none), and why."""

    student: str
    page: str = ""
    why: str = ""


@dataclass(frozen=True)
class Matter:
    """Something that needs a look.

    Attributes:
        title: What it is.
        advice: What to do about it.
        mentions: Whom it is about.
    """

    title: str
    advice: str
    mentions: list[Mention]


def needs_review(results: Sequence[Result], people: Roster) -> list[Matter]:
    """Return what needs a look, the most urgent first; empty for a class without any.

    Args:
        results: The class.
        people: The roster; empty where there is none.
    """
    matters = [_matter(title, advice, results, why) for title, advice, why in MATTERS]
    if people:
        advice = "Their grade goes to the learning platform under the submission's name."
        unknown = [result for result in results if not people.of(result)]
        absent = [person.shown for person in people.absent(results) if not person.exempt]
        twice = people.twice(results)
        matters += [
            _matter(
                "Two submissions of one person",
                "None goes to the learning platform: remove all but one, and go on with --resume.",
                [result for result in results if result.student in twice],
                lambda result: result.student,
            ),
            _matter("Not on the roster", advice, unknown, lambda result: ""),
            Matter(
                "No submission",
                "On the roster, but without a submission.",
                [Mention(student) for student in absent],
            ),
        ]
    return [matter for matter in matters if matter.mentions]


Why = Callable[[Result], str | None]  # why a submission is concerned, may be empty; else None


def _matter(title: str, advice: str, results: Iterable[Result], why: Why) -> Matter:
    """Collect the students for whom `why` gives a reason, which may be empty; None is no reason."""
    mentions = [
        Mention(result.shown, feedback_link(result.student), reason)
        for result in results
        if (reason := why(result)) is not None
    ]
    return Matter(title, advice, mentions)


def _grader_failure(result: Result) -> str | None:
    """Return where the grader failed; None where it did not."""
    if result.status == FAILED:
        return result.reason
    stages = [record.stage for record in result.stages if record.verdict == GRADER_ERROR]
    return ", ".join(stages) or None


def _endings(result: Result, *kinds: str) -> str:
    """Return which notebooks ended with a verdict of these kinds, and with which."""
    words = [(record.stage, words_for(record.verdict)) for record in result.stages]
    return ", ".join(f"{stage}: {word.label}" for stage, word in words if word.kind in kinds)


def _high_with_an_error(result: Result) -> str | None:
    """Return points and errors of a submission that has high points all the same; else None."""
    errors = _endings(result, "raised", "stopped")
    if result.status != GRADED or not errors or result.points < HIGH_SHARE * result.maximum:
        return None
    return f"{points_text(result.points)} points; {errors}"


def _no_exercise(result: Result) -> str | None:
    """Return how many exercises there are where none is right; else None."""
    exercises = [item for item in result.items if item.id in EXERCISES]
    right = any(item.points >= item.maximum for item in exercises)
    if result.status != GRADED or not exercises or right:
        return None
    return f"0 of {len(exercises)} right, {points_text(result.points)} points"


# Title, advice, and whom it is about; the most urgent first.
MATTERS: Final[tuple[tuple[str, str, Why], ...]] = (
    (
        "Graded without a sandbox",
        "Student code ran with your rights: grade again with a sandbox.",
        lambda result: "" if result.isolation == NO_ISOLATION else None,
    ),
    (
        "The grader failed",
        "The points are not to be trusted: see the log in evidence/, then grade again.",
        _grader_failure,
    ),
    (
        "Rejected",
        "Nothing in it could be graded: ask for the right files.",
        lambda result: result.reason if result.status == REJECTED else None,
    ),
    (
        "Hit a limit",
        "A notebook was stopped: a slow machine, a slip, or an attack. See what it printed.",
        lambda result: _endings(result, "limit") or None,
    ),
    (
        "High points, but an error",
        "A notebook ended with an error and cost little: see whether the points are right.",
        _high_with_an_error,
    ),
    (
        "No exercise is right",
        "Not begun, saved before the work was done, or the wrong files: ask.",
        _no_exercise,
    ),
    (
        "Two versions of a notebook",
        "One was graded, and the other worked on, too: see which one was meant.",
        lambda result: (
            ", ".join(r.stage for r in result.stages if IGNORED_WORK in str(r.notes)) or None
        ),
    ),
    (
        "Names that look alike",
        "Each was graded: see whose is whose before the points go out.",
        lambda result: next((note for note in result.notes if ALIKE in note), None),
    ),
)
