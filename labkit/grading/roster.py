"""Whose submission is whose: what platforms write into the names of files, and the roster."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from labkit.errors import LabError
from labkit.grading.results import Result

CANVAS, MOODLE = "canvas", "moodle"
# exampleada_LATE_12345_67890_03_export-1.ipynb: whose, late, user, attachment, file.
_CANVAS: Final = re.compile(
    r"(?P<name>.+?)_(?:(?P<late>(?i:late))_)?(?P<user>\d+)_(?P<attachment>\d+)_(?P<file>.+)",
    re.DOTALL,
)
# LATE_anon_aB3xY_67890_01_data.ipynb, where grading is anonymous: late, who, attachment, file.
_ANONYMOUS: Final = re.compile(
    r"(?:(?P<late>(?i:late))_)?(?P<name>anon_[A-Za-z0-9]+)_(?:(?P<after>(?i:late))_)?"
    r"(?P<attachment>\d+)_(?P<file>.+)",
    re.DOTALL,
)
# Jane Doe_12345_assignsubmission_file_: a folder, or in front of the file's name.
_MOODLE: Final = re.compile(
    r"(?P<name>.+)_(?P<user>\d+)_assignsubmission_(?P<what>file|onlinetext)_?(?P<file>.*)",
    re.DOTALL,
)
# Canvas counts what was handed in again under the same name: 01_data-1.ipynb.
_AGAIN: Final = re.compile(r"-([1-9]\d*)(?=(\.[A-Za-z0-9]+)+$|$)")


@dataclass(frozen=True)
class Name:
    """What the name of a file or folder says.

    Attributes:
        platform: `canvas` or `moodle`.
        person: As the platform writes the name.
        user: The platform's own number for the person; empty where it is kept from the grader.
        prefix: What it expects before the name of a file that is given back.
        file: The file's own name, with what Canvas may have added; empty for a folder.
        late: Whether the platform says so.
        attachment: Canvas' number for the file; a later file has a higher one.
        is_text: Whether it is what was typed into a field, and no file.
    """

    platform: str
    person: str
    user: str
    prefix: str
    file: str
    late: bool = False
    attachment: int = 0
    is_text: bool = False


def read_name(name: str) -> Name | None:
    """Return what a name says; None where no platform has written it."""
    if match := _MOODLE.fullmatch(name):
        prefix = name[: len(name) - len(match["file"])] if match["file"] else name
        is_text = match["what"] == "onlinetext"
        return Name(MOODLE, match["name"], match["user"], prefix, match["file"], is_text=is_text)
    match = _ANONYMOUS.fullmatch(name) or _CANVAS.fullmatch(name)
    if match is None:
        return None
    said = match.groupdict(default="")
    user, attachment = said.get("user", ""), said["attachment"]
    if user and name.lower().endswith(".zip") and _is_date(user, attachment):
        return None  # somebody's own zip
    prefix, late = name[: match.start("file")], bool(said["late"] or said.get("after"))
    return Name(CANVAS, said["name"], user, prefix, said["file"], late, int(attachment))


def _is_date(*numbers: str) -> bool:
    """Say whether two numbers of a name are rather a year, a month or a day."""
    return any(len(n) < 3 for n in numbers[1:]) or (
        len(numbers[0]) < 3 and numbers[1].startswith(("19", "20")) and len(numbers[1]) == 4
    )


def without_count(file: str) -> tuple[str, int]:
    """Return a file's name without the count that Canvas may have added, and the count, else 0."""
    counted = _AGAIN.search(file)
    return (_AGAIN.sub("", file), int(counted[1])) if counted else (file, 0)


