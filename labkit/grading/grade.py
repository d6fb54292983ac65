"""Grade one submission, from what was handed in to a result; nothing of it runs afterwards."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from nbformat import NotebookNode

from labkit.chain import STAGES
from labkit.environment import environment_facts
from labkit.grading.artifacts import Made
from labkit.grading.assessment import Assessment, Given
from labkit.grading.call import ExerciseRun
from labkit.grading.execute import Job, run_notebook
from labkit.grading.exercises import judge_exercises
from labkit.grading.heldout import GradingImages, ImageFiles
from labkit.grading.intake import Intake, Source, safe_name, take_in
from labkit.grading.judge import Judgement
from labkit.grading.notebook_file import IntakeError, read_notebook
from labkit.grading.plan import Plan
from labkit.grading.prepare import prepare
from labkit.grading.probe import Probe
from labkit.grading.results import (
    INVALID,
    REJECTED,
    Measurement,
    Result,
    StageRecord,
)
from labkit.grading.rubric import Rubric
from labkit.workspace import project_root

EXERCISE_ANSWERS, WORK, HOME = "exercises", ".work", ".home"
MODEL_STAGES = frozenset(STAGES) - {"01_data", "08_report"}  # judged by running files


@cache
def reference_notebooks() -> Mapping[str, NotebookNode]:
    """Return the solved notebooks: their locked cells are put back into submissions."""
    folder = project_root() / "notebooks"
    return {stage: read_notebook(folder / f"{stage}.ipynb") for stage in STAGES}


@cache
def judge_sha256() -> str:
    """Return a checksum of the programs that measure: another one has to measure anew."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    parts = ("judge", "exercises", "probes", "heldout.py", "probe.py")
    for part in parts:
        files = sorted((package / part).rglob("*.py")) or [package / part]
        for path in files:
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Submission:
    """One submission while it is graded.

    Args:
        plan: What it has in common with the others.
        images: Those of the grading.
        source: Where it lies.
        on_stage: Called with a short word before each step, for whoever shows progress.
    """

    def __init__(
        self,
        plan: Plan,
        images: GradingImages,
        source: Source,
        on_stage: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.plan, self.source, self._on_stage = plan, source, on_stage
        self.keep = plan.evidence(source.student)
        self.work = plan.out / WORK / f"{safe_name(source.student)}-{os.getpid()}"
        self._image_files = ImageFiles(self.work / "images", images, plan.profile)
        self._seconds = {"notebooks": 0.0, "measure": 0.0}
        self.measurements: dict[str, Measurement] = {}
        self.records: list[StageRecord] = []

    def grade(self) -> Result:
        """Run, measure and score it."""
        begin = time.monotonic()
        self._on_stage("intake")
        shutil.rmtree(self.keep, ignore_errors=True)
        intake = take_in(self.source, self.work / "submission", reference_notebooks())
        result = Result(
            student=self.source.student,
            status=intake.status,
            profile=self.plan.profile,
            reason=intake.reason,
            notes=list(intake.notes),
            submission_sha256=intake.sha256,
            judge_sha256=judge_sha256(),
            seed=self.plan.seed,
            isolation=str(self.plan.confinement),
            environment=environment_facts(),
        )
        if intake.status != REJECTED:
            self._run_and_measure(intake)
        timings = {**self._seconds, "total": time.monotonic() - begin}
        return scored(
            replace(
                result,
                stages=self.records,
                measurements=self.measurements,
                timings={name: round(seconds, 2) for name, seconds in timings.items()},
            ),
            self.plan.rubric,
        )

    def _run_and_measure(self, intake: Intake) -> None:
        """Run every notebook in order, and measure what it made before the next one runs."""
        plan, images = self.plan, self._image_files
        notebooks = {stage: found.path for stage, found in intake.notebooks.items()}
        answers = self.keep / EXERCISE_ANSWERS
        with (
            Probe(plan.confinement, plan.profile, self.work, images.folder) as probe,
            ExerciseRun(plan, notebooks, self.work, answers) as exercises,
        ):
            if MODEL_STAGES & notebooks.keys():
                probe.start()  # its imports take seconds: they overlap with the first notebook
            assessment = Assessment(plan, images, probe, self.work)
            for stage in STAGES:
                if stage in plan.rubric.stages:
                    self._grade_stage(stage, intake, assessment)
                else:
                    assessment.settle(stage, None)
            self._on_stage("exercises")
            begin = time.monotonic()
            outputs = exercises.outputs()
        self.measurements |= judge_exercises(plan.seed, outputs)
        self._seconds["measure"] += time.monotonic() - begin

    def _grade_stage(self, stage: str, intake: Intake, assessment: Assessment) -> None:
        """Run and measure one notebook, and decide what the later ones are given."""
        self._on_stage(stage)
        given = assessment.given(stage)
        begin = time.monotonic()
        record, made = self._run(stage, intake, given)
        ran = time.monotonic()
        if made is None:
            judgement = Judgement({}, False, record.reason)
        else:
            judgement = assessment.judge(stage, given, made)
        self._seconds["notebooks"] += ran - begin
        self._seconds["measure"] += time.monotonic() - ran
        self.measurements |= judgement.measurements
        assessment.settle(stage, made if judgement.accepted else None)
        self.records.append(replace(record, accepted=judgement.accepted, why_not=judgement.why_not))

    def _run(self, stage: str, intake: Intake, given: Given) -> tuple[StageRecord, Made | None]:
        """Run a stage's notebook; what it made is None where there was nothing to run."""
        record = StageRecord(stage, "", used_reference=given.from_reference)
        if problem := intake.problems.get(stage):
            return replace(record, verdict=problem.verdict, reason=problem.reason), None
        found = intake.notebooks[stage]
        try:
            notebook = read_notebook(found.path)
            prepared = prepare(notebook, reference_notebooks()[stage], self.plan.profile, "run")
        except IntakeError as error:
            return replace(record, verdict=INVALID, reason=str(error)), None
        job = Job(
            stage=stage,
            notebook=prepared.notebook,
            required=prepared.required,
            artifacts=given.artifacts,
            repository=given.repository,
            folder=intake.folder,
            files=intake.other_files,
            beside=found.path.parent,
            profile=self.plan.profile,
            limits=self.plan.rubric.limits_for(self.plan.profile),
            keep=self.keep / stage,
            parent=self.work,
            home=self.plan.out / HOME,
        )
        outcome, verdict, reason, made = run_notebook(job, self.plan.confinement)
        return replace(
            record,
            verdict=verdict,
            reason=reason,
            seconds=round(outcome.seconds, 2),
            cpu_s=round(outcome.cpu_s, 2),
            peak_memory_mib=round(outcome.peak_memory_mib, 1),
            artifacts=made.sha256,
            notes=[*([found.note] if found.note else []), *prepared.notes],
        ), made


def scored(result: Result, rubric: Rubric) -> Result:
    """Return a result with the points that a rubric gives for its measurements."""
    items = rubric.score(result.measurements)
    return replace(
        result,
        items=items,
        points=round(sum(item.points for item in items), 2),
        maximum=rubric.maximum,
        rubric_sha256=rubric.sha256,
    )
