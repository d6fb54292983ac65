"""Run one notebook of a submission in the sandbox, take out what it made, call its exercises."""

import ast
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.chain import CellFinding, first_line_of
from labkit.errors import LabError
from labkit.grading.carry_forward import StageOutputs, take_out
from labkit.grading.confined_process import SHOWN_BYTES, ConfinedProgram, Stopped
from labkit.grading.exercises import ask_exercises
from labkit.grading.exercises.answers import FOLDER, LookInto
from labkit.grading.limits import CELL_SHARE, MIB, Limits
from labkit.grading.notebook import INJECTED, PARAMETERS, NotebookNode, make_cell, tags
from labkit.grading.results import (
    ERROR,
    GRADER_ERROR,
    OK,
    OOM,
    OUTPUT,
    SHORTAGE,
    STOPPED,
    TIMEOUT,
)
from labkit.grading.sandbox import Isolation
from labkit.grading.untrusted import MAX_CLASS, short_line
from labkit.grading.watch import Outcome
from labkit.grading.workdir import Workdir, open_workdir
from labkit.workspace import write_text

EXECUTED, LOG = "executed.ipynb", "log.txt"
START_S = 200.0  # for a kernel and its imports, of which each has 90 s inside
IMPORTS = (ast.Import, ast.ImportFrom)

# What the kernel says when there was no memory left: Python, numpy, torch, the C library.
MEMORY_ERRORS = frozenset({"MemoryError", "_ArrayMemoryError", "OutOfMemoryError"})
MEMORY_MESSAGES = (
    "can't allocate memory",
    "Unable to allocate",
    "Cannot allocate memory",
    "std::bad_alloc",
)


class NotStarted(LabError):
    """The grader's own program did not start in the sandbox."""


@dataclass(frozen=True)
class Job:
    """One notebook to run.

    Attributes:
        stage: Such as `03_export`.
        notebook: As `prepare` returned it.
        artifacts: Artifact → file, given to it.
        repository: Model repository given to it; None for none.
        folder: The submission's folder, as taken in.
        files: Further files of it.
        beside: The notebook's own folder in it.
        profile: `smoke`, `standard` or `full`.
        limits: What it may use.
        keep: Where its files, executed notebook and log are kept.
        seed: Chooses the hidden inputs of its exercises.
        exercises: Those that count.
    """

    stage: str
    notebook: NotebookNode
    artifacts: dict[str, Path]
    repository: Path | None
    folder: Path
    files: Iterable[str]
    beside: Path
    profile: str
    limits: Limits
    keep: Path
    seed: int = 0
    exercises: Sequence[str] = ()


@dataclass
class Ran:
    """What became of a notebook.

    Attributes:
        outcome: What it used.
        verdict: One of `results.VERDICTS`.
        reason: One sentence; empty when `ok`.
        outputs: What it left.
        answers: Exercise → answers to the hidden inputs, see `ask_exercises`.
        starved: Whether it did not get the CPU time that it could have used, where it was late.
    """

    outcome: Outcome
    verdict: str = OK
    reason: str = ""
    outputs: StageOutputs = field(default_factory=StageOutputs)
    answers: dict[str, Any] = field(default_factory=dict)
    starved: bool = False

    @property
    def no_server(self) -> str:
        """Why the grader's own server did not start for its exercises; empty where it did."""
        return next((str(a["failure"]) for a in self.answers.values() if "failure" in a), "")