POINTS_POSSIBLE: Final = "points possible"  # a row of Canvas' gradebook that is no student
MOODLE_MAXIMUM: Final = "maximum grade"
TEST_STUDENTS: Final = frozenset({"student, test", "test student"})
YES: Final = frozenset({"x", "yes", "y", "true", "1", "ex", "exempt", "excused"})
NO: Final = frozenset({"", "no", "n", "false", "0", "-"})
# Column of a file → what it is of a person.
CANVAS_COLUMNS: Final = {
    "student": "name", "firstname": "first", "lastname": "last", "id": "user",
    "sis user id": "id", "sis login id": "login",
    "section": "section", "email": "email", "exempt": "exempt",
}  # fmt: skip
MOODLE_COLUMNS: Final = {
    "identifier": "user", "full name": "name", "first name": "first", "last name": "last",
    "surname": "last", "id number": "id", "email address": "email", "username": "login",
    "status": "status", "last modified (grade)": "graded", "exempt": "exempt",
}  # fmt: skip
# Of a column with the points of an assignment in Canvas' gradebook: its title, then its number.
_ASSIGNMENT: Final = re.compile(r"(?P<title>.+?)\s*\(\d+\)")
SEPARATORS: Final = ",;\t"  # of cells: as platforms and spreadsheets of some languages save them
OWN_COLUMNS: Final = ("student", "name", "email", "id", "section", "exempt")
# A platform's number of a person: alone, or as Moodle writes it, "Participant 12345"; programs that
# read a column with gaps write it as 12345.0.
_NUMBER: Final = re.compile(r"\D*(\d+)(?:\.0{1,2})?")


class RosterError(LabError):
    """A roster that does not say clearly who is who."""


@dataclass(frozen=True)
class Person:
    """One line of the roster.

    Attributes:
        student: Name of the person's submission, where the roster says it.
        name: Full name, as the learning platform has it.
        email: Address; also the login, where the platform takes one.
        id: The institution's number for the person.
        user: The platform's own number.
        login: What the person signs in with.
        section: Of the course.
        exempt: Whether no points are to be given.
        late: Whether the platform says so.
        graded: When the platform last saw a grade, as Moodle's worksheet writes it.
    """

    student: str = ""
    name: str = ""
    email: str = ""
    id: str = ""
    user: str = ""
    login: str = ""
    section: str = ""
    exempt: bool = False
    late: bool = False
    graded: str = ""

    @property
    def shown(self) -> str:
        """The name, else that of the submission."""
        return self.name or self.student


class Roster:
    """Everybody in the class.

    Args:
        people: In the order of the file.
        platform: Whose export it is; empty for the instructor's own.
        note: What was not understood in it, a sentence; empty where all was.
        column: In Canvas' gradebook, title and number of the assignment that is called as asked.
        maximum: The points that the platform gives at most; None where the file does not say.
    """

    def __init__(
        self,
        people: Iterable[Person] = (),
        platform: str = "",
        note: str = "",
        column: str = "",
        maximum: float | None = None,
    ) -> None:
        self.people, self.platform, self.note = tuple(people), platform, note
        self.column, self.maximum = column, maximum
        self._found: dict[tuple[str, str], Person | None] = {}  # each table and page asks anew

    def __bool__(self) -> bool:
        return bool(self.people)

    def of(self, result: Result) -> Person | None:
        """Return whose submission it is; None where that is not clear.

        By the submission's own name, by the platform's number, and by the person's name, in either
        order and as Canvas writes it into the names of files; of two numbers that differ, the name
        is another person's. Moodle writes a team's number where others have a person's: there the
        name has to be the person's, too.
        """
        return self.find(result.student, result.handed_in.user)

    def find(self, student: str, user: str) -> Person | None:
        """Return whose submission it is, see `of`, by its name and the platform's number."""
        if (student, user) not in self._found:
            self._found[student, user] = self._look_for(student, user)
        return self._found[student, user]

    def _look_for(self, student: str, user: str) -> Person | None:
        own = roster_key(student)
        tests = (
            lambda p: bool(p.student) and roster_key(p.student) == own,
            lambda p: bool(p.user and user) and p.user == user and self._may_be(p, own),
            lambda p: not (p.user and user) and _squashed(own) in _spellings(p.name),
        )
        for test in tests:
            found = [person for person in self.people if test(person)]
            if len(found) == 1:
                return found[0]
        return None

    def _may_be(self, person: Person, student: str) -> bool:
        """Return whether the person of a number can be the one that a submission names."""
        if self.platform != MOODLE or not person.name or person.name[-1:].isdecimal():  # anonymous
            return True
        return any(spelling in _squashed(student) for spelling in _spellings(person.name))

    def twice(self, results: Iterable[Result]) -> dict[str, Person]:
        """Return submission → person, of those of which somebody has several."""
        whose = {result.student: person for result in results if (person := self.of(result))}
        times = Counter(map(id, whose.values()))
        return {student: person for student, person in whose.items() if times[id(person)] > 1}

    def absent(self, results: Iterable[Result]) -> list[Person]:
        """Return who is on the roster and handed in nothing, by name."""
        present = {id(person) for result in results if (person := self.of(result))}
        absent = [person for person in self.people if id(person) not in present]
        return sorted(absent, key=lambda person: (person.shown.casefold(), person.shown))


