"""Grade many submissions, each in a process of its own: on this machine, or on Dask's workers.

That process is this module run as a program, `labkit.grading.classroom OUT FOLDER STUDENT PID`:
whatever happens in it, no other submission notices. It ends with the process that started it, and
then takes everything that it started along.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from labkit.chain import end_with_parent
from labkit.errors import LabError
from labkit.grading.find_submissions import Source, find_submissions, safe_name
from labkit.grading.grade import HOME, WORK, Submission, reference_notebooks, scored
from labkit.grading.limits import enter_grader
from labkit.grading.measure.images import GradingImages
from labkit.grading.results import FAILED, REJECTED, Result, ResultError, read_result, write_result
from labkit.grading.session import Session, locked, own_cores, require_runtime
from labkit.grading.submission import take_in_time
from labkit.grading.workdir import make_home, readable, remove
from labkit.workspace import CorruptFile, read_json, write_json

PROGRESS = ".progress"
POLL_S = 0.25
STOP_GRACE_S = 15.0
LOCAL_CLUSTER = "local"
STOP = ".stop"  # tells workers on other machines that a grading has been given up
DASK_RETRIES = 2  # of a submission whose Dask worker was lost


def source_of(folder: Path, student: str) -> Source:
    """Return a student's submission in a folder, as `find_submissions` names it."""
    return next(s for s in find_submissions(folder).sources if s.student == student)


def grade_one(session: Session, source: Source) -> Result:
    """Grade a submission and write its result; a fault of the grader is a result too."""
    progress = session.out / PROGRESS / f"{safe_name(source.student)}.json"
    begin = time.time()

    def show(step: str) -> None:
        write_json(progress, {"student": source.student, "step": step, "since": begin})

    try:
        require_runtime(session.runtime)  # a worker on another machine may lack it
        images = GradingImages.choose(session.profile, session.seed)
        submission = Submission(session, images, source, show)
        try:
            result = submission.grade()
        finally:
            remove(submission.work)
    except Exception as error:
        traceback.print_exc()
        result = failed(session, source.student, f"{type(error).__name__}: {error}")
    finally:
        progress.unlink(missing_ok=True)
    write_result(session.result_path(source.student), result)
    return result