class KernelSandbox(AbstractContextManager["KernelSandbox"]):
    """A sandbox with a kernel for one notebook; a context manager.

    It starts before the notebook's turn, so that what takes seconds in each, a kernel and what the
    notebook as it was handed out imports, overlaps with the notebook before it. Nothing of a
    student's is in it until `run_notebook` puts it there, and starts the clock of the limits.

    Args:
        isolation: How to confine it.
        profile: The lab's profile.
        parent: Where its workdir is made.
        home: What its home folder begins with, see `workdir.make_home`.
        runtime: What serves models in it, `stand-in` or `native`.
        limits: What the notebook may use.
        imports: Statements that the kernel executes first, see `imports_of`.
    """

    def __init__(
        self,
        isolation: Isolation,
        profile: str,
        parent: Path,
        home: Path,
        runtime: str,
        limits: Limits,
        imports: Sequence[str] = (),
    ) -> None:
        with ExitStack() as stack:
            self.workdir = stack.enter_context(open_workdir(parent, isolation))
            self.workdir.put_home(home)
            self.workdir.hand_over()
            sandbox = self.workdir.sandbox(profile, runtime=runtime)
            sources = [FOLDER / "run_cells.py"]
            writable, log = self.workdir.writable, self.workdir.log
            self.program = stack.enter_context(
                ConfinedProgram(sources, isolation, sandbox, limits, writable, log)
            )
            with suppress(Stopped):  # whoever waits for it will hear
                self.program.tell(do="start", folder=self.program.folder, imports=imports)
            self._stack = stack.pop_all()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs in it, and remove its files."""
        self._stack.close()

    def wait(self) -> None:
        """Wait until it can run cells, and start the clock of its limits.

        Raises:
            NotStarted: it cannot; the message says why.
        """
        self.program.watch.restart()  # it may have waited long, with nobody looking
        try:
            self.program.hear(START_S)
            said = self.program.hear(START_S)
        except Stopped as error:
            raise NotStarted(f"what runs notebooks did not start: {error}") from error
        if "failure" in said:
            raise NotStarted(str(said["failure"])[:300])
        self.program.watch.restart()


def imports_of(notebook: NotebookNode) -> list[str]:
    """Return the imports of a notebook's cells, a statement each.

    What they import is there before the files beside a notebook, and none of these replaces it.
    """
    found: list[str] = []
    for cell in notebook.cells:
        with suppress(SyntaxError):  # a cell in another language, or with magics
            tree = ast.parse(cell.source if cell.cell_type == "code" else "")
            found += [ast.unparse(node) for node in tree.body if isinstance(node, IMPORTS)]
    return list(dict.fromkeys(found))


def run_notebook(
    job: Job, kernel: KernelSandbox, look_into: LookInto = lambda content, probe: {}
) -> Ran:
    """Run a notebook's cells, keep what it made, then call its exercises in the same kernel.

    What it made is taken out before a hidden input goes in.

    Args:
        job: The notebook and what it is given.
        kernel: Where it runs; of no use to another notebook afterwards.
        look_into: Asks a model file that an exercise has written.
    """
    job.keep.mkdir(parents=True, exist_ok=True)
    cells, workdir, program = _with_parameters(job), kernel.workdir, kernel.program
    try:
        kernel.wait()
        _fill(workdir, job)
        reports, starved = _run_cells(program, job, workdir, [cell.source for cell in cells])
    except NotStarted as error:
        return Ran(program.outcome, GRADER_ERROR, str(error))
    ran = Ran(program.outcome, outputs=take_out(job.stage, workdir.run, job.keep), starved=starved)
    if program.breach is None and job.exercises:
        sources = [cell.source for cell in cells]
        ran.answers = ask_exercises(
            program, job.stage, job.seed, job.exercises, job.limits, look_into, sources
        )
        ran.starved |= any(answer.get("starved") for answer in ran.answers.values())
    _keep_log(workdir.log, job.keep / LOG, job.limits.output_mib)
    _keep_notebook(job, cells, reports)
    ran.verdict, ran.reason = _verdict(ran.outcome, cells, reports)
    return ran


def _fill(workdir: Workdir, job: Job) -> None:
    """Put everything into the workdir that the notebook is given."""
    workdir.put_artifacts(job.artifacts)
    workdir.put_repository(job.repository)
    workdir.put_files(job.folder, job.files, job.beside)
    source = workdir.lab / "notebooks" / f"{job.stage}.ipynb"
    source.unlink(missing_ok=True)
    source.write_text(json.dumps(job.notebook), encoding="utf-8")
    workdir.hand_over()


def _with_parameters(job: Job) -> list[NotebookNode]:
    """Return the code cells to run, that of the grader's parameters after the student's."""
    cells: list[NotebookNode] = []
    for cell in job.notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            cells.append(cell)
        if PARAMETERS in tags(cell):
            cells.append(make_cell("code", "", INJECTED, tags=[INJECTED]))
    return cells


def _run_cells(
    program: ConfinedProgram, job: Job, workdir: Workdir, sources: list[str]
) -> tuple[dict[int, Any], bool]:
    """Have the cells run.

    Returns:
        Number → what the program in the sandbox saw of each cell; and whether one was late for want
        of CPU time, see `watch.starved`.
    """
    injected = f"profile = {job.profile!r}\nworkspace = {workdir.seen(workdir.run)!r}"
    reports: dict[int, Any] = {}
    starved = False
    begin = program.used
    try:
        program.tell(
            do="cells",
            sources=[source or injected for source in sources],
            output_bytes=2 * job.limits.output_mib * MIB,
        )
        for number in range(len(sources)):
            begin = program.used
            limits = job.limits.of_cell(*begin)
            if limits is None:
                reports[number] = {"ended": "late", "outputs": []}
                spent = begin[1] >= CELL_SHARE * job.limits.cpu_s
                starved |= not spent and program.starved_since((0.0, 0.0))
                continue
            program.tell(do="cell", cell=number, limit_s=limits[0], limit_cpu_s=limits[1])
            said = program.hear(most_bytes=SHOWN_BYTES)
            if said.get("cell") == number:
                reports[number] = said
            elif not reports:
                raise NotStarted(str(said.get("failure"))[:300])
            if said.get("ended") == "late" and program.used[0] - begin[0] >= limits[0]:
                starved |= program.starved_since(begin)
            if said.get("stop"):
                break
    except Stopped:
        if program.outcome.verdict == TIMEOUT:
            starved |= program.starved_since(begin)
    return reports, starved


def _findings(cells: Sequence[NotebookNode], reports: Mapping[int, Any]) -> list[CellFinding]:
    """Return what was seen of each of the student's cells, in order."""
    numbered = [(n, cell) for n, cell in enumerate(cells) if INJECTED not in tags(cell)]
    findings = []
    for number, (place, cell) in enumerate(numbered, start=1):
        report = reports.get(place, {})
        shown = report.get("outputs")
        errors = [o for o in shown if o.get("output_type") == "error"] if shown else [{}]
        error = errors[0] if errors else {}
        findings.append(
            CellFinding(
                number,
                len(numbered),
                short_line(first_line_of(cell.source)),
                report.get("ended") in ("ok", "error", "late", "flood"),
                short_line(str(error.get("ename") or ""), MAX_CLASS),
                short_line(str(error.get("evalue") or "")),
            )
        )
    return findings