NOBODY: Final = Roster()


def read_roster(path: Path | None, assignment: str = "") -> Roster:
    """Read who is in the class; nobody where there is no file.

    Args:
        path: The instructor's own (`student`, `name`, `email`, `id`, `exempt`; only the first is
            needed), Canvas' export of its gradebook, or Moodle's grading worksheet or gradebook.
        assignment: Its name in Canvas' gradebook, where `EX` in its column is an exemption; the
            only assignment there needs none.

    Raises:
        RosterError: the file cannot be read, has no column that names people, a student twice, or
            a number or a word that says nothing.
    """
    if path is None:
        return NOBODY
    rows = _rows(path)
    header = _header(rows)
    platform, columns = _columns(rows)
    if not columns:
        raise RosterError(
            f"the roster {path} has the columns {', '.join(header) or '(none)'}; expected "
            "student, name, email, id: `student` is the name of the submission's folder; or the "
            "gradebook that Canvas or Moodle exports, in English (in Moodle, set your own language "
            "to English and export it again)"
        )
    points = _points_column(header, assignment) if platform == CANVAS else ""
    named = points if _ASSIGNMENT.sub(r"\g<title>", points) == assignment.casefold() else ""
    found: dict[tuple[str, ...], Person] = {}
    maxima: set[float] = set()
    unread = 0
    for number, row in enumerate(rows[1:], start=2):
        cells = dict(zip_longest(header, row[: len(header)], fillvalue=""))
        fields = {columns[title]: cell for title, cell in cells.items() if title in columns}
        person = _person(fields, excused=bool(points) and cells[points].casefold() == "ex")
        if platform == MOODLE or cells[header[0]].casefold().startswith(POINTS_POSSIBLE):
            with suppress(ValueError):
                title = MOODLE_MAXIMUM if platform == MOODLE else named
                maxima.add(float(cells.get(title, "").replace(",", ".")))
        if not any(row) or not _is_person(person, platform):
            continue
        if problem := _unclear(fields):
            raise RosterError(f"the roster {path}, row {number}: {problem}")
        if not (platform or person.student):
            raise RosterError(
                f"the roster {path} has no student in row {number}: enter the submission's name"
            )
        unread += not points and any(
            cell.casefold() == "ex" for title, cell in cells.items() if _ASSIGNMENT.fullmatch(title)
        )
        key = (roster_key(person.student),) if person.student else _apart(person)
        if key in found and not (person.user and platform):
            raise RosterError(
                f"the roster {path} names {person.shown} twice, again in row {number}: "
                "keep one of the rows"
            )
        exempt = person.exempt or (key in found and found[key].exempt)  # one person, two sections
        found[key] = replace(person, exempt=exempt)
    note = (
        f"the roster {path} has EX in {unread} rows, and not one column of an assignment that is "
        f"called {assignment or 'as the rubric'}: nobody was exempted by it"
    )
    column = rows[0][header.index(named)] if named else ""
    maximum = maxima.pop() if len(maxima) == 1 else None
    return Roster(found.values(), platform, note if unread else "", column, maximum)


