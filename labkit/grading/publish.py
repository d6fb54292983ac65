"""From results to what is given back: gradebooks, feedback pages, the class page."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from labkit.grading.class_page import write_class_page
from labkit.grading.feedback import write_feedback
from labkit.grading.gradebook import write_gradebooks
from labkit.grading.plan import Plan, locked
from labkit.grading.results import Result, write_result

ROSTER = "roster.csv"

# Equal in every submission by construction: the data and the seed decide them.
ALWAYS_EQUAL = ("splits.json", "configure.json", "model_repository/")


def publish(plan: Plan, results: Sequence[Result], roster: Path | None = None) -> list[Path]:
    """Write everything that is given back.

    Args:
        plan: The grading.
        results: Of all submissions.
        roster: CSV with identities for the gradebooks; it is kept, and used again when None.

    Returns:
        The pages and tables that an instructor opens: class page, gradebooks.

    Raises:
        GradingRuns: another process grades into the same folder.
    """
    title, kept = plan.rubric.title, plan.out / ROSTER
    if roster is not None and roster.resolve() != kept.resolve():
        shutil.copyfile(roster, kept)
    roster = kept if kept.is_file() else None
    marked = mark_copies(results)
    with locked(plan.out):
        for result in marked:
            write_result(plan.result_path(result.student), result)
            write_feedback(plan.out, result, plan.evidence(result.student), title)
        page = write_class_page(plan.out, marked, title, roster)
        return [page, *write_gradebooks(plan.out, marked, title, roster)]


def mark_copies(results: Sequence[Result]) -> list[Result]:
    """Return the results with, for every artifact, the students whose file is the same.

    Reported, never punished: training with a fixed seed gives equal files for equal code.
    """
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result in results:
        for name, digest in _own_files(result):
            owners[name, digest].add(result.student)
    return [
        replace(
            result,
            same_as={
                name: sorted(owners[name, digest] - {result.student})
                for name, digest in _own_files(result)
                if len(owners[name, digest]) > 1
            },
        )
        for result in results
    ]


def _own_files(result: Result) -> list[tuple[str, str]]:
    """Return (artifact, SHA-256) of the files that tell one submission from another."""
    return [
        (name, digest)
        for record in result.stages
        for name, digest in record.artifacts.items()
        if not name.startswith(ALWAYS_EQUAL)
    ]
