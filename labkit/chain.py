"""Run the notebooks headless, in order, and judge each by evidence.

Each notebook runs under papermill in a child process of its own, with a wall-clock limit. The
status that papermill gives decides nothing: a cell that calls `sys.exit(0)` leaves exit code 0, and
a killed kernel leaves every cell "completed". A stage has passed when its executed notebook shows
that every code cell ran without an error, and its files hold up to `labkit.checks`.
"""

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from labkit.checks import STAGE_CHECKS, CheckResult, check_stage
from labkit.environment import environment_facts
from labkit.errors import LabError, UsageError
from labkit.profiles import Profile, preset
from labkit.workspace import Workspace, project_root, read_json, write_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

log = logging.getLogger(__name__)

STAGES: tuple[str, ...] = tuple(STAGE_CHECKS)
PRACTICE: tuple[str, ...] = ("09_operate",)  # in no run, not graded: it breaks servers on purpose
# Wall-clock limit of one notebook, in seconds: several times what a slow laptop needs.
WALL_LIMIT_S = {"smoke": 300.0, "standard": 3_600.0, "full": 6 * 3_600.0}
STOP_GRACE_S = 10.0
POLL_S = 0.2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
PASSED, FAILED = "passed", "failed"
PAPERMILL_ENVIRONMENT = {
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONUNBUFFERED": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not the user's
}


class UnknownStage(UsageError):
    """A stage name that is none of the notebooks."""


class UnsafePath(LabError):
    """A path that papermill would change."""


@dataclass(frozen=True)
class StageResult:
    """What became of one notebook.

    Attributes:
        stage: Such as `03_export`.
        status: `passed` or `failed`.
        reason: One sentence; empty when passed.
        seconds: Wall-clock time.
        notebook: The executed notebook.
        timed_out: Whether it was stopped at its wall-clock limit.
        log: Everything the notebook and papermill printed.
        checks: What the stage's files were held against.
    """

    stage: str
    status: str
    reason: str
    seconds: float
    notebook: str
    log: str
    checks: list[CheckResult] = field(default_factory=list)
    timed_out: bool = False


@dataclass(frozen=True)
class Progress:
    """What a running stage last said, for whoever shows progress.

    Attributes:
        stage: Such as `02_train`.
        seconds: Since the stage began.
        line: The last line that the notebook printed.
    """

    stage: str
    seconds: float
    line: str


@dataclass(frozen=True)
class CellFinding:
    """What an executed notebook shows about one of its code cells.

    Attributes:
        number: Among the code cells that are not blank, from 1.
        total: How many there are.
        first_line: Of the cell, shortened.
        ran: Whether the cell has an execution count, above that of the cells before it.
        ename: Class of the error that it shows; empty without one.
        evalue: Message of the error.
    """

    number: int
    total: int
    first_line: str
    ran: bool
    ename: str = ""
    evalue: str = ""

    @property
    def where(self) -> str:
        """The cell, as a person finds it."""
        return f"code cell {self.number} of {self.total} (`{self.first_line}`)"


def stages_from(first: str | None) -> tuple[str, ...]:
    """Return the stages to run, from `first` on.

    Args:
        first: `03`, `3` or `03_export`; None for all.

    Raises:
        UnknownStage: there is no such stage.
    """
    if first is None:
        return STAGES
    number = first.split("_")[0].zfill(2)
    for index, stage in enumerate(STAGES):
        if stage == first or (stage.startswith(f"{number}_") and "_" not in first):
            return STAGES[index:]
    raise UnknownStage(f"stage {first!r} does not exist; choose one of: {', '.join(STAGES)}")


def run_chain(
    workspace: Workspace,
    profile_name: str,
    stages: tuple[str, ...] = STAGES,
    notebooks: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_result: Callable[[StageResult], None] = lambda result: None,
    wall_limit_s: float | None = None,
) -> list[StageResult]:
    """Run notebooks in order until one fails; `run.json` is written after each.

    Args:
        workspace: Where the run keeps its files.
        profile_name: How much work each notebook does.
        stages: Which notebooks, in order.
        notebooks: The folder they are in; the project's own when None.
        on_progress: Called a few times a second while a notebook runs.
        on_result: Called after each notebook.
        wall_limit_s: Wall-clock limit of one notebook, in seconds; the profile's when None.

    Returns:
        A result per notebook that was started; the last one may have failed.
    """
    folder = notebooks or project_root() / "notebooks"
    for path in (folder, workspace.root):
        if set("{}") & set(str(path)):
            raise UnsafePath(f"got {path}: papermill formats braces in paths; use a path without")
    profile = preset(profile_name)
    limit_s = wall_limit_s or WALL_LIMIT_S[profile.name]
    started = datetime.now(UTC).isoformat(timespec="seconds")
    earlier = _earlier_stages(workspace, profile, stages)
    results: list[StageResult] = []
    for stage in stages:
        result = run_stage(stage, folder, workspace, profile, on_progress, limit_s)
        results.append(result)
        _write_run(workspace, profile, started, [*earlier, *map(asdict, results)])
        on_result(result)
        if result.status != PASSED:
            break
    return results


