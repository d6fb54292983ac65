"""A notebook that a stranger has written: read, found among other files, made ready to run.

Nothing in it may stop the grader: all that can be wrong ends in an `IntakeError`, which says so in
a sentence. Only what counts is taken over: the cells' kinds, sources, ids, tags and nbgrader's
names. Outputs and other metadata, which editors and platforms damage, are not looked at.
"""

import json
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from labkit.chain import STAGES
from labkit.errors import LabError
from labkit.grading.exercises.catalogue import CATALOGUE, EXERCISES
from labkit.grading.limits import MIB
from labkit.grading.results import AMBIGUOUS, INVALID, MISSING
from labkit.grading.student_notebook import NBGRADER_SCHEMA, with_stubs
from labkit.grading.untrusted import MAX_CLASS, UnfitFile, read_plain, short_line, short_name

MAX_NOTEBOOK_BYTES: Final = 20 * MIB
MAX_PARTS: Final = 500_000  # objects and lists: each takes hundreds of bytes once parsed
MAX_CELLS: Final = 2_000
CELL_ID: Final = re.compile(r"[a-zA-Z0-9-_]{1,64}")
INJECTED: Final = "injected-parameters"  # tag of the cell that papermill adds
CODE_KINDS: Final = frozenset({"code", "markdown", "raw"})


class IntakeError(LabError):
    """Something that was handed in cannot be used."""


class NotebookNode(dict[str, Any]):
    """A notebook, or a part of one: its keys are attributes too, as nbformat has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def read_notebook(path: Path, limit_bytes: int = MAX_NOTEBOOK_BYTES) -> NotebookNode:
    """Read a stranger's notebook of format 2, 3 or 4, in any encoding that JSON may have.

    Args:
        path: A regular file; a link is not followed.
        limit_bytes: Largest accepted size.

    Returns:
        A notebook of format 4.5, without outputs.

    Raises:
        IntakeError: it cannot be read, is too large, or is not a notebook.
    """
    try:
        content = read_plain(path.parent, path.name, limit_bytes / MIB)
    except (UnfitFile, OSError) as error:
        raise IntakeError(
            f"{error}; expected a notebook of at most {limit_bytes / MIB:g} MiB: clear its "
            "outputs, save it and hand it in again"
        ) from error
    if content.count(b"{") + content.count(b"[") > MAX_PARTS:
        raise IntakeError(
            f"{path.name} has more than {MAX_PARTS:,} parts: clear its outputs and save it again"
        )
    record = _parse(path.name, content)
    try:
        cells = [make_cell(**_fields(raw)) for raw in _raw_cells(record)]
        metadata = record.get("metadata")
        kernel = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise IntakeError(
            f"{path.name} is not a valid notebook ({type(error).__name__}: {_first_line(error)}): "
            "open it in JupyterLab, save it and hand it in again"
        ) from error
    if len(cells) > MAX_CELLS:
        raise IntakeError(f"{path.name} has {len(cells):,} cells, expected at most {MAX_CELLS:,}")
    repair_ids(cells)
    return make_notebook(cells, kernel if isinstance(kernel, dict) else {})


def _parse(name: str, content: bytes) -> dict[str, Any]:
    """Parse a notebook file that may be built to break the parser.

    NaN, which is not JSON and which some tools write, is as good as any number here.
    """
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass").lstrip("\ufeff")
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise IntakeError(
            f"{name} is not JSON ({type(error).__name__}: {_first_line(error)}), expected a "
            "notebook: save it in JupyterLab and hand it in again"
        ) from error
    version = record.get("nbformat") if isinstance(record, dict) else None
    if type(version) is not int:
        raise IntakeError(
            f"{name} is JSON, but not a notebook: save it in JupyterLab and hand it in again"
        )
    if version not in (2, 3, 4):
        raise IntakeError(
            f"{name} has notebook format {short_line(str(version), MAX_CLASS)}, expected 4: save "
            "it in JupyterLab and hand it in again"
        )
    return record


def _writable(text: str) -> str:
    """Return a text with question marks for halves of characters, which cannot be written."""
    return text.encode(errors="replace").decode()


def _raw_cells(record: Mapping[str, Any]) -> list[Any]:
    """Return the cells as they are in the file; before format 4 they lie in worksheets.

    Raises:
        ValueError: there is no list of them.
    """
    if record["nbformat"] == 4:
        found = record.get("cells")
    else:
        sheets = record.get("worksheets")
        found = [cell for sheet in sheets for cell in sheet["cells"]] if sheets else None
    if not isinstance(found, list):
        raise ValueError("it has no list of cells")
    return found


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is taken over of one cell.

    Raises:
        ValueError, TypeError, AttributeError, ArithmeticError: it is no cell.
    """
    kind, source = raw["cell_type"], raw.get("source", raw.get("input", ""))
    if kind == "heading":  # of format 3
        kind, source = "markdown", "#" * min(6, int(raw.get("level", 1))) + " " + "".join(source)
    metadata = raw.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    tags_ = metadata.get("tags")
    return {
        "kind": kind if kind in CODE_KINDS else "raw",
        "source": "".join(source),
        "identity": str(raw.get("id") or ""),
        "nbgrader": metadata.get("nbgrader"),
        "tags": [tag for tag in tags_ if isinstance(tag, str)] if isinstance(tags_, list) else [],
    }