def _verdict(
    outcome: Outcome, cells: Sequence[NotebookNode], reports: Mapping[int, Any]
) -> tuple[str, str]:
    """Say how a notebook ended: the limit that stopped it, else what was seen of its cells."""
    ended = [reports.get(place, {}).get("ended") for place, cell in enumerate(cells)
             if INJECTED not in tags(cell)]  # fmt: skip
    findings = _findings(cells, reports)
    if outcome.verdict == SHORTAGE:
        return GRADER_ERROR, f"the grader's machine was short: the notebook {outcome.reason}"
    if outcome.verdict != OK:
        return outcome.verdict, f"the notebook was stopped: it {outcome.reason}"
    if "flood" in ended:
        return OUTPUT, "the notebook was stopped: it showed more than is kept"
    return verdict_of(findings, ended)


def verdict_of(findings: Sequence[CellFinding], ended: Sequence[str | None]) -> tuple[str, str]:
    """Say how a notebook that was not stopped ended, by what was seen of its cells.

    Args:
        findings: Of each cell.
        ended: How each ended, see `inside.run_cells`; None where it did not begin.

    Returns:
        `OK`, `ERROR`, `TIMEOUT`, `STOPPED` or `OOM`, and one sentence; it is empty with `OK`.
    """
    raised = [finding for finding in findings if finding.ename]
    late = [finding for finding, how in zip(findings, ended, strict=True) if how == "late"]
    if exhausted := [finding for finding in raised if _out_of_memory(finding)]:
        return OOM, _told(exhausted[0])
    if silent := [finding for finding in findings if not finding.ran]:
        rest = f", nor did {len(silent) - 1} others" if len(silent) > 1 else ""
        earlier = f"; before that, {_told(raised[0])}" if raised else ""
        return STOPPED, (
            f"{silent[0].where} did not run to its end{rest}: the kernel had ended there, by "
            f"exit(), a signal or a crash{earlier}"
        )
    if late:
        return TIMEOUT, f"{late[0].where} was not done at its limit and was interrupted there"
    if raised:
        more = f"; {len(raised) - 1} more raised as well" if len(raised) > 1 else ""
        return ERROR, _told(raised[0]) + more
    return (OK, "") if findings else (STOPPED, "the notebook has no code cell")


def _told(finding: CellFinding) -> str:
    """Return where which error was raised."""
    return f"{finding.where}: {finding.ename}" + (f": {finding.evalue}" if finding.evalue else "")


def _out_of_memory(finding: CellFinding) -> bool:
    """Return whether a cell's error says that there was no memory left."""
    return finding.ename in MEMORY_ERRORS or any(
        message in finding.evalue for message in MEMORY_MESSAGES
    )


def _keep_notebook(job: Job, cells: list[NotebookNode], reports: Mapping[int, Any]) -> None:
    """Write the executed notebook: the student's cells, and what was seen of each."""
    place = {id(cell): number for number, cell in enumerate(cells)}
    kept = []
    for cell in job.notebook.cells:
        report = reports.get(place.get(id(cell), -1))
        copy = {key: value for key, value in cell.items() if key != "metadata"}
        copy["metadata"] = dict(cell.metadata)
        if report is not None:
            copy["outputs"] = report.get("outputs") or []
            copy["execution_count"] = report.get("count")
            copy["metadata"]["labkit"] = {"ended": report.get("ended")}
        kept.append(copy)
    notebook = {**job.notebook, "cells": kept}
    write_text(job.keep / EXECUTED, json.dumps(notebook, ensure_ascii=True))


def _keep_log(log: Path, target: Path, limit_mib: float) -> None:
    """Keep the beginning and, where it is long, no more of what a notebook printed."""
    with log.open("rb") as source, target.open("wb") as kept:
        kept.write(source.read(int(limit_mib * MIB)))
    shutil.copymode(log, target)
