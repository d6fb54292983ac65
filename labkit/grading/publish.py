"""From results to what is given back: gradebooks, feedback pages, the class page."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from labkit.grading.class_page import write_class_page
from labkit.grading.feedback import write_feedback
from labkit.grading.grade import scored
from labkit.grading.gradebook import write_feedback_zips, write_gradebooks
from labkit.grading.results import Result, write_result
from labkit.grading.roster import Roster, read_roster
from labkit.grading.rubric import Rubric
from labkit.grading.session import Session, locked

ROSTER = "roster.csv"

# Equal in every submission by construction: the data and the seed decide them.
ALWAYS_EQUAL = ("splits.json", "statistics.json", "configure.json", "model_repository/")


def publish(session: Session, results: Sequence[Result], roster: Path | None = None) -> list[Path]:
    """Write everything that is given back.

    Args:
        session: The grading.
        results: Of all submissions.
        roster: CSV with identities for the gradebooks; it is kept, and used again when None.

    Returns:
        The pages and tables that an instructor opens: class page, gradebooks.

    Raises:
        GradingRuns: another process grades into the same folder.
    """
    title, kept = session.rubric.title, session.out / ROSTER
    if roster is not None and roster.resolve() != kept.resolve():
        shutil.copyfile(roster, kept)
    people = read_roster(kept if kept.is_file() else None, title)
    named = [_named(result, people, session.rubric) for result in results]
    marked = mark_copies(named, session.reference_files())
    with locked(session.out):
        for result in marked:
            write_result(session.result_path(result.student), result)
            write_feedback(session.out, result, session.evidence(result.student), title)
        page = write_class_page(session.out, marked, title, people)
        tables = write_gradebooks(session.out, marked, title, people)
        return [page, *tables, *write_feedback_zips(session.out, marked, people)]


def _named(result: Result, people: Roster, rubric: Rubric) -> Result:
    """Return a result with what the roster says of the person."""
    person = people.of(result)
    name, exempt, late = (person.name, person.exempt, person.late) if person else ("", False, False)
    named = replace(result, name=name, exempt=exempt, late_by_roster=late)
    return scored(named, rubric) if named.late != result.late else named


def mark_copies(results: Sequence[Result], handed_out: Iterable[str] = ()) -> list[Result]:
    """Return the results with, for every artifact, the students whose file is the same.

    Reported, never punished: training with a fixed seed gives equal files for equal code. Files
    that are the reference run's own, by their SHA-256, tell nothing.
    """
    known = frozenset(handed_out)
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result in results:
        for name, digest in _own_files(result, known):
            owners[name, digest].add(result.student)
    return [
        replace(
            result,
            same_as={
                name: sorted(owners[name, digest] - {result.student})
                for name, digest in _own_files(result, known)
                if len(owners[name, digest]) > 1
            },
        )
        for result in results
    ]


def _own_files(result: Result, known: frozenset[str]) -> list[tuple[str, str]]:
    """Return (artifact, SHA-256) of the files that tell one submission from another."""
    return [
        (name, digest)
        for record in result.stages
        for name, digest in record.artifacts.items()
        if not name.startswith(ALWAYS_EQUAL) and digest not in known
    ]
