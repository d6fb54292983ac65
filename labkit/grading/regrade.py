"""Grade again from what a grading has kept: new points, new measurements, no student code run."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from labkit.chain import STAGES
from labkit.grading.carry_forward import CarryForward, kept
from labkit.grading.exercises import measure_exercises, read_answers
from labkit.grading.find_submissions import safe_name
from labkit.grading.grade import EXERCISE_ANSWERS, WORK, measure_sha256, scored
from labkit.grading.measure import Case, measure_patiently
from labkit.grading.measure.images import GradingImages, ImageFiles
from labkit.grading.measure.model_sandbox import ModelSandbox
from labkit.grading.results import GRADED, Measurement, Result, write_result
from labkit.grading.rubric import load_rubric
from labkit.grading.session import (
    RUBRIC_COPY,
    Session,
    SessionError,
    locked,
    require_runtime,
)
from labkit.grading.workdir import readable, remove


def regrade(
    session: Session,
    rubric: Path | None = None,
    measure: bool = False,
    on_result: Callable[[Result, bool], None] = lambda result, measured: None,
) -> tuple[Session, list[Result]]:
    """Give every submission of a grading its points again.

    Stored measurements are enough for a change of the rubric. Where the programs that measure have
    changed since, or `measure` asks for it, model files and answers to exercises that the grading
    has kept are measured again, in the sandbox. Notebooks never run.

    Args:
        session: The grading.
        rubric: A rubric file; the one beside the results when None.
        measure: Measure again in any case.
        on_result: Called with every result, and whether it was measured again.

    Returns:
        The session with the new rubric, and all results.

    Raises:
        SessionError: there are no results.
    """
    load_rubric(rubric or session.out / RUBRIC_COPY, session.profile)
    with locked(session.out), readable():
        if rubric is not None and rubric.resolve() != (session.out / RUBRIC_COPY).resolve():
            shutil.copyfile(rubric, session.out / RUBRIC_COPY)
        session = Session.load(session.out)
        if not session.result_files():
            raise SessionError(f"{session.out} has no results yet: labkit grade makes them")
        images: GradingImages | None = None
        results = []
        for result in session.results():
            again = result.status == GRADED and (
                measure or result.measure_sha256 != measure_sha256()
            )
            # What it was measured by may have been cleared away since.
            again = again and session.evidence(result.student).is_dir()
            if again:
                if images is None:
                    require_runtime(session.runtime)
                    images = GradingImages.choose(session.profile, session.seed)
                result = _measured_again(session, result, images)
            result = scored(result, session.rubric)
            write_result(session.result_path(result.student), result)
            on_result(result, again)
            results.append(result)
        remove(session.out / WORK)
    return session, results


def _measured_again(session: Session, result: Result, images: GradingImages) -> Result:
    """Measure what a submission has left.

    Later stages are measured with what they were given when they ran, so the decisions of the
    grading stand. Where files have been cleared away since, so do its measurements.
    """
    begin = time.monotonic()
    work = session.out / WORK / safe_name(result.student)
    keep = session.evidence(result.student)
    image_files = ImageFiles(work / "images", images, session.profile)
    records = {record.stage: record for record in result.stages}
    measurements: dict[str, Measurement] = {}
    with ModelSandbox(
        session.confinement, session.profile, work, image_files.folder, runtime=session.runtime
    ) as sandbox:
        carry_forward = CarryForward(session.reference_run, work)
        case = Case(sandbox, image_files, session.profile)
        for stage in STAGES:
            record, outputs = records.get(stage), kept(stage, keep / stage)
            if record is not None and (keep / stage).is_dir():
                case.of(carry_forward.inputs(stage), outputs)
                measured, trouble = measure_patiently(stage, case)
                if trouble:
                    return result  # as it was: the next regrade tries again
                measurements |= measured.measurements
            accepted = record is not None and record.accepted and not outputs.missing
            carry_forward.advance(stage, outputs if accepted else None)
            case.use_splits(carry_forward.artifacts["splits.json"])
    if (keep / EXERCISE_ANSWERS).is_dir():
        measurements |= measure_exercises(session.seed, read_answers(keep / EXERCISE_ANSWERS))
    remove(work)
    seconds = round(time.monotonic() - begin, 2)
    return replace(
        result,
        measurements=result.measurements | measurements,
        measure_sha256=measure_sha256(),
        timings={**result.timings, "measure": seconds},
    )