def run_stage(
    stage: str,
    notebooks: Path,
    workspace: Workspace,
    profile: Profile,
    on_progress: Callable[[Progress], None],
    limit_s: float,
) -> StageResult:
    """Run one notebook in a child process and judge it by what it left behind."""
    source = notebooks / f"{stage}.ipynb"
    executed = workspace.executed / f"{stage}.ipynb"
    log_path = workspace.logs / f"{stage}.log"
    workspace.executed.mkdir(parents=True, exist_ok=True)
    executed.unlink(missing_ok=True)  # evidence of an earlier run is no evidence of this one
    workspace.forget(stage)
    begin = time.monotonic()
    reason, timed_out = _unfit(source), False
    if not reason:
        timed_out = _execute(
            source, executed, log_path, workspace, profile, on_progress, begin + limit_s
        )
        reason = cell_failure(executed, timed_out)
        if timed_out:
            reason = f"took longer than {limit_s:.0f} s: {reason or 'every cell had run'}"
    checks = [] if reason else check_stage(stage, workspace, profile)
    if failed := [check for check in checks if not check.passed]:
        reason = "; ".join(
            f"{c.name}: {c.detail}" + (f" ({c.hint})" if c.hint else "") for c in failed
        )
    return StageResult(
        stage,
        FAILED if reason else PASSED,
        reason,
        round(time.monotonic() - begin, 2),
        str(executed),
        str(log_path),
        checks,
        timed_out,
    )


def _unfit(source: Path) -> str:
    """Say why a notebook cannot be run headless; empty when it can."""
    if not source.is_file():
        return f"{source.name} is missing in {source.parent}"
    import nbformat  # which takes some seconds

    try:
        notebook = nbformat.read(source, as_version=4)
    except Exception as error:  # nbformat raises many types for damaged files
        return f"{source.name} is not a valid notebook: {str(error).splitlines()[0]}"
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    if tags.count("parameters") != 1:
        found = tags.count("parameters")
        return f"{source.name} has {found} cells tagged `parameters`, expected one; restore the tag"
    return ""


def _execute(
    source: Path,
    executed: Path,
    log_path: Path,
    workspace: Workspace,
    profile: Profile,
    on_progress: Callable[[Progress], None],
    deadline: float,
) -> bool:
    """Run papermill in a child process; return whether the deadline stopped it."""
    command = papermill_command(source, executed, profile.name, workspace.root)
    hidden = {"LABKIT_PROFILE", "LABKIT_WORKSPACE"}  # the parameters decide, and nothing else
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= PAPERMILL_ENVIRONMENT
    begin, numbers = time.monotonic(), code_cell_numbers(source)
    with log_path.open("wb") as stream, stopped_at_the_end():
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        while child.poll() is None:
            if time.monotonic() > deadline:
                return True
            line = progress_line(_tail(log_path), numbers)
            on_progress(Progress(source.stem, time.monotonic() - begin, line))
            time.sleep(POLL_S)
    return False


