"""The notebook of each stage, among the files that were handed in."""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from labkit.chain import STAGES
from labkit.grading.exercises.catalogue import CATALOGUE
from labkit.grading.notebook import IntakeError, NotebookNode, grade_ids, read_notebook
from labkit.grading.results import AMBIGUOUS, INVALID, MISSING
from labkit.grading.student_notebook import with_stubs
from labkit.grading.untrusted import short_name
from labkit.workspace import project_root

FUNCTIONS = {
    stage: frozenset(e.function for e in CATALOGUE if e.stage == stage)
    for stage in dict.fromkeys(e.stage for e in CATALOGUE)
}  # that a student writes in a notebook
DEFINES = re.compile(r"^(?:async +)?def +(\w+)", re.MULTILINE)
MAX_GUESSED = 100  # notebooks whose names say nothing and that are looked into
ADDED = re.compile(r"(\s*\(\d+\))?\.(txt|json|download)$", re.IGNORECASE)
COPY_MARK = re.compile(r"[\s_-]*(\(\d+\)|copy[\s_-]*\d*)$", re.IGNORECASE)


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


def find_notebooks(
    folder: Path,
    digests: Mapping[str, str],
    references: Mapping[str, NotebookNode] | None = None,
    from_zips: Container[str] = (),
) -> tuple[dict[str, NotebookFound], dict[str, NotebookProblem]]:
    """Find the notebook of every stage; each stage is a key of one of the two results.

    A copy of what was handed out beats no work: where there is another candidate, one with all its
    exercises untouched is ignored, and what came in a zip counts after what did not.

    Args:
        folder: Plain files only.
        digests: Name below `folder` → SHA-256.
        references: See `take_in`.
        from_zips: Of the names, those that came out of a zip among other files.
    """
    references = _committed() if references is None else references

    def rank(name: str) -> tuple[bool, int, str]:
        return (name in from_zips, *_rank(name))

    names = [name for name in sorted(digests, key=rank) if notebook_name(name)]
    exact = {stage: [n for n in names if _is_called(n, stage)] for stage in STAGES}
    strange = [n for n in names if not any(_is_called(n, stage) for stage in STAGES)]
    untouched: set[str] = set()
    for stage in STAGES:
        if strange or len(exact[stage]) > 1:
            untouched |= _untouched(stage, folder, exact[stage], references)
    guessed: Mapping[str, list[str]] = {}
    if any(untouched.issuperset(exact[stage]) for stage in STAGES):
        guessed = _guess_stages(folder, strange[:MAX_GUESSED], references)
    notebooks: dict[str, NotebookFound] = {}
    problems: dict[str, NotebookProblem] = {}
    for stage in STAGES:
        others = guessed.get(stage, [])
        untouched |= _untouched(stage, folder, others, references)
        worked_on = [[n for n in pool if n not in untouched] for pool in (exact[stage], others)]
        pool = next(filter(None, (*worked_on, exact[stage], others)), [])
        depth = 2 if pool and pool[0] in exact[stage] else 1  # of other names all that are there
        best = [name for name in pool if rank(name)[:depth] == rank(pool[0])[:depth]]
        candidates = {digests[name]: name for name in reversed(best)}
        outcome = _choose(stage, folder, sorted(candidates.values(), key=rank))
        if isinstance(outcome, NotebookFound):
            rest = [n for n in (*exact[stage], *others) if digests[n] not in candidates]
            notes = [outcome.note, *_ignored(rest, untouched, from_zips)]
            notebooks[stage] = replace(outcome, note="; ".join(filter(None, notes)))
        else:
            problems[stage] = outcome
    return notebooks, problems


def _untouched(
    stage: str, folder: Path, names: Iterable[str], references: Mapping[str, NotebookNode]
) -> set[str]:
    """Return the notebooks of a stage in which every exercise is as it was handed out."""
    solved = references[stage].cells if stage in references else []
    exercises = [cell.source for cell in solved if "### BEGIN SOLUTION" in cell.source]
    stubs = {_as_read(with_stubs(source, stage)) for source in exercises}
    found = set()
    for name in names if stubs else ():
        try:
            cells = read_notebook(folder / name).cells
        except IntakeError:
            continue
        if stubs <= {_as_read(cell.source) for cell in cells}:
            found.add(name)
    return found


def _as_read(source: str) -> str:
    """Return what a person would compare of two cells: no blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in source.strip().splitlines())


def _ignored(
    names: Iterable[str], untouched: Container[str], from_zips: Container[str]
) -> list[str]:
    """Return a note for every notebook that might have been a stage's and was not chosen."""
    notes = []
    for name in names:
        if name in untouched:
            notes.append(f"{short_name(name)} was ignored: its exercises are as handed out")
        elif name in from_zips:
            notes.append(f"{short_name(name)} was ignored: it came in a zip beside this notebook")
    return notes


def _is_called(name: str, stage: str) -> bool:
    """Return whether a file has the name that a stage's notebook is to have."""
    return notebook_name(PurePosixPath(name).name) == f"{stage}.ipynb"


def notebook_name(name: str) -> str:
    """Return a notebook's name without what browsers and mail add to it; empty for other files."""
    own = ADDED.sub("", name)
    return own if own.lower().endswith(".ipynb") else ""


def _rank(name: str) -> tuple[int, str]:
    """Return a sort key: the root and `notebooks/` first, then the less deep."""
    parent = PurePosixPath(name).parent.as_posix()
    return (0 if parent in (".", "notebooks") else 1 + name.count("/"), name)


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
    if not grade_ids(notebook) and FUNCTIONS[stage] <= _defined(notebook):
        known = ", ".join(sorted(FUNCTIONS[stage]))
        note += f"; its cells had lost their metadata, and it was known by its functions ({known})"
    return NotebookFound(folder / names[0], notebook, note)


def _guess_stages(
    folder: Path, names: list[str], references: Mapping[str, NotebookNode]
) -> dict[str, list[str]]:
    """Return stage → notebooks under other names that are probably its own.

    The exercises in a notebook say more than its name. One with the exercises of several stages is
    the notebook of none.
    """
    known = {stage: grade_ids(notebook) for stage, notebook in references.items()}
    by_content: dict[str, list[str]] = defaultdict(list)
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stages = _stages_by_content(folder / name, known)
        if len(stages) == 1:
            by_content[stages[0]].append(name)
        elif not stages and (stage := _stage_by_name(PurePosixPath(notebook_name(name)).stem)):
            by_name[stage].append(name)
    return {stage: by_content.get(stage) or by_name.get(stage, []) for stage in STAGES}


@cache
def _committed() -> dict[str, NotebookNode]:
    """Return stage → the project's own notebook, solved."""
    paths = {stage: project_root() / "notebooks" / f"{stage}.ipynb" for stage in STAGES}
    return {stage: read_notebook(path) for stage, path in paths.items() if path.is_file()}


def _stages_by_content(path: Path, known: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the stages of which a notebook has more than half of the named cells.

    Where a tool has removed the names, those whose functions it all defines.
    """
    try:
        notebook = read_notebook(path)
    except IntakeError:
        return []  # its name may still say which one it was to be
    found = grade_ids(notebook)
    if stages := [stage for stage, names in known.items() if 2 * len(found & names) > len(names)]:
        return stages
    defined = _defined(notebook)
    return [stage for stage, names in FUNCTIONS.items() if names <= defined]


def _defined(notebook: NotebookNode) -> set[str]:
    """Return the names of the functions that a notebook defines."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return set(DEFINES.findall(code))


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