def make_cell(
    kind: str, source: str, identity: str = "", nbgrader: Any = None, tags: list[str] | None = None
) -> NotebookNode:
    """Return a cell of format 4.5, without outputs; of nbgrader's metadata what grading reads."""
    metadata = NotebookNode()
    name = nbgrader.get("grade_id") if isinstance(nbgrader, Mapping) else None
    if isinstance(name, str) and name:
        flags = {key: nbgrader.get(key) is True for key in ("grade", "locked", "solution")}
        metadata["nbgrader"] = NotebookNode(
            grade_id=_writable(name), schema_version=NBGRADER_SCHEMA, task=False, **flags
        )
    if tags:
        metadata["tags"] = tags
    text = _writable(source)
    cell = NotebookNode(cell_type=kind, id=identity, metadata=metadata, source=text)
    if kind == "code":
        cell.update(outputs=[], execution_count=None)
    return cell


def make_notebook(cells: list[NotebookNode], kernelspec: Mapping[str, Any]) -> NotebookNode:
    """Return a notebook of format 4.5."""
    metadata = NotebookNode(kernelspec=NotebookNode(kernelspec), language_info={"name": "python"})
    return NotebookNode(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)


def repair_ids(cells: list[NotebookNode]) -> None:
    """Give a cell whose id is missing, invalid or taken another one, the same in every run."""
    taken: set[str] = set()
    for number, cell in enumerate(cells):
        identity = str(cell.get("id") or "")
        if not CELL_ID.fullmatch(identity) or identity in taken:
            identity = f"cell-{number}"
            while identity in taken:
                identity += "x"
        taken.add(identity)
        cell["id"] = identity


def grade_id(cell: NotebookNode) -> str:
    """Return the name that nbgrader's metadata gives a cell; empty for other cells."""
    entry = cell.metadata.get("nbgrader")
    name = entry.get("grade_id") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else ""


def grade_ids(notebook: NotebookNode) -> frozenset[str]:
    """Return the names of all cells that have one, see `grade_id`."""
    return frozenset(map(grade_id, notebook.cells)) - {""}


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.metadata.get("tags", []))


def _first_line(error: Exception) -> str:
    """Return what an error says, without the explanations that follow."""
    return short_line(str(error).partition("\n")[0])


def _lines(source: str) -> str:
    """Return what a person would compare of two sources: no blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in source.strip().splitlines())


FUNCTIONS = {
    stage: frozenset(e.function for e in CATALOGUE if e.stage == stage)
    for stage in STAGES
    if stage in EXERCISES.values()
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
    references: Mapping[str, NotebookNode],
    from_zips: Container[str] = (),
) -> tuple[dict[str, NotebookFound], dict[str, NotebookProblem]]:
    """Find the notebook of every stage; each stage is a key of one of the two results.

    First come those on which somebody has worked: a copy of what was handed out is better than
    nothing only. Then those of the right name, those that did not come in a zip beside others, and
    of the right name those that lie less deep. Of equally good ones all must be the same.

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
    guessed = _guess_stages(folder, strange[:MAX_GUESSED], references)
    notebooks: dict[str, NotebookFound] = {}
    problems: dict[str, NotebookProblem] = {}
    for stage in STAGES:
        possible = [*called[stage], *guessed[stage]]
        untouched = _untouched(stage, folder, possible, references)
        ranks = {
            name: (
                name in untouched,
                name in guessed[stage],
                name in from_zips,
                0 if name in guessed[stage] else _depth(name),
            )
            for name in possible
        }
        best = min(ranks.values(), default=None)
        different: dict[str, str] = {}
        for name in possible:
            if ranks[name] == best:
                different.setdefault(digests[name], name)
        outcome = _choose(stage, folder, list(different.values()))
        if isinstance(outcome, NotebookProblem):
            problems[stage] = outcome
        else:
            others = [name for name in possible if digests[name] not in different]
            notes = filter(None, [outcome.note, *_ignored(others, untouched, from_zips)])
            notebooks[stage] = replace(outcome, note="; ".join(notes))
    return notebooks, problems


def _untouched(
    stage: str, folder: Path, names: Iterable[str], references: Mapping[str, NotebookNode]
) -> set[str]:
    """Return the notebooks of a stage in which every exercise is as it was handed out."""
    solved = references[stage].cells if stage in references else []
    exercises = [cell.source for cell in solved if "### BEGIN SOLUTION" in cell.source]
    stubs = {_lines(with_stubs(source, stage)) for source in exercises}
    found = set()
    for name in names if stubs else ():
        try:
            cells = read_notebook(folder / name).cells
        except IntakeError:
            continue
        if stubs <= {_lines(cell.source) for cell in cells}:
            found.add(name)
    return found


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
    if not grade_ids(notebook) and FUNCTIONS.get(stage, {""}) <= _defined(notebook):
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
        elif not stages and (stage := _stage_by_name(PurePosixPath(_file_name(name)).stem)):
            by_name[stage].append(name)
    return {stage: by_content.get(stage) or by_name.get(stage, []) for stage in STAGES}


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


