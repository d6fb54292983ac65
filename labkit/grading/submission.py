"""A submission taken in: its plain files, and which of them are the notebooks."""

import hashlib
import multiprocessing
import os
import re
import resource
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from labkit.chain import STAGES
from labkit.grading.find_notebooks import NotebookFound, NotebookProblem, find_notebooks
from labkit.grading.find_submissions import ARCHIVES, Source
from labkit.grading.notebook import IntakeError, NotebookNode
from labkit.grading.results import GRADED, MISSING, REJECTED
from labkit.grading.unpack import Rejected, left_out, take
from labkit.grading.untrusted import short_name

MAX_NOTES = 20
PACKED = (
    ".rar",
    ".7z",
    ".tgz",
    ".tar",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".ipynb.gz",
    ".ipynb.bz2",
    ".ipynb.xz",
)  # not opened, and may hold notebooks
UNOPENED = re.compile(rf"left out: .*\.({'|'.join(end[1:] for end in ARCHIVES)}) \(", re.IGNORECASE)
LIMIT_S = 60.0  # for reading one submission


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


def take_in(source: Source, staging: Path, references: Mapping[str, NotebookNode]) -> Intake:
    """Copy or extract a submission's plain files, and find its notebooks.

    Args:
        source: As `find_submissions` returns it.
        staging: Is made; may exist if it is empty.
        references: Stage → notebook as it was handed out, to recognise renamed ones.

    Returns:
        What was found. A submission that is damaged or too large is rejected, not raised.

    Raises:
        IntakeError: the staging folder is not empty.
    """
    staging.mkdir(parents=True, exist_ok=True)
    if any(staging.iterdir()):
        raise IntakeError(f"the staging folder {staging} is not empty: give a new one")
    notes = list(source.notes)
    try:
        digests, from_zips = take(source.paths, source.is_zip, staging, notes)
        if not digests:
            causes = {note.rpartition(" (")[2].removesuffix(")") for note in notes}
            why = f" ({causes.pop()})" if len(causes) == 1 else ""
            raise Rejected(
                f"{short_name(source.path.name)} holds no file that can be taken in{why}, expected "
                "the notebooks: hand in the folder notebooks/ or a zip of it"
            )
    except Rejected as error:
        shutil.rmtree(staging)
        staging.mkdir()
        return Intake(source.student, REJECTED, staging, str(error), notes=_at_most(notes))
    packed = [name for name in sorted(digests) if name.lower().endswith(PACKED)]
    notes += [left_out(name, "an archive that is not opened: hand in a zip") for name in packed]
    top = _top_folder(digests)
    digests = {str(PurePosixPath(name).relative_to(top)): digests[name] for name in sorted(digests)}
    from_zips = frozenset(str(PurePosixPath(name).relative_to(top)) for name in from_zips)
    folder = staging / top
    notebooks, problems = find_notebooks(folder, digests, references, from_zips)
    nothing = all(problem.verdict == MISSING for problem in problems.values()) and not notebooks
    used = {found.path.relative_to(folder).as_posix() for found in notebooks.values()}
    return Intake(
        student=source.student,
        status=REJECTED if nothing else GRADED,
        folder=folder,
        reason=_no_notebook(digests) if nothing else "",
        notebooks=notebooks,
        problems=problems,
        other_files=sorted(digests.keys() - used),
        notes=_at_most(notes),
        sha256=_overall(digests),
    )


def unopened(notes: Iterable[str]) -> list[str]:
    """Return the notes about archives whose content was left out: it may be somebody's work."""
    return [note for note in notes if UNOPENED.match(note)]


def take_in_time(
    source: Source, staging: Path, references: Mapping[str, NotebookNode], limit_s: float = LIMIT_S
) -> Intake:
    """Do `take_in` in a process of its own, which is stopped at a time limit.

    Nothing of a student's runs in it; but a small archive can hold very much to read.
    """
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 2))
        writing.send(take_in(source, staging, references))

    child = context.Process(target=job, daemon=True)
    child.start()
    writing.close()
    try:
        if reading.poll(limit_s):
            return reading.recv()  # what our own code has sent
        why = f"was not read after {limit_s:g} s"
    except EOFError:
        why = "could not be read in time, or in memory"
    finally:
        child.kill()
        child.join()
        reading.close()
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, exist_ok=True)
    reason = f"{short_name(source.path.name)} {why}: hand in only the notebooks and what they need"
    return Intake(source.student, REJECTED, staging, reason)


def _no_notebook(names: Mapping[str, str]) -> str:
    """Return why a submission without any notebook is rejected."""
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    unopened = f", and {short_name(archives[0])}, which was not opened" if archives else ""
    return (
        f"got {len(names):,} files and none of the notebooks{unopened}, expected "
        f"{min(STAGES)}.ipynb to {max(STAGES)}.ipynb: hand in the folder notebooks/ or a zip of it"
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
    """Return the first notes, archives before others, and how many there were beyond."""
    notes = sorted(notes, key=lambda note: not UNOPENED.match(note))
    more = len(notes) - MAX_NOTES
    return notes if more <= 0 else [*notes[:MAX_NOTES], f"{more:,} more files were left out"]
