"""Results → gradebook.csv, and the same points as Canvas and Moodle import them."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from labkit.grading.pages import by_name, carried, one_line, points_text, words_for
from labkit.grading.results import FAILED, GRADED, Result
from labkit.grading.roster import Person, read_roster, roster_key, without_submission
from labkit.workspace import write_text

NO_SUBMISSION: Final = "no submission"
# A cell that begins so is a formula to a spreadsheet; the last four are their full-width twins.
FORMULA_STARTS: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def write_gradebooks(
    out: Path, results: Iterable[Result], rubric_title: str, roster: Path | None = None
) -> list[Path]:
    """Write `gradebook.csv`, `canvas.csv` and `moodle.csv`.

    Nothing in them depends on when or how fast the grading ran: the same points give the same
    bytes. Canvas and Moodle get only points that can be trusted: whoever handed in nothing, or
    met a failure of the grader, is left out there, so that an import overwrites nothing.

    Args:
        out: Folder to write to.
        results: The class, in any order.
        rubric_title: Name of the assignment on the learning platform.
        roster: CSV with the columns `student`, `name`, `email` and `id`; only the first is needed.

    Returns:
        The three paths.

    Raises:
        RosterError: the roster cannot be read, or names a student twice or not at all.
    """
    ordered = by_name(results)
    people = read_roster(roster) if roster else {}
    trusted = [result for result in ordered if result.status != FAILED]
    tables = {
        "gradebook.csv": _gradebook(ordered, people),
        "canvas.csv": _canvas(trusted, people, rubric_title),
        "moodle.csv": _moodle(trusted, people, rubric_title),
    }
    for name, rows in tables.items():
        write_text(out / name, _csv(rows))
    return [out / name for name in tables]


def _gradebook(results: Sequence[Result], people: dict[str, Person]) -> list[list[str]]:
    """Return a row per student: status, total, every item, every verdict, notes."""
    items = list(dict.fromkeys(item.id for result in results for item in result.items))
    stages = list(dict.fromkeys(record.stage for result in results for record in result.stages))
    identity = ["name", "email", "id"] if people else []
    titles = ["student", *identity, "status", "total", "maximum", *items]
    titles += [*(f"{stage} verdict" for stage in stages), "carried", "notes"]
    rows = {}
    for result in results:
        person = people.get(roster_key(result.student), Person(result.student))
        rows[result.student] = {
            **_identity(person),
            "student": result.student,
            "status": result.status,
            "total": points_text(result.points),
            "maximum": points_text(result.maximum),
            **{item.id: points_text(item.points) for item in result.items},
            **{f"{record.stage} verdict": record.verdict for record in result.stages},
            "carried": "; ".join(carried(result)),
            "notes": " ".join(_notes(result)),
        }
    maximum = points_text(max((result.maximum for result in results), default=0.0))
    for person in without_submission(results, people):
        status = {"status": NO_SUBMISSION, "total": "0", "maximum": maximum}
        zeros = dict.fromkeys(items, "0")
        rows[person.student] = {"student": person.student, **_identity(person), **status, **zeros}
    ordered = sorted(rows, key=lambda student: (student.casefold(), student))
    return [titles, *([rows[student].get(title, "") for title in titles] for student in ordered)]


def _identity(person: Person) -> dict[str, str]:
    """Return what the roster says of a person, as columns."""
    return {"name": person.name, "email": person.email, "id": person.id}


def _notes(result: Result) -> list[str]:
    """Return what a grader should read before giving the points, a sentence each."""
    notes = [result.reason] if result.reason else []
    notes += result.notes
    return notes + [f"{record.stage}: {note}" for record in result.stages for note in record.notes]


def _canvas(results: Sequence[Result], people: dict[str, Person], title: str) -> list[list[str]]:
    """Return the layout of Canvas' gradebook import.

    Canvas looks for a person by ID, its own number, which is unknown here and stays empty; then by
    SIS User ID, SIS Login ID and name. A row whose first cell says "Points Possible" gives the
    highest points, wherever it stands, so no student may be called that.
    """
    maximum = points_text(max((result.maximum for result in results), default=0.0))
    rows = [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", title],
        ["Points Possible", "", "", "", "", maximum],
    ]
    for result in results:
        person = people.get(roster_key(result.student), Person(result.student))
        name = (person.name or result.student).replace("Points Possible", "Points-Possible")
        login = person.email or result.student
        rows.append([name, "", person.id, login, "", points_text(result.points)])
    return rows


def _moodle(results: Sequence[Result], people: dict[str, Person], title: str) -> list[list[str]]:
    """Return the layout of Moodle's grade import.

    On import, "Identify user by" is set to one of the first three columns. Grade and feedback are
    both there because Moodle clears the one that is left out.
    """
    rows = [["Username", "ID number", "Email address", title, f"{title} (Feedback)"]]
    for result in results:
        person = people.get(roster_key(result.student), Person(result.student))
        identity = [result.student, person.id, person.email]
        rows.append([*identity, points_text(result.points), _comment(result)])
    return rows


def _comment(result: Result) -> str:
    """Return the points per notebook in one line. Nothing in it was written by a student."""
    if result.status != GRADED:
        return f"{result.status}: nothing in the submission could be graded"
    parts = [f"{points_text(result.points)} of {points_text(result.maximum)} points."]
    verdicts = {record.stage: record.verdict for record in result.stages}
    for stage in dict.fromkeys(item.stage for item in result.items):
        own = [item for item in result.items if item.stage == stage]
        points = points_text(sum(item.points for item in own))
        maximum = points_text(sum(item.maximum for item in own))
        label = f", {words_for(verdicts[stage]).label}" if stage in verdicts else ""
        parts.append(f"{stage}: {points}/{maximum}{label}.")
    return " ".join(parts)


def _csv(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as RFC 4180 has them: comma, CRLF, quotes where they are needed."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _cell(text: str) -> str:
    """Return a cell on one line that no spreadsheet takes for a formula."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line
