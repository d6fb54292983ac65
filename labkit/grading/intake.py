"""Intake: from whatever a student handed in to plain files, and which of them are the notebooks."""

import hashlib
import os
import re
import shutil
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nbformat import NotebookNode

from labkit.chain import STAGES
from labkit.grading.entries import IGNORED
from labkit.grading.find_notebooks import NotebookFound, NotebookProblem, find_notebooks
from labkit.grading.notebook_file import IntakeError
from labkit.grading.printable import short_name
from labkit.grading.results import GRADED, MISSING, REJECTED
from labkit.grading.unpack import Rejected, take_folder, take_zip

MAX_NOTES = 20
MAX_SLUG = 40
HASHED_NAME = re.compile(r".*-[0-9a-f]{10}")


@dataclass(frozen=True)
class Source:
    """One submission, as it was handed in.

    Attributes:
        student: Name of the folder, or of the zip without its ending.
        path: The folder or zip.
        is_zip: Which of the two.
    """

    student: str
    path: Path
    is_zip: bool


@dataclass(frozen=True)
class Intake:
    """A submission as plain files.

    Attributes:
        student: See `Source`.
        status: `REJECTED`, or `GRADED` where there is something to grade.
        folder: The files, without the folders that hold nothing but one folder.
        reason: Where rejected, why: one sentence.
        notebooks: Stage → its notebook.
        problems: Stage → why it has none. A stage is in one of the two, unless rejected.
        other_files: Names below `folder` of everything else.
        notes: What was left out, a sentence each.
        sha256: Over the names and bytes of all files; equal for a folder and its zip.
    """

    student: str
    status: str
    folder: Path
    reason: str = ""
    notebooks: dict[str, NotebookFound] = field(default_factory=dict)
    problems: dict[str, NotebookProblem] = field(default_factory=dict)
    other_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: str = ""


def find_submissions(folder: Path) -> tuple[list[Source], list[str]]:
    """Return the submissions in a folder by name, and a sentence per thing that is none.

    Raises:
        IntakeError: it is not a folder, holds no submission, or two of one name.
    """
    if not folder.is_dir():
        raise IntakeError(
            f"{folder} is not a folder: give the folder that holds one folder or zip per student"
        )
    sources: list[Source] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in IGNORED:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            sources.append(Source(_student(path.name), path, False))
        elif stat.S_ISREG(mode) and path.suffix.lower() == ".zip":
            sources.append(Source(_student(path.stem), path, True))
        else:
            what = "a link" if stat.S_ISLNK(mode) else "neither a folder nor a zip"
            left_out.append(f"left out: {short_name(path.name)} is {what}")
    _refuse_twins(sources)
    if not sources:
        found = "; ".join(left_out[:MAX_NOTES]) or "it is empty"
        raise IntakeError(
            f"{folder} holds no submission ({found}): expected one folder or one zip per student"
        )
    return sources, left_out


def _student(name: str) -> str:
    """Return a student's name as every system would write it, on one line."""
    normal = unicodedata.normalize("NFC", name).strip()
    return "".join(char if char.isprintable() else "_" for char in normal) or "_"


def _refuse_twins(sources: list[Source]) -> None:
    """Raise an `IntakeError` that names the submissions whose students cannot be told apart."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        key = unicodedata.normalize("NFC", source.student.casefold())
        by_name[key].append(short_name(source.path.name))
    if twins := [" and ".join(names) for names in by_name.values() if len(names) > 1]:
        raise IntakeError(
            f"got more than one submission of a student: {'; '.join(twins)}: keep one of them"
        )


def safe_name(student: str) -> str:
    """Return a folder name for a student: ASCII letters, digits, `.`, `_` and `-`; always the same.

    Papermill formats braces in paths, and shells trip over blanks and quotes. Different students
    get different names: where a character had to go, part of a hash is appended.
    """
    decomposed = unicodedata.normalize("NFKD", student).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", decomposed)[:MAX_SLUG].strip("-.")
    if slug and slug == student and not HASHED_NAME.fullmatch(student):
        return student
    digest = hashlib.sha256(student.encode(errors="backslashreplace")).hexdigest()
    return f"{slug or 'student'}-{digest[:10]}"


def take_in(
    source: Source, staging: Path, references: Mapping[str, NotebookNode] | None = None
) -> Intake:
    """Copy or extract a submission's plain files, and find its notebooks.

    Args:
        source: As `find_submissions` returns it.
        staging: Is made; may exist if it is empty.
        references: Stage → notebook as it was handed out, to recognise renamed ones; the
            project's own when None.

    Returns:
        What was found. A submission that is damaged or too large is rejected, not raised.

    Raises:
        IntakeError: the staging folder is not empty.
    """
    staging.mkdir(parents=True, exist_ok=True)
    if any(staging.iterdir()):
        raise IntakeError(f"the staging folder {staging} is not empty: give a new one")
    notes: list[str] = []
    try:
        take = take_zip if source.is_zip else take_folder
        digests = take(source.path, staging, notes)
        if not digests:
            raise Rejected(
                f"{short_name(source.path.name)} holds no file that can be taken in, expected the "
                "notebooks: hand in the folder notebooks/ or a zip of it"
            )
    except Rejected as error:
        shutil.rmtree(staging)
        staging.mkdir()
        return Intake(source.student, REJECTED, staging, str(error), notes=_at_most(notes))
    return _described(source, staging, digests, notes, references)


def _described(
    source: Source,
    staging: Path,
    digests: dict[str, str],
    notes: list[str],
    references: Mapping[str, NotebookNode] | None,
) -> Intake:
    """Return the intake of files that were copied, given each one's SHA-256."""
    top = _top_folder(digests)
    digests = {str(PurePosixPath(name).relative_to(top)): digests[name] for name in sorted(digests)}
    folder = staging / top
    notebooks, problems = find_notebooks(folder, digests, references)
    used = {found.path.relative_to(folder).as_posix() for found in notebooks.values()}
    nothing = all(problem.verdict == MISSING for problem in problems.values()) and not notebooks
    return Intake(
        student=source.student,
        status=REJECTED if nothing else GRADED,
        folder=folder,
        reason=_no_notebook(len(digests)) if nothing else "",
        notebooks=notebooks,
        problems=problems,
        other_files=sorted(digests.keys() - used),
        notes=_at_most(notes),
        sha256=_overall(digests),
    )


def _no_notebook(files: int) -> str:
    """Return why a submission without any notebook is rejected."""
    return (
        f"got {files:,} files and none of the notebooks, expected {STAGES[0]}.ipynb to "
        f"{STAGES[-1]}.ipynb: hand in the folder notebooks/ or a zip of it"
    )


def _top_folder(digests: Mapping[str, str]) -> str:
    """Return the folder below which everything lies; `.` where that is the root."""
    folders = [PurePosixPath(name).parent.as_posix() for name in digests]
    return os.path.commonpath(folders) or "."


def _overall(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 for all files, of their sorted names and their own SHA-256s."""
    lines = (f"{name}\0{digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _at_most(notes: list[str]) -> list[str]:
    """Return the first notes, and how many there were beyond."""
    more = len(notes) - MAX_NOTES
    return notes if more <= 0 else [*notes[:MAX_NOTES], f"{more:,} more files were left out"]
