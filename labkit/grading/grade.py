"""Grade one submission, from what was handed in to a result; nothing of it runs afterwards."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from labkit.chain import STAGES
from labkit.environment import environment_facts
from labkit.grading.carry_forward import CarryForward, StageInputs, StageOutputs
from labkit.grading.confined_process import Stopped
from labkit.grading.exercises import EXERCISES, keep_answers, measure_exercises
from labkit.grading.find_submissions import Source, safe_name
from labkit.grading.measure import Case, StageMeasurements, measure_patiently
from labkit.grading.measure.images import GradingImages, ImageFiles
from labkit.grading.measure.model_sandbox import ModelSandbox
from labkit.grading.notebook import NotebookNode, prepare, read_notebook
from labkit.grading.results import (
    FAILED,
    GRADER_ERROR,
    OOM,
    REJECTED,
    Measurement,
    Result,
    StageRecord,
)
from labkit.grading.rubric import Rubric
from labkit.grading.run_notebook import Job, KernelSandbox, Ran, imports_of, run_notebook
from labkit.grading.sandbox import BUBBLEWRAP
from labkit.grading.session import Session, Turns
from labkit.grading.submission import Intake, take_in_time
from labkit.profiles import available_cores
from labkit.workspace import project_root

AGAIN = frozenset({OOM, GRADER_ERROR})  # verdicts that a busy machine may give
EXERCISE_ANSWERS, WORK, HOME = "exercises", ".work", ".home"
MODEL_STAGES = frozenset(STAGES) - {"01_data", "08_report"}  # measured by running files


@cache
def reference_notebooks() -> Mapping[str, NotebookNode]:
    """Return the solved notebooks: their locked cells are put back into submissions."""
    folder = project_root() / "notebooks"
    return {stage: read_notebook(folder / f"{stage}.ipynb") for stage in STAGES}


@cache
def measure_sha256() -> str:
    """Return a checksum of the programs that measure: another one has to measure anew."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    parts = ("measure", "exercises", "inside")
    for part in parts:
        files = sorted((package / part).rglob("*.py")) or [package / part]
        for path in files:
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Submission:
    """One submission while it is graded.

    Args:
        session: What it has in common with the others.
        images: Those of the grading.
        source: Where it lies.
        on_stage: Called with a short word before each step, for whoever shows progress.
    """

    def __init__(
        self,
        session: Session,
        images: GradingImages,
        source: Source,
        on_stage: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.session, self.source, self._on_stage = session, source, on_stage
        self.keep = session.evidence(source.student)
        self.work = session.out / WORK / f"{safe_name(source.student)}-{os.getpid()}"
        self._image_files = ImageFiles(self.work / "images", images, session.profile)
        self._seconds = {"notebooks": 0.0, "measure": 0.0}
        self.measurements: dict[str, Measurement] = {}
        self._answers: dict[str, Any] = {}
        self.records: list[StageRecord] = []

    def grade(self) -> Result:
        """Run, measure and score it."""
        begin = time.monotonic()
        self._on_stage("intake")
        shutil.rmtree(self.keep, ignore_errors=True)
        intake = take_in_time(self.source, self.work / "submission", reference_notebooks())
        result = Result(
            student=self.source.student,
            status=intake.status,
            profile=self.session.profile,
            reason=intake.reason,
            notes=list(intake.notes),
            submission_sha256=intake.sha256,
            measure_sha256=measure_sha256(),
            seed=self.session.seed,
            isolation=str(self.session.confinement),
            environment=environment_facts(),
            handed_in=self.source.handed_in,
        )
        if intake.status != REJECTED:
            self._run_and_measure(intake)
        if lost := [r for r in self.records if r.verdict == GRADER_ERROR]:
            why = f"{lost[0].stage}: {lost[0].reason}; grade it again with --resume"
            result = replace(result, status=FAILED, reason=why)
        timings = {**self._seconds, "total": time.monotonic() - begin}
        return scored(
            replace(
                result,
                stages=self.records,
                measurements=self.measurements,
                timings={name: round(seconds, 2) for name, seconds in timings.items()},
            ),
            self.session.rubric,
        )

    def _run_and_measure(self, intake: Intake) -> None:
        """Run every notebook in order, and measure what it made before the next one runs."""
        session, images = self.session, self._image_files
        stages = [stage for stage in session.rubric.stages if stage in intake.notebooks]
        with (
            ModelSandbox(
                session.confinement,
                session.profile,
                self.work,
                images.folder,
                runtime=session.runtime,
            ) as sandbox,
            Kernels(session, self.work, stages) as self._kernels,
        ):
            if MODEL_STAGES & intake.notebooks.keys():
                sandbox.start()  # its imports take seconds: they overlap with the first notebook
            carry_forward = CarryForward(session.reference_run, self.work)
            case = Case(sandbox, images, session.profile)
            for stage in STAGES:
                outputs = None
                if stage in session.rubric.stages:
                    outputs = self._grade_stage(stage, intake, carry_forward.inputs(stage), case)
                carry_forward.advance(stage, outputs)
                case.use_splits(carry_forward.artifacts["splits.json"])
        keep_answers(self.keep / EXERCISE_ANSWERS, self._answers)
        self.measurements |= measure_exercises(session.seed, self._answers)

    def _grade_stage(
        self, stage: str, intake: Intake, inputs: StageInputs, case: Case
    ) -> StageOutputs | None:
        """Run and measure one notebook; return what later ones may be given, None without it."""
        self._on_stage(stage)
        begin = time.monotonic()
        record, outputs = self._run(stage, intake, inputs, case.sandbox)
        ran = time.monotonic()
        if outputs is None:
            measured = StageMeasurements({}, [record.reason])
        else:
            turns = Turns(self.session.out)
            measured, trouble = measure_patiently(
                stage, case.of(inputs, outputs), lambda: turns.take(alone=True)
            )
            if trouble:
                record = replace(record, verdict=GRADER_ERROR, reason=trouble)
        self._seconds["notebooks"] += ran - begin
        self._seconds["measure"] += time.monotonic() - ran
        self.measurements |= measured.measurements
        self.records.append(replace(record, accepted=measured.accepted, why_not=measured.why_not))
        return outputs if measured.accepted else None

    def _run(
        self, stage: str, intake: Intake, inputs: StageInputs, sandbox: ModelSandbox
    ) -> tuple[StageRecord, StageOutputs | None]:
        """Run a stage's notebook; what it left is None where there was nothing to run."""
        record = StageRecord(stage, "", used_reference=inputs.from_reference)
        if problem := intake.problems.get(stage):
            return replace(record, verdict=problem.verdict, reason=problem.reason), None
        found = intake.notebooks[stage]
        reference = reference_notebooks()[stage]
        prepared = prepare(found.notebook, reference, self.session.profile, "run")
        job = Job(
            stage=stage,
            notebook=prepared.notebook,
            artifacts=inputs.artifacts,
            repository=inputs.repository,
            folder=intake.folder,
            files=intake.other_files,
            beside=found.path.parent,
            profile=self.session.profile,
            limits=self.session.rubric.limits_for(self.session.profile),
            keep=self.keep / stage,
            seed=self.session.seed,
            exercises=[item.id for item in self.session.rubric.items if item.id in EXERCISES],
        )
        ran = self._run_job(job, sandbox)
        self._answers |= ran.answers
        outcome, outputs = ran.outcome, ran.outputs
        verdict, reason = ran.verdict, ran.reason
        if trouble := ran.no_server or sandbox.trouble:
            verdict, reason = GRADER_ERROR, f"its exercises could not be asked: {trouble}"
        return replace(
            record,
            verdict=verdict,
            reason=reason,
            seconds=round(outcome.seconds, 2),
            cpu_s=round(outcome.cpu_s, 2),
            peak_memory_mib=round(outcome.peak_memory_mib, 1),
            artifacts=outputs.sha256,
            notes=[*([found.note] if found.note else []), *prepared.notes],
        ), outputs

    def _run_job(self, job: Job, sandbox: ModelSandbox) -> Ran:
        """Run a notebook; where that ended as a busy machine may end it, once more and alone."""
        turns = Turns(self.session.out)
        sandbox.forget_trouble()
        with turns.take(), self._kernels.take(job.stage, ahead=True) as kernel:
            ran = run_notebook(job, kernel, sandbox.look_into)
        late = ran.starved or sandbox.starved
        if ran.verdict in AGAIN or late or ran.no_server or sandbox.trouble:
            self._on_stage(f"{job.stage}, again and alone")
            with turns.take(alone=True), self._kernels.take(job.stage) as kernel:
                shutil.rmtree(job.keep, ignore_errors=True)
                sandbox.forget_trouble()
                ran = run_notebook(job, kernel, sandbox.look_into)
        return ran


class Kernels(AbstractContextManager["Kernels"]):
    """Sandboxes with kernels, one for each notebook: the next one starts while one runs.

    It does so where a core is free for that: with several workers each has cores of its own.

    Args:
        session: The grading.
        work: Where they are made.
        stages: The notebooks, in order.
    """

    def __init__(self, session: Session, work: Path, stages: Sequence[str]) -> None:
        self._session, self._work, self._stages = session, work, stages
        self._waiting: dict[str, KernelSandbox] = {}

    def __exit__(self, *exc: object) -> None:
        for kernel in self._waiting.values():
            kernel.close()

    def take(self, stage: str, ahead: bool = False) -> KernelSandbox:
        """Return the sandbox for a notebook; with `ahead`, start that of the one after it."""
        session = self._session
        # Without bubblewrap whatever has been started beside a notebook ends with it.
        ahead &= session.confinement.kind == BUBBLEWRAP
        ahead &= session.workers == 1 and available_cores() > 1
        for after in self._stages[self._stages.index(stage) + 1 :][:1] if ahead else []:
            with suppress(OSError, Stopped):  # then it starts when its turn comes
                self._waiting[after] = self._start(imports_of(reference_notebooks()[after]))
        return self._waiting.pop(stage, None) or self._start()

    def _start(self, imports: Sequence[str] = ()) -> KernelSandbox:
        """Start one; imports only where somebody else's time is used, else the cells do it."""
        session = self._session
        return KernelSandbox(
            session.confinement,
            session.profile,
            self._work,
            session.out / HOME,
            session.runtime,
            session.rubric.limits_for(session.profile),
            imports,
        )


def scored(result: Result, rubric: Rubric) -> Result:
    """Return a result with the points that a rubric gives for its measurements."""
    items = rubric.score(result.measurements)
    points = sum(item.points for item in items)
    return replace(
        result,
        items=items,
        points=round(points * (1 - (rubric.late_penalty if result.late else 0)), 2),
        maximum=rubric.maximum,
        rubric_sha256=rubric.sha256,
    )