def failed(session: Session, student: str, reason: str) -> Result:
    """Return the record of a submission on which the grader itself failed."""
    empty = Result(
        student, FAILED, session.profile, reason, seed=session.seed, isolation=session.isolation
    )
    return scored(empty, session.rubric)


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave in order: every open sandbox and folder is closed on the way out."""
    raise SystemExit(128 + number)


def main(out: str, folder: str, student: str, parent: str) -> int:
    """Grade one submission; the exit status is 0 when there is a result."""
    signal.signal(signal.SIGTERM, _stop)
    end_with_parent()
    if os.getppid() != int(parent):  # it ended before it could be watched
        return 1
    session = Session.load(Path(out))
    cores = own_cores(session.out, session.workers)  # held until this process ends
    with readable():
        grade_one(session, source_of(Path(folder), student))
    del cores
    return 0


class DaskUnavailable(LabError):
    """The package distributed is not installed, or its scheduler does not answer."""


@dataclass(frozen=True)
class Event:
    """Something that happened, for whoever shows progress.

    Attributes:
        kind: `kept` (graded earlier), `graded`, or `running`, which comes several times a second.
        done: Submissions that have a result.
        total: All submissions.
        result: With `kept` and `graded`.
        running: With `running`: student → (step, seconds since it began).
    """

    kind: str
    done: int
    total: int
    result: Result | None = None
    running: dict[str, tuple[str, float]] | None = None


def grade_class(
    session: Session,
    sources: Sequence[Source],
    workers: int = 1,
    scheduler: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> list[Result]:
    """Grade every submission that has no result yet.

    Args:
        session: The grading, begun.
        sources: The submissions.
        workers: How many are graded at once on this machine.
        scheduler: Address of a Dask scheduler, or `local` for a cluster on this machine. Its
            workers must see the grading's folder, the submissions and CIFAR-10 under the same
            paths.
        on_event: Called for every result, and several times a second.

    Returns:
        The results of all submissions, in the order of `sources`.

    Raises:
        GradingRuns: another process grades into the same folder.
        DaskUnavailable: a scheduler is asked for and cannot be used.
    """
    with locked(session.out):
        enter_grader()
        _clean(session.out)  # what a grading that was killed has left
        with readable():
            make_home(session.out / HOME)
        done: dict[str, Result] = {}
        for source in sources:
            if earlier := earlier_result(session, source):
                done[source.student] = earlier
                on_event(Event("kept", len(done), len(sources), earlier))
        open_sources = [source for source in sources if source.student not in done]
        pool = _dask(scheduler, workers, session.out) if scheduler else _processes(workers)
        with pool as submit:
            # Absolute: workers on other machines are in another folder.
            futures = {
                submit(
                    str(session.out.absolute()), str(source.path.absolute().parent), source.student
                ): source
                for source in open_sources
            }
            for source in _as_completed(futures, session, len(done), len(sources), on_event):
                result = read_result(session.result_path(source.student))
                done[source.student] = result
                on_event(Event("graded", len(done), len(sources), result))
        _clean(session.out)
    return [done[source.student] for source in sources]


def _clean(out: Path) -> None:
    """Remove everything of a grading that is not a result of it."""
    for name in (WORK, PROGRESS, HOME):
        remove(out / name)
    (out / STOP).unlink(missing_ok=True)


def earlier_result(session: Session, source: Source) -> Result | None:
    """Return the result of the very same submission from an earlier run; None to grade it.

    What its names say, and what is to be known about it, may have changed all the same.
    """
    try:
        result = read_result(session.result_path(source.student))
        if result.status == FAILED or (result.profile, result.seed) != (
            session.profile,
            session.seed,
        ):
            return None
        with tempfile.TemporaryDirectory() as folder:
            staging = Path(folder) / "submission"
            now = take_in_time(source, staging, reference_notebooks())
    except (OSError, CorruptFile, ResultError):  # of the submission, grading it will tell
        return None
    if now.sha256 != result.submission_sha256:
        return None
    reason = now.reason if now.status == REJECTED else result.reason
    fresh = replace(result, handed_in=source.handed_in, notes=now.notes, reason=reason)
    fresh = scored(fresh, session.rubric)
    if fresh != result:
        write_result(session.result_path(source.student), fresh)
    return fresh


def run_worker(out: str, folder: str, student: str) -> str:
    """Grade one submission in a child process; called here, or by a Dask worker.

    Returns:
        The student's name: results travel as files.
    """
    enter_grader()  # a Dask worker has been started by somebody else
    session = Session.load(Path(out))
    log = session.out / "logs" / f"{safe_name(student)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "labkit.grading.classroom"]
    command += [out, folder, student, str(os.getpid())]
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            status = _wait(child, session.out)
        finally:
            _end(child)
    if status != 0 and not given_up(session.out):
        reason = f"the grader ended with status {status}; see logs/{log.name}"
        write_result(session.result_path(student), failed(session, student, reason))
    return student


STOPPING = threading.Event()  # set when this process gives up: its children are ended


def _wait(child: "subprocess.Popen[bytes]", out: Path) -> int | None:
    """Wait for a child, or until the grading is given up."""
    while child.poll() is None and not given_up(out):
        time.sleep(POLL_S / 2)
    return child.returncode


def given_up(out: Path) -> bool:
    """Say whether whoever started this grading has stopped it, here or on another machine."""
    return STOPPING.is_set() or (out / STOP).exists()


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child that still runs; it closes its sandboxes on the way."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _processes(workers: int) -> Iterator[Callable[..., "Future[str]"]]:
    """Yield what starts a worker process, at most so many at once."""
    STOPPING.clear()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield lambda *task: pool.submit(run_worker, *task)
    except BaseException:  # also Ctrl-C: nothing that was started outlives this
        STOPPING.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


@contextmanager
def _dask(scheduler: str, workers: int, out: Path) -> Iterator[Callable[..., Any]]:
    """Yield what submits a worker process to a Dask cluster.

    Raises:
        DaskUnavailable: the package is missing, or the scheduler does not answer.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise DaskUnavailable(
            "--scheduler needs the package distributed: pip install 'labkit[dask]'"
        ) from None
    with ExitStack() as stack:
        try:
            address: Any = scheduler
            if scheduler == LOCAL_CLUSTER:
                address = stack.enter_context(
                    LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        dashboard_address=None,
                        host="127.0.0.1",
                    )
                )
            client = stack.enter_context(Client(address, timeout=10))
        except (OSError, ValueError) as error:
            raise DaskUnavailable(f"the scheduler {scheduler} does not answer: {error}") from error
        try:
            yield lambda *task: client.submit(run_worker, *task, pure=False, retries=DASK_RETRIES)
        except BaseException:
            (out / STOP).touch()
            raise


def _as_completed(
    futures: dict[Any, Source],
    session: Session,
    done: int,
    total: int,
    on_event: Callable[[Event], None],
) -> Iterator[Source]:
    """Yield submissions as they are graded; report what runs meanwhile."""
    waiting = dict(futures)
    while waiting:
        finished = [future for future in waiting if future.done()]
        for future in finished:
            source = waiting.pop(future)
            _settle(future, session, source)
            done += 1
            yield source
        if not finished:
            on_event(Event("running", done, total, running=_running(session)))
            time.sleep(POLL_S)


def _settle(future: Any, session: Session, source: Source) -> None:
    """See to it that a finished task has left a result."""
    try:
        future.result()
    except Exception as error:  # of a thread, or whatever Dask raises for a lost worker
        reason = f"its worker was lost ({type(error).__name__}: {error})"
        write_result(
            session.result_path(source.student), failed(session, source.student, reason[:500])
        )


def _running(session: Session) -> dict[str, tuple[str, float]]:
    """Return what each worker has last said."""
    running = {}
    for path in sorted((session.out / PROGRESS).glob("*.json")):
        try:
            said = read_json(path)
            running[said["student"]] = (said["step"], time.time() - said["since"])
        except (OSError, CorruptFile):  # it has just been replaced or removed
            continue
    return running


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
