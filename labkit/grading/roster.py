"""The roster: whose submission is whose, from a CSV file that the instructor keeps."""

import csv
import io
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.results import Result


class RosterError(LabError):
    """A roster that does not say clearly who is who."""


@dataclass(frozen=True)
class Person:
    """One line of the roster.

    Attributes:
        student: Name of the person's submission.
        name: Full name, as the learning platform has it.
        email: Address; also the login, where the platform takes one.
        id: The institution's number for the person.
    """

    student: str
    name: str = ""
    email: str = ""
    id: str = ""


def read_roster(path: Path) -> dict[str, Person]:
    """Read who is in the class.

    Returns:
        The submission's name, as `roster_key` writes it → the person.

    Raises:
        RosterError: the file cannot be read, has no column `student`, or a student twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [[cell.strip() for cell in line] for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise RosterError(
            f"the roster {path} cannot be read ({error}): save it as CSV, comma-separated, UTF-8"
        ) from error
    header = [title.lower() for title in rows[0]] if rows else []
    if "student" not in header:
        raise RosterError(
            f"the roster {path} has the columns {', '.join(header) or '(none)'}; expected "
            "student, name, email, id: `student` is the name of the submission's folder"
        )
    people: dict[str, Person] = {}
    for number, row in enumerate(rows[1:], start=2):
        if any(row):
            person = _person(path, number, dict(zip(header, row, strict=False)))
            if roster_key(person.student) in people:
                raise RosterError(
                    f"the roster {path} names {person.student} twice, again in row {number}: "
                    "keep one of the rows"
                )
            people[roster_key(person.student)] = person
    return people


def _person(path: Path, number: int, row: dict[str, str]) -> Person:
    """Return one line of the roster; `number` is its place in the file, from 1."""
    if not row.get("student"):
        raise RosterError(
            f"the roster {path} has no student in row {number}: enter the submission's name"
        )
    fields = {key: row.get(key, "") for key in ("student", "name", "email", "id")}
    return Person(**fields)


def roster_key(student: str) -> str:
    """Return a name for comparison: macOS writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", student.strip())


def without_submission(results: Iterable[Result], people: dict[str, Person]) -> list[Person]:
    """Return who is on the roster and handed in nothing, by the submission's name."""
    handed_in = {roster_key(result.student) for result in results}
    absent = [person for key, person in people.items() if key not in handed_in]
    return sorted(absent, key=lambda person: (person.student.casefold(), person.student))
