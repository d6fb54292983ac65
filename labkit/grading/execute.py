"""Run one notebook of a submission in the sandbox, with papermill, and say how that ended."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.chain import papermill_command
from labkit.grading.artifacts import Made, take_out
from labkit.grading.box import open_box
from labkit.grading.executed import verdict_of
from labkit.grading.files import JSON_MIB, UnfitFile, copy_plain
from labkit.grading.limits import MIB, Limits
from labkit.grading.notebook_file import IntakeError, read_notebook
from labkit.grading.results import OK, STOPPED
from labkit.grading.sandbox import Confined, Isolation
from labkit.grading.watch import Outcome

EXECUTED, LOG = "executed.ipynb", "log.txt"


@dataclass(frozen=True)
class Job:
    """One notebook to run.

    Attributes:
        stage: Such as `03_export`.
        notebook: As `prepare` returned it.
        required: How many of its cells must run.
        artifacts: Artifact → file, given to it.
        repository: Model repository given to it; None for none.
        folder: The submission's folder, as taken in.
        files: Further files of it.
        beside: The notebook's own folder in it.
        profile: `smoke`, `standard` or `full`.
        limits: What it may use.
        keep: Where its files, executed notebook and log are kept.
        parent: Where its box is made.
        home: What its home folder begins with, see `box.make_home`.
    """

    stage: str
    notebook: NotebookNode
    required: int
    artifacts: dict[str, Path]
    repository: Path | None
    folder: Path
    files: Iterable[str]
    beside: Path
    profile: str
    limits: Limits
    keep: Path
    parent: Path
    home: Path


def run_notebook(
    job: Job, isolation: Isolation, tick: Callable[[], None] = lambda: None
) -> tuple[Outcome, str, str, Made]:
    """Run a notebook and keep what it made.

    Args:
        job: The notebook and what it is given.
        isolation: How to confine it.
        tick: Called several times a second.

    Returns:
        What it used; verdict; reason, one sentence, empty when `ok`; what it made.
    """
    job.keep.mkdir(parents=True, exist_ok=True)
    with open_box(job.parent, isolation) as box:
        box.put_artifacts(job.artifacts)
        box.put_repository(job.repository)
        box.put_home(job.home)
        box.put_files(job.folder, job.files, job.beside)
        source = box.lab / "notebooks" / f"{job.stage}.ipynb"
        source.unlink(missing_ok=True)
        nbformat.write(job.notebook, source)
        executed = box.run / "notebooks" / f"{job.stage}.ipynb"
        command = papermill_command(
            Path(box.seen(source)), Path(box.seen(executed)), job.profile, Path(box.seen(box.run))
        )
        box.hand_over()
        sandbox = box.sandbox(job.profile)
        with Confined(isolation, sandbox, command, job.limits, box.writable, box.log) as program:
            outcome = program.wait(tick)
        # From here on nothing of the submission runs any more.
        _keep_log(box.log, job.keep / LOG, job.limits.output_mib)
        made = take_out(job.stage, box.run, job.keep)
        verdict, reason = _verdict(box.run, job, outcome)
    return outcome, verdict, reason, made


def _verdict(run: Path, job: Job, outcome: Outcome) -> tuple[str, str]:
    """Say how a notebook ended: the limit that stopped it, else what its cells show."""
    if outcome.verdict != OK:
        _keep_notebook(run, job)
        return outcome.verdict, f"the notebook was stopped: it {outcome.reason}"
    problem = _keep_notebook(run, job)
    if problem:
        return STOPPED, f"{problem} (papermill ended with status {outcome.status})"
    try:
        executed = read_notebook(job.keep / EXECUTED, JSON_MIB * MIB)
    except IntakeError as error:
        return STOPPED, f"the executed notebook cannot be read: {error}"
    verdict, reason = verdict_of(executed, job.required)
    if verdict == OK and outcome.status != 0:  # whoever wrote this notebook, it was not papermill
        return STOPPED, f"papermill was ended before it was done (status {outcome.status})"
    return verdict, reason


def _keep_notebook(run: Path, job: Job) -> str:
    """Keep the executed notebook; say why there is none, or nothing.

    The run's folder may have become a link, to the solved notebooks for instance, so it is a part
    of the name, see `open_plain`.
    """
    try:
        copy_plain(run.parent, f"{run.name}/notebooks/{job.stage}.ipynb", job.keep / EXECUTED)
        return ""
    except UnfitFile as error:
        return f"no executed notebook was left ({error})"


def _keep_log(log: Path, target: Path, limit_mib: float) -> None:
    """Keep the beginning and, where it is long, no more of what a notebook printed."""
    with log.open("rb") as source, target.open("wb") as kept:
        kept.write(source.read(int(limit_mib * MIB)))
    shutil.copymode(log, target)
