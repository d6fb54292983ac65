"""Which of the files that were handed in is the notebook of which stage.

A notebook is looked into once for what its content says, of which little is kept, and read once
more where it is chosen: somebody may hand in many, and large ones.
"""

import hashlib
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from labkit.chain import STAGES
from labkit.grading.exercises.catalogue import CATALOGUE, EXERCISES
from labkit.grading.limits import MIB
from labkit.grading.notebook import (
    INJECTED,
    IntakeError,
    NotebookNode,
    grade_ids,
    lines_of,
    read_notebook,
    tags,
)
from labkit.grading.results import AMBIGUOUS, INVALID, MISSING
from labkit.grading.student_notebook import with_stubs
from labkit.grading.untrusted import UnfitFile, open_plain, short_name

FUNCTIONS: Final = {
    stage: frozenset(e.function for e in CATALOGUE if e.stage == stage)
    for stage in STAGES
    if stage in EXERCISES.values()
}  # that a student writes in a notebook
DEFINES: Final = re.compile(r"^(?:async +)?def +(\w+)", re.MULTILINE)
MAX_GUESSED: Final = 100  # notebooks whose names say nothing and that are looked into
# What browsers, mail and editors add to a name, in any number: ".txt", " (1)", a blank, a dot.
ADDED: Final = re.compile(
    r"(?<=\.ipynb)(\s*\(\d+\)|\.(txt|json|download|html?|bak|part|crdownload)|[\s.])+$",
    re.IGNORECASE,
)
OTHER_ENDS: Final = (
    "",
    ".json",
    ".txt",
)  # of a notebook that is recognized by the rest of its name
COPY_MARK: Final = re.compile(r"[\s_-]*(\(\d+\)|copy[\s_-]*\d*)$", re.IGNORECASE)


IGNORED_WORK: Final = "worked on, too"  # in the note about a notebook that does not count


@dataclass(frozen=True)
class NotebookFound:
    """The notebook of one stage.

    Attributes:
        path: In the staging folder.
        notebook: What is in it.
        note: Where renamed, how it is to be called; which others were ignored.
    """

    path: Path
    notebook: NotebookNode
    note: str = ""


@dataclass(frozen=True)
class NotebookProblem:
    """Why a stage has no notebook.

    Attributes:
        verdict: `MISSING`, `AMBIGUOUS` or `INVALID`.
        reason: One sentence.
    """

    verdict: str
    reason: str


@dataclass(frozen=True)
class Content:
    """What a notebook says of itself, whatever its name.

    Attributes:
        readable: Whether it can be read at all.
        sha256: Of its cells, whatever they have shown; empty where it cannot be read.
        stages: Of which it has more than half of the named cells; where a tool has removed the
            names, those whose functions it all defines.
        untouched: Stages of which every exercise is as it was handed out.
    """

    readable: bool = False
    sha256: str = ""
    stages: frozenset[str] = frozenset()
    untouched: frozenset[str] = frozenset()


class HandedOut:
    """The notebooks as they were handed out, to hold others against.

    Args:
        references: Stage → notebook, solved.
    """

    def __init__(self, references: Mapping[str, NotebookNode]) -> None:
        self._names = {stage: grade_ids(notebook) for stage, notebook in references.items()}
        self._stubs = {
            stage: {
                lines_of(with_stubs(cell.source, stage))
                for cell in notebook.cells
                if "### BEGIN SOLUTION" in cell.source
            }
            for stage, notebook in references.items()
        }

    def look_into(self, path: Path) -> Content:
        """Return what a notebook's content says; nothing where it cannot be read."""
        try:
            notebook = read_notebook(path)
        except IntakeError:
            return Content()  # its name may still say which one it was to be
        found = grade_ids(notebook)
        named = {s for s, names in self._names.items() if 2 * len(found & names) > len(names)}
        written = [cell for cell in notebook.cells if INJECTED not in tags(cell)]
        sources = [lines_of(cell.source) for cell in written]
        cells = repr([*zip((cell.cell_type for cell in written), sources, strict=True)])
        return Content(
            True,
            hashlib.sha256(cells.encode()).hexdigest(),
            frozenset(named or _stages_by_functions(notebook)),
            frozenset(
                stage for stage, stubs in self._stubs.items() if stubs and stubs <= {*sources}
            ),
        )


def find_notebooks(
    folder: Path,
    digests: Mapping[str, str],
    references: Mapping[str, NotebookNode],
    from_zips: Container[str] = (),
) -> tuple[dict[str, NotebookFound], dict[str, NotebookProblem]]:
    """Find the notebook of every stage; each stage is a key of one of the two results.

    First come those on which somebody has worked; then those that cannot be read, and may be work;
    last, and better than nothing only, copies of what was handed out. Of these, first those of the
    right name, those to whose name nothing was added, those that did not come in a zip beside
    others, and of the right name those that lie less deep. Of equally good ones all must be the
    same.

    Args:
        folder: Plain files only.
        digests: Name below `folder` → SHA-256.
        references: Stage → notebook as it was handed out, solved.
        from_zips: Of the names, those that came out of a zip among other files.
    """
    names = [name for name in digests if notebook_name(name)]
    names.sort(key=lambda name: (name in from_zips, _depth(name), name))
    called = {stage: [n for n in names if _file_name(n) == f"{stage}.ipynb"] for stage in STAGES}
    strange = [name for name in names if _file_name(name).removesuffix(".ipynb") not in STAGES]
    handed_out = HandedOut(references)
    looked_into = [*(name for some in called.values() for name in some), *strange[:MAX_GUESSED]]
    contents = {name: handed_out.look_into(folder / name) for name in looked_into}
    guessed = _guess_stages({name: contents[name] for name in strange[:MAX_GUESSED]})
    notebooks: dict[str, NotebookFound] = {}
    problems: dict[str, NotebookProblem] = {}
    for stage in STAGES:
        possible = [*called[stage], *guessed[stage]]
        if not possible:
            possible = [n for n in digests if PurePosixPath(n).suffix.lower() in OTHER_ENDS
                        and PurePosixPath(n).stem == stage]  # fmt: skip
            contents |= {name: handed_out.look_into(folder / name) for name in possible}
            possible = [n for n in possible if contents[n].readable or _was_one(folder, n)]
        ranks = {
            name: (
                stage in contents[name].untouched,
                not contents[name].readable,
                name in guessed[stage],
                _file_name(name) != PurePosixPath(name).name,
                name in from_zips,
                0 if name in guessed[stage] else _depth(name),
            )
            for name in possible
        }
        best = min(ranks.values(), default=None)
        same = {name: contents[name].sha256 or digests[name] for name in possible}
        different: dict[str, str] = {}
        for name in possible:
            if ranks[name] == best:
                different.setdefault(same[name], name)
        outcome = _choose(stage, folder, list(different.values()))
        if isinstance(outcome, NotebookProblem):
            problems[stage] = outcome
        else:
            others = {name: contents[name] for name in possible if same[name] not in different}
            notes = filter(None, [outcome.note, *_ignored(stage, others, from_zips)])
            notebooks[stage] = replace(outcome, note="; ".join(notes))
    return notebooks, problems