def papermill_command(source: Path, executed: Path, profile: str, workspace: Path) -> list[str]:
    """Return the command line that runs a notebook with its two parameters."""
    command = [sys.executable, "-m", "papermill", str(source), str(executed), "--log-output"]
    command += ["--no-progress-bar", "--cwd", str(source.parent)]
    command += ["--kernel", "python3", "--language", "python"]  # whatever its metadata says
    return [*command, "-r", "profile", profile, "-r", "workspace", str(workspace)]


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_with_parent() -> None:
    """In the child: end when the chain is killed. The kernel and its server then follow."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def stopped_at_the_end() -> Iterator[None]:
    """Stop every process started inside: papermill, its kernel, and whatever a notebook started.

    While inside, this process adopts orphans, so that a process that a notebook has sent into the
    background is still found when its parents are gone.
    """
    chain = psutil.Process()
    before = {process.pid for process in chain.children(recursive=True)}
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        started = [p for p in chain.children(recursive=True) if p.pid not in before]
        for process in started:
            _signal(process, "terminate")
        psutil.wait_procs(started, timeout=STOP_GRACE_S)
        left = [p for p in chain.children(recursive=True) if p.pid not in before]
        for process in left:
            _signal(process, "kill")
        psutil.wait_procs(left, timeout=STOP_GRACE_S)
        _prctl(PR_SET_CHILD_SUBREAPER, 0)


def _signal(process: psutil.Process, method: str) -> None:
    """Call `terminate` or `kill` of a process that may have ended meanwhile."""
    try:
        getattr(process, method)()
    except psutil.NoSuchProcess:
        log.debug("process %s had ended", process.pid)


_CELL = re.compile(r"Executing Cell (\d+)-")  # papermill's own line before a cell's output
_STRAY = re.compile(r"<\w+ size .*>$|[IWEF]\d{4} \d\d:\d\d:|Ending Cell \d+-")  # a figure, a server


def code_cell_numbers(source: Path) -> list[int]:
    """Return for each cell, as papermill runs them, how many code cells there are up to it.

    Counted as in `CellFinding`: blank cells are none, and papermill's own parameters are one.
    """
    import nbformat

    numbers = [0]
    for cell in nbformat.read(source, as_version=4).cells:
        numbers.append(numbers[-1] + (cell.cell_type == "code" and bool(cell.source.strip())))
        if "parameters" in cell.metadata.get("tags", []):
            numbers.append(numbers[-1] + 1)
    return numbers[1:]


def progress_line(text: str, numbers: Sequence[int]) -> str:
    """Return what the running cell is, and what it printed last, from the end of a log.

    Args:
        text: The log as papermill writes it, or its end.
        numbers: See `code_cell_numbers`; papermill itself counts texts, too.

    Returns:
        Such as `code cell 12 of 35: epoch 3 of 8, …`; what an earlier cell printed, figures and
        lines of a server's log are left out.
    """
    begun = list(_CELL.finditer(text))
    if not begun:
        return ""
    printed = (line.strip() for line in text[begun[-1].end() :].splitlines()[1:])
    own = [line for line in printed if line and not _STRAY.match(line)]
    cell = f"code cell {numbers[int(begun[-1][1]) - 1]} of {numbers[-1]}"
    return cell + (f": {own[-1][:120]}" if own else "")


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 8_000))
        return stream.read().decode(errors="replace")


def cell_failure(executed: Path, timed_out: bool = False) -> str:
    """Say what an executed notebook shows to have gone wrong; empty when every cell ran.

    A code cell counts as run only when it has an execution count and no error output; counts must
    rise, so that a kernel that was restarted in the middle is noticed. A notebook that was stopped
    at its limit was in the first cell that has no count.
    """
    if not executed.is_file():
        return "papermill left no executed notebook; see the log"
    import nbformat

    try:
        notebook = nbformat.read(executed, as_version=4)
    except Exception as error:  # papermill may have been stopped while it wrote
        return f"the executed notebook cannot be read: {str(error).splitlines()[0]}"
    findings = cell_findings(notebook.cells)
    for cell in findings:
        if cell.ename:
            return f"{cell.where}: {cell.ename}: {cell.evalue}"
        if not cell.ran and timed_out:
            return f"it was in {cell.where}"
        if not cell.ran:
            return f"{cell.where} did not run: the kernel was stopped, killed or left before it"
    return "" if findings else "the notebook has no code cell"


def cell_findings(cells: "Iterable[NotebookNode]") -> list[CellFinding]:
    """Return what executed cells show, one finding per code cell that is not blank."""
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    findings: list[CellFinding] = []
    previous = 0
    for number, cell in enumerate(code, start=1):
        errors = [output for output in cell.outputs if output.output_type == "error"]
        ename = (errors[0].ename or "error") if errors else ""
        evalue = errors[0].evalue if errors else ""
        ran = cell.execution_count is not None and cell.execution_count > previous
        previous = cell.execution_count if ran else previous
        first_line = first_line_of(cell.source)
        findings.append(CellFinding(number, len(code), first_line, ran, ename, evalue))
    return findings


def first_line_of(source: str) -> str:
    """Return the line that tells a cell apart, shortened: the first that is not blank."""
    return next((line.strip() for line in source.splitlines() if line.strip()), "")[:60]


def _earlier_stages(
    workspace: Workspace, profile: Profile, stages: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return what `run.json` says of stages that are not run now, for a run that is resumed."""
    path = workspace.root / "run.json"
    run = read_json(path) if path.is_file() else {}
    if run.get("profile") != profile.name:
        return []
    return [entry for entry in run["stages"] if entry["stage"] not in stages]


def _write_run(
    workspace: Workspace, profile: Profile, started: str, stages: list[dict[str, Any]]
) -> None:
    """Write `run.json`: what ran, where, how long, and the verdicts."""
    write_json(
        workspace.root / "run.json",
        {
            "profile": profile.name,
            "started_at": started,
            "seconds": round(sum(stage["seconds"] for stage in stages), 2),
            "environment": environment_facts(),
            "stages": stages,
        },
    )