PARAMETERS = "parameters"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SETS_A_PARAMETER = re.compile(r"""^(profile|workspace)\s*=\s*["']""", re.MULTILINE)
IMPORTS = re.compile(r"^(import|from)\s+\w", re.MULTILINE)


@dataclass(frozen=True)
class Prepared:
    """A notebook as the grader runs it.

    Attributes:
        notebook: Valid, without outputs.
        notes: What was changed, for the student: a sentence each.
    """

    notebook: NotebookNode
    notes: list[str]


def prepare(
    notebook: NotebookNode, reference: NotebookNode, profile: str, workspace: str
) -> Prepared:
    """Return a student's notebook as the grader runs it; the one given stays as it is.

    Args:
        notebook: As `read_notebook` returns it.
        reference: The same stage's notebook as it was handed out: its check cells count.
        profile: `smoke`, `standard` or `full`; written only where no cell has the parameters.
        workspace: The folder of the run, likewise.
    """
    notes: list[str] = []
    cells = [_clean(cell) for cell in notebook.cells if INJECTED not in tags(cell)]
    if len(cells) < len(notebook.cells):
        notes.append("a cell that papermill had added in an earlier run was left out")
    _put_checks_back(cells, reference, notes)
    _keep_one_parameters_cell(cells, profile, workspace, notes)
    named = notebook.metadata.get("kernelspec", {}).get("name") or KERNEL["name"]
    kernel = short_line(str(named), MAX_CLASS)
    if kernel != KERNEL["name"]:
        notes.append(f"it was run with the kernel python3, not with {kernel}")
    repair_ids(cells)
    return Prepared(make_notebook(cells, KERNEL), notes)


def _clean(cell: NotebookNode) -> NotebookNode:
    """Return a new cell with source, id, nbgrader's metadata and the tag that the grader needs.

    Outputs, attachments, and what other tools or other tags would make of the cell, are dropped.
    """
    kept = [PARAMETERS] if PARAMETERS in tags(cell) else []
    nbgrader = cell.metadata.get("nbgrader")
    return make_cell(cell.cell_type, cell.source, str(cell.get("id") or ""), nbgrader, kept)


def _put_checks_back(cells: list[NotebookNode], reference: NotebookNode, notes: list[str]) -> None:
    """Give the check cells their source back, where the student changed it."""
    for check in reference.cells:
        flags = check.metadata.get("nbgrader", {})
        if not (flags.get("grade") and flags.get("locked") and check.cell_type == "code"):
            continue
        name = grade_id(check)
        found = [index for index, cell in enumerate(cells) if grade_id(cell) == name]
        if not found:
            notes.append(f"the check cell {name} is missing; its exercise is graded all the same")
        for index in found:
            if _as_read(cells[index]) != _as_read(check):
                notes.append(f"the check cell {name} was put back")
            cells[index] = _clean(check)


def _as_read(cell: NotebookNode) -> tuple[str, str]:
    """Return what a person would compare of two cells."""
    return cell.cell_type, _lines(cell.source)


def _keep_one_parameters_cell(
    cells: list[NotebookNode], profile: str, workspace: str, notes: list[str]
) -> None:
    """Make exactly one code cell the one that papermill's parameters follow."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell for cell in cells if tags(cell)]
    chosen = next((cell for cell in tagged if cell.cell_type == "code"), None)
    for cell in tagged:
        cell.metadata["tags"] = []
    if chosen is None and (setting := [cell for cell in code if _set_here(cell)]):
        chosen = max(setting, key=_set_here)  # the first of the best
        notes.append("the cell that sets profile and workspace got its tag `parameters` back")
    elif chosen is None:
        source = f"profile = {profile!r}\nworkspace = {workspace!r}"
        chosen = make_cell("code", source, "added-parameters")
        cells.insert(_after_imports(cells), chosen)
        notes.append("a cell that sets profile and workspace was missing and was added")
    elif len(tagged) > 1:
        notes.append(f"{len(tagged)} cells were tagged `parameters`; the first one kept the tag")
    chosen.metadata["tags"] = [PARAMETERS]


def _set_here(cell: NotebookNode) -> int:
    """Return how many of the two parameters a cell sets to a literal."""
    return len(set(SETS_A_PARAMETER.findall(cell.source)))


def _after_imports(cells: list[NotebookNode]) -> int:
    """Return the place behind the first cell with imports; before all code where there is none."""
    code = [index for index, cell in enumerate(cells) if cell.cell_type == "code"]
    imports = (index + 1 for index in code if IMPORTS.search(cells[index].source))
    return next(imports, code[0] if code else len(cells))