def _was_one(folder: Path, name: str) -> bool:
    """Return whether a file that cannot be read has the words of a notebook."""
    with suppress(UnfitFile, OSError), open_plain(folder, name) as stream:
        start = stream.read(MIB)
        return b'"cells"' in start or b'"nbformat"' in start
    return False


def _ignored(stage: str, others: Mapping[str, Content], from_zips: Container[str]) -> list[str]:
    """Return a note for every notebook that might have been a stage's and was not chosen."""
    notes = []
    for name, content in others.items():
        if stage in content.untouched:
            why = "its exercises are as handed out"
        elif not content.readable:
            why = "it cannot be read"
        elif name in from_zips:
            why = "it came in a zip beside this notebook"
        else:
            why = f"{IGNORED_WORK}, but this one has the right name or lies less deep"
        notes.append(f"{short_name(name)} was ignored: {why}")
    return notes


def notebook_name(name: str) -> str:
    """Return a notebook's name without what browsers and mail add to it; empty for other files."""
    own = ADDED.sub("", name)
    return own if own.lower().endswith(".ipynb") else ""


def _file_name(name: str) -> str:
    """Return the notebook's name of a file in any folder."""
    return notebook_name(PurePosixPath(name).name)


def _depth(name: str) -> int:
    """Return how deep a file lies; `notebooks/` counts like the root."""
    parent = PurePosixPath(name).parent.as_posix()
    return 0 if parent in (".", "notebooks") else 1 + name.count("/")


def _choose(stage: str, folder: Path, names: list[str]) -> NotebookFound | NotebookProblem:
    """Decide on a stage's notebook, given the candidates, which all differ."""
    if not names:
        return NotebookProblem(
            MISSING, f"got no notebook for this step, expected {stage}.ipynb: hand it in"
        )
    if len(names) > 1:
        shown = ", ".join(map(short_name, names[:5])) + (", …" if len(names) > 5 else "")
        return NotebookProblem(
            AMBIGUOUS,
            f"got {len(names)} notebooks that could be {stage}.ipynb, expected one: {shown}; "
            "hand in only the one that counts, under that name",
        )
    try:
        notebook = read_notebook(folder / names[0])
    except IntakeError as error:
        return NotebookProblem(INVALID, str(error))
    if PurePosixPath(names[0]).name == f"{stage}.ipynb":
        return NotebookFound(folder / names[0], notebook)
    note = f"found as {short_name(names[0])}; hand it in as {stage}.ipynb"
    if not grade_ids(notebook) and stage in _stages_by_functions(notebook):
        known = ", ".join(sorted(FUNCTIONS[stage]))
        note += f"; its cells had lost their metadata, and it was known by its functions ({known})"
    return NotebookFound(folder / names[0], notebook, note)


def _guess_stages(contents: Mapping[str, Content]) -> dict[str, list[str]]:
    """Return stage → notebooks under other names that are probably its own.

    The exercises in a notebook say more than its name. One with the exercises of several stages is
    the notebook of none.
    """
    guessed: dict[str, list[str]] = {}
    for stage in STAGES:
        own = [name for name, content in contents.items() if content.stages == {stage}]
        guessed[stage] = own or [
            name
            for name, content in contents.items()
            if not content.stages and _stage_by_name(PurePosixPath(_file_name(name)).stem) == stage
        ]
    return guessed


def _stages_by_functions(notebook: NotebookNode) -> set[str]:
    """Return the stages whose exercises' functions a notebook all defines."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    defined = set(DEFINES.findall(code))
    return {stage for stage, names in FUNCTIONS.items() if names <= defined}


def _stage_by_name(stem: str) -> str:
    """Return the stage whose number a file name holds; empty where that is not clear.

    In this order: number and verb (`01 data`), the only number such as `01`, the only number.
    """
    stem = COPY_MARK.sub("", stem)
    for stage in STAGES:
        number, verb = stage.split("_")
        if re.search(rf"(?<!\d)0?{int(number)}[\s_-]*{verb}", stem, re.IGNORECASE):
            return stage
    numbers = re.findall(r"\d+", stem)
    padded = [number for number in numbers if re.fullmatch(r"0[1-9]", number)]
    for group in (padded, numbers):
        if len(group) == 1:
            return next((s for s in STAGES if int(s.split("_")[0]) == int(group[0])), "")
    return ""
