"""Grade again from what a grading has kept: new points, new measurements, no student code run."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from labkit.chain import STAGES
from labkit.grading.artifacts import kept
from labkit.grading.assessment import Assessment
from labkit.grading.box import readable, remove
from labkit.grading.exercises import judge_exercises, read_answers
from labkit.grading.grade import EXERCISE_ANSWERS, WORK, judge_sha256, scored
from labkit.grading.heldout import GradingImages, ImageFiles
from labkit.grading.intake import safe_name
from labkit.grading.plan import RUBRIC_COPY, Plan, PlanError, locked
from labkit.grading.probe import Probe
from labkit.grading.results import GRADED, Measurement, Result, write_result
from labkit.grading.rubric import load_rubric


def regrade(
    plan: Plan,
    rubric: Path | None = None,
    measure: bool = False,
    on_result: Callable[[Result, bool], None] = lambda result, measured: None,
) -> tuple[Plan, list[Result]]:
    """Give every submission of a grading its points again.

    Stored measurements are enough for a change of the rubric. Where the programs that measure have
    changed since, or `measure` asks for it, model files and answers to exercises that the grading
    has kept are measured again, in the sandbox. Notebooks never run.

    Args:
        plan: The grading.
        rubric: A rubric file; the one beside the results when None.
        measure: Measure again in any case.
        on_result: Called with every result, and whether it was measured again.

    Returns:
        The plan with the new rubric, and all results.

    Raises:
        PlanError: there are no results.
    """
    load_rubric(rubric or plan.out / RUBRIC_COPY, plan.profile)
    with locked(plan.out), readable():
        if rubric is not None and rubric.resolve() != (plan.out / RUBRIC_COPY).resolve():
            shutil.copyfile(rubric, plan.out / RUBRIC_COPY)
        plan = Plan.load(plan.out)
        if not plan.result_files():
            raise PlanError(f"{plan.out} has no results yet: labkit grade makes them")
        images: GradingImages | None = None
        results = []
        for result in plan.results():
            again = result.status == GRADED and (measure or result.judge_sha256 != judge_sha256())
            # What it was measured by may have been cleared away since.
            again = again and plan.evidence(result.student).is_dir()
            if again:
                images = images or GradingImages.choose(plan.profile, plan.seed)
                result = _measured_again(plan, result, images)
            result = scored(result, plan.rubric)
            write_result(plan.result_path(result.student), result)
            on_result(result, again)
            results.append(result)
        remove(plan.out / WORK)
    return plan, results


def _measured_again(plan: Plan, result: Result, images: GradingImages) -> Result:
    """Measure what a submission has left.

    Later stages are measured with what they were given when they ran, so the decisions of the
    grading stand. Where files have been cleared away since, so do its measurements.
    """
    begin = time.monotonic()
    work = plan.out / WORK / safe_name(result.student)
    keep = plan.evidence(result.student)
    image_files = ImageFiles(work / "images", images, plan.profile)
    records = {record.stage: record for record in result.stages}
    measurements: dict[str, Measurement] = {}
    with Probe(plan.confinement, plan.profile, work, image_files.folder) as probe:
        assessment = Assessment(plan, image_files, probe, work)
        for stage in STAGES:
            record, made = records.get(stage), kept(stage, keep / stage)
            if record is not None and (keep / stage).is_dir():
                given = assessment.given(stage)
                measurements |= assessment.judge(stage, given, made).measurements
            accepted = record is not None and record.accepted and not made.missing
            assessment.settle(stage, made if accepted else None)
    if (keep / EXERCISE_ANSWERS).is_dir():
        measurements |= judge_exercises(plan.seed, read_answers(keep / EXERCISE_ANSWERS))
    remove(work)
    seconds = round(time.monotonic() - begin, 2)
    return replace(
        result,
        measurements=result.measurements | measurements,
        judge_sha256=judge_sha256(),
        timings={**result.timings, "measure": seconds},
    )
