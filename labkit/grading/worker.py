"""Grade one submission in a process of its own: `python -m labkit.grading.worker OUT SOURCE PID`.

Whatever happens here, no other submission notices. It ends with the process that started it, and
then takes everything that it started along.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from labkit.chain import end_with_parent
from labkit.grading.box import readable, remove
from labkit.grading.grade import Submission, scored
from labkit.grading.heldout import GradingImages
from labkit.grading.intake import Source, find_submissions, safe_name
from labkit.grading.plan import Plan
from labkit.grading.results import FAILED, Result, write_result
from labkit.workspace import write_json

PROGRESS = ".progress"


def source_of(path: Path) -> Source:
    """Return the submission at a path, as `find_submissions` names it."""
    sources, _ = find_submissions(path.parent)
    return next(source for source in sources if source.path == path)


def grade_one(plan: Plan, source: Source) -> Result:
    """Grade a submission and write its result; a fault of the grader is a result too."""
    progress = plan.out / PROGRESS / f"{safe_name(source.student)}.json"
    begin = time.time()

    def show(step: str) -> None:
        write_json(progress, {"student": source.student, "step": step, "since": begin})

    try:
        images = GradingImages.choose(plan.profile, plan.seed)
        submission = Submission(plan, images, source, show)
        try:
            result = submission.grade()
        finally:
            remove(submission.work)
    except Exception as error:
        traceback.print_exc()
        result = failed(plan, source.student, f"{type(error).__name__}: {error}")
    finally:
        progress.unlink(missing_ok=True)
    write_result(plan.result_path(source.student), result)
    return result


def failed(plan: Plan, student: str, reason: str) -> Result:
    """Return the record of a submission on which the grader itself failed."""
    empty = Result(student, FAILED, plan.profile, reason, seed=plan.seed, isolation=plan.isolation)
    return scored(empty, plan.rubric)


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave in order: every open sandbox and folder is closed on the way out."""
    raise SystemExit(128 + number)


def main(out: str, source: str, parent: str) -> int:
    """Grade one submission; the exit status is 0 when there is a result."""
    signal.signal(signal.SIGTERM, _stop)
    end_with_parent()
    if os.getppid() != int(parent):  # it ended before it could be watched
        return 1
    with readable():
        grade_one(Plan.load(Path(out)), source_of(Path(source)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
