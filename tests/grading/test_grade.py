"""One submission on its way: what is repeated before it costs points, and who may run beside it."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import reference_run, write_notebook

from labkit.grading import grade
from labkit.grading.find_submissions import find_submissions
from labkit.grading.measure import Case, StageMeasurements, stages
from labkit.grading.measure.images import GradingImages
from labkit.grading.results import (
    ERROR,
    FAILED,
    GRADED,
    GRADER_ERROR,
    OK,
    OOM,
    TIMEOUT,
    Result,
    write_result,
)
from labkit.grading.rubric import RUBRIC
from labkit.grading.run_notebook import Job, Ran
from labkit.grading.sandbox import BUBBLEWRAP, Isolation
from labkit.grading.session import Session, Turns
from labkit.grading.watch import Outcome
from labkit.grading.workdir import remove

STARVED, NO_SERVER = "starved", "no server"  # more ends of a run than there are verdicts
QUIET = Outcome(OK, "", 0, 1.0, 1.0, 10.0)


def first_notebook_only(folder: Path) -> Path:
    """The lab's rubric with the items of notebook 01."""
    items = RUBRIC.read_text().split("[[item]]")
    kept = [items[0], *(item for item in items[1:] if 'stage = "01_data"' in item)]
    path = folder / "rubric.toml"
    path.write_text("[[item]]".join(kept))
    return path


@pytest.fixture
def graded(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    """Grade a submission whose runs end as they are told to."""
    write_notebook(tmp_path / "class" / "ada", "01_data", "1")
    wanted = Session(tmp_path / "grades", "smoke", reference_run(tmp_path), seed=3)
    session = Session.begin(wanted, first_notebook_only(tmp_path), False)
    (source,) = find_submissions(tmp_path / "class").sources

    def run(*verdicts: str) -> tuple[Result, list[str]]:
        waiting, ran = list(verdicts), []

        def pretend(job: Job, *rest: object) -> Ran:
            ran.append(waiting.pop(0))
            made = Ran(QUIET, ran[-1], "" if ran[-1] == OK else "it said so")
            if ran[-1] == STARVED:
                made.verdict, made.starved = TIMEOUT, True
            if ran[-1] == NO_SERVER:
                made.verdict, made.answers = OK, {"ex-06-split": {"failure": "it did not start"}}
            return made

        monkeypatch.setattr(grade, "run_notebook", pretend)
        monkeypatch.setattr(grade, "KernelSandbox", lambda *about: nullcontext())
        images = GradingImages.choose("smoke", 3)
        submission = grade.Submission(session, images, source)
        result = submission.grade()
        remove(submission.work)
        return result, ran

    return run


@pytest.mark.parametrize(
    ("end", "verdict"),
    [(STARVED, TIMEOUT), (OOM, OOM), (GRADER_ERROR, GRADER_ERROR), (NO_SERVER, GRADER_ERROR)],
)
def test_what_a_busy_machine_may_do_is_repeated_once(graded, end: str, verdict: str) -> None:
    result, ran = graded(end, OK)
    assert (result.status, result.stages[0].verdict, ran) == (GRADED, OK, [end, OK])
    result, ran = graded(end, end)
    assert (result.stages[0].verdict, len(ran)) == (verdict, 2)
    assert result.status == (FAILED if verdict == GRADER_ERROR else GRADED)


@pytest.mark.parametrize("end", [ERROR, TIMEOUT])
def test_other_ends_are_not_repeated(graded, end: str) -> None:
    """A notebook that slept, or had its core, would only keep others from their turn."""
    assert graded(end)[1] == [end]


@pytest.mark.parametrize("stays", [False, True])
def test_what_the_grader_lacks_while_it_measures_is_never_a_students_fault(
    graded, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    measured = []

    def pretend(stage: str, case: Case) -> StageMeasurements:
        measured.append(stage)
        case.sandbox.trouble = "it was short of memory" if stays or len(measured) == 1 else ""
        return StageMeasurements({}, ["nothing"])

    monkeypatch.setattr(stages, "measure_stage", pretend)
    result, _ = graded(OK)
    assert measured == ["01_data"] * 2
    assert result.status == (FAILED if stays else GRADED)
    assert ("short of memory" in result.reason) == stays


@pytest.mark.parametrize(("workers", "started"), [(1, [True, False]), (2, [False])])
def test_only_a_kernel_that_starts_ahead_imports_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, started: list[bool]
) -> None:
    """Else a notebook of two lines would wait for every library of the lab."""
    session = Session.begin(
        Session(tmp_path / "grades", "smoke", tmp_path / "run", workers=workers), None, False
    )
    session.__dict__["confinement"] = Isolation(BUBBLEWRAP)
    imported = []
    monkeypatch.setattr(grade, "available_cores", lambda: 2)
    monkeypatch.setattr(grade, "KernelSandbox", lambda *about: imported.append(bool(about[-1])))
    kernels = grade.Kernels(session, tmp_path, ["01_data", "02_train"])
    kernels.take("01_data", ahead=True)
    assert imported == started


def test_who_runs_alone_waits_for_others_and_lets_nobody_begin(tmp_path: Path) -> None:
    turns, order = Turns(tmp_path), []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with turns.take():
            inside.set()
            leave.wait(10)
            order.append("first")

    def alone() -> None:
        with turns.take(alone=True):
            order.append("alone")

    threads = [threading.Thread(target=work) for work in (first, alone)]
    threads[0].start()
    inside.wait(10)
    with turns.take():
        order.append("beside")
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["beside", "first", "alone"]


def test_a_grading_is_private(tmp_path: Path) -> None:
    session = Session.begin(
        Session(tmp_path / "grades", "smoke", tmp_path / "run", seed=5), None, False
    )
    assert session.out.stat().st_mode & 0o777 == 0o700
    assert (session.out / "grading.json").stat().st_mode & 0o777 == 0o600
    write_result(session.result_path("ada"), Result("ada", GRADED, "smoke", seed=5))
    assert session.result_path("ada").stat().st_mode & 0o777 == 0o600


def test_a_late_submission_loses_what_the_rubric_says(graded, tmp_path: Path) -> None:
    result, _ = graded(OK)
    session = Session.load(tmp_path / "grades")
    late = replace(result, handed_in=replace(result.handed_in, late=True))
    full = [replace(item, points=item.maximum) for item in result.items]
    assert grade.scored(late, session.rubric).points == grade.scored(result, session.rubric).points
    strict = replace(session.rubric, late_penalty=0.25)
    whole = {item.id: replace(result.measurements[item.id], value=1.0) for item in full}
    assert grade.scored(replace(late, measurements=whole), strict).points == 6.0