def _rows(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file, as platforms and spreadsheets save them.

    Of the separators, that one counts under which the first row is a header that is known.

    Raises:
        RosterError: it cannot be read.
    """
    readings, problem = [], ""
    try:
        content = path.read_bytes()
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
        text = re.sub(r"\A(\s*\n|sep=.?\r?\n)*", "", text)  # Excel's own line before the header
        first = text.partition("\n")[0]
        for separator in sorted(SEPARATORS, key=first.count, reverse=True):
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            try:
                readings.append([[cell.strip() for cell in line] for line in lines])
            except csv.Error as error:
                problem = problem or str(error)
    except (OSError, ValueError) as error:
        problem = str(error)
    if not readings:
        raise RosterError(
            f"the roster {path} cannot be read ({problem}): save it as CSV, comma-separated, UTF-8"
        )
    return next((rows for rows in readings if _columns(rows)[1]), readings[0])


def _header(rows: list[list[str]]) -> list[str]:
    """Return the titles of the columns."""
    return [title.lower() for title in rows[0]] if rows else []


def _columns(rows: list[list[str]]) -> tuple[str, Mapping[str, str]]:
    """Return whose export a file is, and what its columns are; none where it is not clear."""
    titles = set(_header(rows))
    is_canvas = (
        bool({"sis user id", "sis login id"} & titles)
        or any(row and row[0].casefold().startswith(POINTS_POSSIBLE) for row in rows[1:4])
        or ({"id", "section"} <= titles and _names_last_first(rows))
    )
    if is_canvas and {"student", "lastname"} & titles and not {"student", "name"} <= titles:
        return CANVAS, CANVAS_COLUMNS
    if {"full name", "first name", "identifier"} & titles:
        return MOODLE, MOODLE_COLUMNS
    return "", {title: title for title in OWN_COLUMNS} if "student" in titles else {}


def _names_last_first(rows: list[list[str]]) -> bool:
    """Return whether most names of the column `student` are as Canvas writes them."""
    header = _header(rows)
    place = header.index("student") if "student" in header else len(header)
    names = [row[place] for row in rows[1:] if len(row) > place and row[place]]
    return 2 * sum("," in name for name in names) > len(names)


def _points_column(header: list[str], assignment: str) -> str:
    """Return the column of an assignment in Canvas' gradebook; empty where it is not clear."""
    titles = {title: match["title"] for title in header
              if (match := _ASSIGNMENT.fullmatch(title))}  # fmt: skip
    own = [title for title in titles if titles[title] == assignment.casefold()] or [*titles]
    return own[0] if len(own) == 1 else ""


def _is_person(person: Person, platform: str) -> bool:
    """Return whether a row is about a person."""
    name = (person.name or person.student).casefold()
    if name.startswith(POINTS_POSSIBLE):
        return False
    return not platform or (bool(name) and name not in TEST_STUDENTS)


def _apart(person: Person) -> tuple[str, ...]:
    """Return what tells a person of an export from all others."""
    return (
        person.user,
        person.name,
        *(() if person.user else (person.id, person.email, person.login)),
    )


def _unclear(fields: Mapping[str, str]) -> str:
    """Say what of a line is not clear: its number, or what it says of an exemption."""
    for number in (fields.get("user", ""), fields.get("id", "")):
        if re.fullmatch(r"\d[.,]\d+e[+-]\d+", number, re.IGNORECASE):
            return (
                f"got the number {number}, which a spreadsheet has rounded: export the file again, "
                "and do not save it with the spreadsheet"
            )
    number = fields.get("user", "")
    if any(map(str.isdecimal, number)) and not _NUMBER.fullmatch(number):
        return f"got the number {number}, expected digits only, such as 12345"
    if _flag(fields) not in YES | NO:
        return f"got {_flag(fields)!r} under exempt, expected yes, or nothing"
    return ""


def _flag(fields: Mapping[str, str]) -> str:
    """Return what stands under `exempt`, in small letters; a number without its decimals."""
    return fields.get("exempt", "").casefold().removesuffix(".0")


def _person(fields: Mapping[str, str], excused: bool) -> Person:
    """Return one line of the roster."""
    first_last = f"{fields.get('first', '')} {fields.get('last', '')}".strip()
    number = fields.get("user", "")  # Moodle writes "Participant 12345", at times without a name
    whole = _NUMBER.fullmatch(number)
    return Person(
        student=fields.get("student", ""),
        name=fields.get("name", "") or first_last or ("" if number[:1].isdecimal() else number),
        email=fields.get("email", ""),
        id=re.sub(r"\A(\d+)\.0+\Z", r"\1", fields.get("id", "")),
        user=whole[1] if whole else "",
        login=fields.get("login", ""),
        section=fields.get("section", ""),
        exempt=excused or _flag(fields) in YES,
        late="late" in fields.get("status", "").casefold(),
        graded=fields.get("graded", ""),
    )


def roster_key(student: str) -> str:
    """Return a name for comparison: macOS writes é as two characters, other systems as one.

    Signs that only say how others are to be shown, as Persian has them, are no part of it.
    """
    seen = "".join(char for char in student if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFC", seen.strip())


def _squashed(name: str) -> str:
    """Return the letters of a name alone, as Canvas writes it into the names of files.

    Marks are part of them: in Hindi and Thai they are the vowels.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in plain if c.isalnum() or unicodedata.category(c).startswith("M"))


def _spellings(name: str) -> set[str]:
    """Return a name's letters in every order of first and last name."""
    words = name.replace(",", " ").split()
    return {_squashed("".join(words[at:] + words[:at])) for at in range(len(words))}
