"""Results → gradebook.csv; points and feedback as Canvas and Moodle take them."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from labkit.grading.find_submissions import safe_name
from labkit.grading.pages import by_name, one_line, points_text, words_for
from labkit.grading.results import GRADED, Result
from labkit.grading.roster import CANVAS, MOODLE, NOBODY, Person, Roster
from labkit.workspace import atomic_path, write_text

NO_SUBMISSION: Final = "no submission"
EXEMPT: Final = "exempt"
NEVER: Final = "-"  # as Moodle writes it
# A cell that begins so is a formula to a spreadsheet; the last four are their full-width twins.
FORMULA_STARTS: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
# So is what follows a sign at which some of them split a cell, and quotes that they take away.
_SPLIT_FORMULA: Final = re.compile(r"""([;,|]["'\s]*)(?=[=+\-@＝＋－＠])""")
WORKSHEET: Final = ("Identifier", "Full name", "Email address", "Status", "Grade",
                    "Maximum Grade", "Last modified (grade)", "Feedback comments")  # fmt: skip


Line = tuple[Result, Person]


def write_gradebooks(
    out: Path, results: Iterable[Result], rubric_title: str, people: Roster = NOBODY
) -> list[Path]:
    """Write `gradebook.csv`, `canvas.csv`, `moodle.csv`, and Moodle's worksheet where it is used.

    Nothing in them depends on when or how fast the grading ran: the same points give the same
    bytes. An import overwrites grades, so Canvas and Moodle get only points that can be trusted:
    of whoever was rejected or met a failure of the grader the cell is empty, and whoever has
    several submissions is left out.

    Args:
        out: Folder to write to.
        results: The class, in any order.
        rubric_title: Name of the assignment on the learning platform.
        people: Who is in the class.

    Returns:
        The paths.
    """
    ordered = by_name(results)
    maximum = max((result.maximum for result in ordered), default=0.0)
    lines = [(result, people.of(result) or _unknown(result)) for result in ordered]
    absent = [(_absent(person, maximum), person) for person in people.absent(ordered)]
    twice = people.twice(ordered)
    imported = [(result, person) for result, person in lines if result.student not in twice]
    imported += [(result, person) for result, person in absent if person.exempt]
    platforms = {people.platform, *(result.handed_in.platform for result in ordered)}
    are_known = bool(people) or any(result.handed_in.user for result in ordered)
    tables = {
        "gradebook.csv": _gradebook(lines + absent, are_known),
        "canvas.csv": _canvas(imported, people.column or rubric_title, points_text(maximum)),
        "moodle.csv": _moodle(imported, rubric_title),
    }
    if MOODLE in platforms:
        tables["moodle-worksheet.csv"] = _worksheet(imported, points_text(maximum))
    for name, rows in tables.items():
        write_text(out / name, _csv(rows))
    return [out / name for name in tables]


def _unknown(result: Result) -> Person:
    """Return what a submission itself says of a person who is not on the roster."""
    return Person(result.student, name=result.name, user=result.handed_in.user)


def _absent(person: Person, maximum: float) -> Result:
    """Return what stands for a submission that is not there."""
    student = person.student or person.name
    return Result(student, NO_SUBMISSION, "", maximum=maximum, exempt=person.exempt)


def _grade(result: Result, exempt: str = "") -> str:
    """Return the points to import; empty where there are none to be trusted."""
    if result.exempt:
        return exempt
    return points_text(result.points) if result.status == GRADED else ""


def _gradebook(lines: Sequence[Line], are_known: bool) -> list[list[str]]:
    """Return a row per student: status, total, every item, every verdict, notes."""
    items = list(dict.fromkeys(item.id for result, _ in lines for item in result.items))
    stages = dict.fromkeys(record.stage for result, _ in lines for record in result.stages)
    identity = ["name", "email", "id"] if are_known else []
    titles = ["student", *identity, "status", "total", "maximum", *items]
    titles += [*(f"{stage} verdict" for stage in stages), "late", "carried", "notes"]
    has_ids = any(person.id for _, person in lines)  # a platform's number is none of these
    rows = [_row(result, person, items, has_ids) for result, person in lines]
    rows.sort(key=lambda row: (row["student"].casefold(), row["student"]))
    return [titles, *([row.get(title, "") for title in titles] for row in rows)]


def _row(result: Result, person: Person, items: Iterable[str], has_ids: bool) -> dict[str, str]:
    """Return title → cell of a student; who handed in nothing has no points, or zero."""
    if result.status == NO_SUBMISSION:
        points = dict.fromkeys(["total", *items], "" if result.exempt else "0")
    else:
        points = {item.id: points_text(item.points) for item in result.items}
        points["total"] = points_text(result.points)
    return {
        "student": result.student,
        **_identity(person, has_ids),
        "status": EXEMPT if result.exempt else result.status,
        "maximum": points_text(result.maximum),
        **points,
        **{f"{record.stage} verdict": record.verdict for record in result.stages},
        "late": "late" if result.late else "",
        "carried": "; ".join(result.carried()),
        "notes": " ".join(_notes(result)),
    }


def _identity(person: Person, has_ids: bool) -> dict[str, str]:
    """Return what is known of a person, as columns; with IDs of the institution only, or of any."""
    email = person.email or (person.login if "@" in person.login else "")
    identity = person.id or ("" if has_ids else person.user)
    return {"name": person.name, "email": email, "id": identity}


def _notes(result: Result) -> list[str]:
    """Return what a grader should read before giving the points, a sentence each."""
    notes = [result.reason] if result.reason else []
    notes += result.notes
    return notes + [f"{record.stage}: {note}" for record in result.stages for note in record.notes]


def _canvas(lines: Sequence[Line], title: str, maximum: str) -> list[list[str]]:
    """Return the layout of Canvas' gradebook import.

    Canvas looks for a person by ID, its own number; then by SIS User ID, SIS Login ID and name. A
    row whose first cell says "Points Possible" gives the highest points, wherever it stands, so no
    student may be called that. Moodle's number of a person is not Canvas'.
    """
    rows = [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", title],
        ["Points Possible", "", "", "", "", maximum],
    ]
    for result, person in lines:
        name = (person.name or result.student).replace("Points Possible", "Points-Possible")
        login = person.login or person.email or ("" if person.user else result.student)
        user = "" if result.handed_in.platform == MOODLE else person.user
        identity = [name, user, person.id, login, person.section]
        rows.append([*identity, _grade(result, "EX")])
    return rows


def _moodle(lines: Sequence[Line], title: str) -> list[list[str]]:
    """Return the layout of Moodle's grade import.

    On import, "Identify user by" is set to one of the first three columns. Grade and feedback are
    both there because Moodle clears the one that is left out.
    """
    rows = [["Username", "ID number", "Email address", title, f"{title} (Feedback)"]]
    for result, person in lines:
        identity = [person.login or person.student or result.student, person.id, person.email]
        rows.append([*identity, _grade(result), _comment(result)])
    return rows


def _worksheet(lines: Sequence[Line], maximum: str) -> list[list[str]]:
    """Return Moodle's offline grading worksheet, which its assignments take back.

    Moodle takes none without its column "Last modified (grade)", and skips whoever was graded there
    since: so that time is given back as it was.
    """
    rows = [list(WORKSHEET)]
    for result, person in lines:
        user = person.user or result.handed_in.user
        identity = [f"Participant {user}" if user else "", person.shown, person.email]
        when = person.graded or NEVER
        rows.append([*identity, "", _grade(result), maximum, when, _comment(result)])
    return rows


def _comment(result: Result) -> str:
    """Return the points per notebook in one line. Nothing in it was written by a student.

    Empty where there are no points to import, which would be no comment on anything.
    """
    if result.exempt or result.status != GRADED:
        return ""
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
    """Return a cell on one line that no spreadsheet takes for a formula, wherever it splits."""
    line = _SPLIT_FORMULA.sub(r"\1'", one_line(text))
    return f"'{line}" if line.startswith(FORMULA_STARTS) and line != NEVER else line


ZIPS: Final = {CANVAS: "canvas-feedback.zip", MOODLE: "moodle-feedback.zip"}
STAMP: Final = (1980, 1, 1, 0, 0, 0)  # the same feedback gives the same bytes


def write_feedback_zips(out: Path, results: Iterable[Result], roster: Roster) -> list[Path]:
    """Write a zip for each platform that the submissions, or the roster, come from.

    Canvas takes a file whose name begins as that of a file handed in; Moodle a folder that is
    called as the one in its download.
    """
    files: dict[str, list[tuple[str, bytes]]] = {}
    for result in results:
        folder = out / "feedback" / safe_name(result.student)
        pages = sorted(folder.glob("*.html")) if folder.is_dir() else []
        about, person = result.handed_in, roster.of(result)
        platform, prefix = about.platform or roster.platform, about.prefix
        if not prefix and platform == MOODLE and person and person.user:
            prefix = f"{person.name}_{person.user}_assignsubmission_file_"
        if not (pages and prefix and platform in ZIPS):
            continue
        if platform == MOODLE:
            inside = [(f"{prefix}/{page.name}", page.read_bytes()) for page in pages]
        else:
            packed = _zip([(f"feedback/{page.name}", page.read_bytes()) for page in pages])
            inside = [(f"{prefix}feedback.zip", packed)]
        files.setdefault(platform, []).extend(inside)
    for platform, content in files.items():
        with atomic_path(out / ZIPS[platform]) as path:
            path.write_bytes(_zip(content))
    return [out / ZIPS[platform] for platform in files]


def _zip(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip of these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name, STAMP), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()
