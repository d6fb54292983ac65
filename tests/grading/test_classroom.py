"""Many submissions: order, resuming, workers that fail. The workers here are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tiny import write_notebook

from labkit.grading import classroom, submission
from labkit.grading.classroom import Event, grade_class, run_worker
from labkit.grading.find_submissions import Source, find_submissions
from labkit.grading.grade import reference_notebooks, scored
from labkit.grading.publish import mark_copies
from labkit.grading.results import (
    FAILED,
    GRADED,
    REJECTED,
    Result,
    StageRecord,
    read_result,
    write_result,
)
from labkit.grading.session import GradingRuns, Session, locked
from labkit.grading.submission import Intake, take_in


@pytest.fixture
def session(tmp_path: Path) -> Session:
    for student in ("cleo", "ada", "bea"):
        write_notebook(tmp_path / "class" / student, "01_data", f"print({student!r})")
    return Session.begin(Session(tmp_path / "grades", "smoke", tmp_path / "run"), None, False)


@pytest.fixture
def sources(session: Session, tmp_path: Path) -> list[Source]:
    return find_submissions(tmp_path / "class").sources


@pytest.fixture(autouse=True)
def no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classroom, "make_home", lambda folder: None)
    monkeypatch.setattr(classroom, "POLL_S", 0.02)


def pretend(session: Session, calls: list[str], status: str = GRADED) -> Callable[..., str]:
    """Return a worker that writes a result without running anything."""

    def work(out: str, source: str, student: str) -> str:
        calls.append(student)
        digest = take_in(
            Source(student, {"": Path(source) / student}),
            Path(out) / f"staged-{student}-{time.monotonic_ns()}",
            reference_notebooks(),
        ).sha256
        result = Result(student, status, "smoke", seed=session.seed, submission_sha256=digest)
        write_result(session.result_path(student), scored(result, session.rubric))
        return student

    return work


def test_results_come_in_the_order_of_the_class(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    events: list[Event] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls))
    results = grade_class(session, sources, workers=2, on_event=events.append)
    assert [result.student for result in results] == ["ada", "bea", "cleo"]
    assert sorted(calls) == ["ada", "bea", "cleo"]
    finished = [event for event in events if event.kind == "graded"]
    assert [event.done for event in finished] == [1, 2, 3]
    assert {event.total for event in events} == {3}


def test_an_empty_class_is_graded_at_once(session: Session) -> None:
    assert grade_class(session, []) == []


def test_what_is_graded_is_kept_and_what_changed_is_graded_again(
    session: Session, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls))
    grade_class(session, sources)
    write_notebook(tmp_path / "class" / "bea", "01_data", "print('handed in again')")
    calls.clear()
    kept: list[str] = []

    def note(event: Event) -> None:
        if event.kind == "kept" and event.result:
            kept.append(event.result.student)

    grade_class(session, sources, on_event=note)
    assert (calls, kept) == (["bea"], ["ada", "cleo"])


def test_what_names_say_is_as_fresh_as_the_files(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files under the names of another download, and somebody with the same name."""
    place = tmp_path / "canvas"
    write_notebook(place, "01_data", "1").rename(place / "Ada_LATE_1234_777_01_data.ipynb")
    calls: list[str] = []

    def work(out: str, folder: str, student: str) -> str:
        calls.append(student)
        source = classroom.source_of(Path(folder), student)
        with TemporaryDirectory() as staging:
            digest = take_in(source, Path(staging), reference_notebooks()).sha256
        result = Result(student, GRADED, "smoke", seed=session.seed, submission_sha256=digest,
                        handed_in=source.handed_in)  # fmt: skip
        write_result(session.result_path(student), scored(result, session.rubric))
        return student

    monkeypatch.setattr(classroom, "run_worker", work)
    (first,) = grade_class(session, find_submissions(place).sources)
    assert (first.late, first.notes) == (True, [])
    (place / "Ada_LATE_1234_777_01_data.ipynb").rename(place / "Ada_1234_888_01_data.ipynb")
    write_notebook(place / "ada", "01_data", "2")
    calls.clear()
    upper, _ = grade_class(session, find_submissions(place).sources)
    assert calls == ["ada"]
    assert (upper.handed_in.prefix, upper.late) == ("Ada_1234_888_", False)
    assert "looks like it" in " ".join(upper.notes)
    assert read_result(session.result_path("Ada")) == upper


def test_reading_again_has_a_time_limit_too(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls))
    grade_class(session, sources)

    def endless(*arguments: object) -> None:
        while True:
            pass

    monkeypatch.setattr(submission, "take_in", endless)
    monkeypatch.setattr(submission.take_in_time, "__defaults__", (0.2,))
    calls.clear()
    begin = time.monotonic()
    grade_class(session, sources)
    assert time.monotonic() - begin < 20
    assert sorted(calls) == ["ada", "bea", "cleo"], "grading says what is wrong with it"


def test_why_a_submission_is_rejected_is_as_fresh_as_the_files(
    session: Session, tmp_path: Path
) -> None:
    old = Result("dora", REJECTED, "smoke", reason="it was damaged", seed=session.seed)
    write_result(session.result_path("dora"), old)
    (tmp_path / "empty").mkdir()
    kept = classroom.earlier_result(session, Source("dora", {"": tmp_path / "empty"}))
    assert kept is not None and "holds no file" in kept.reason
    assert read_result(session.result_path("dora")) == kept


@pytest.mark.parametrize("change", [{"profile": "full"}, {"seed": 7}], ids=str)
def test_a_result_of_other_settings_is_not_kept(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls))
    grade_class(session, sources)
    result = read_result(session.result_path("bea"))
    write_result(session.result_path("bea"), replace(result, **change))
    calls.clear()
    grade_class(session, sources)
    assert calls == ["bea"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 0}', '{"schema": 1, "stages": 3}'])
def test_a_result_that_cannot_be_read_is_made_again(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls))
    grade_class(session, sources)
    session.result_path("cleo").write_text(content)
    calls.clear()
    results = grade_class(session, sources)
    assert calls == ["cleo"]
    assert [result.status for result in results] == 3 * [GRADED]


def test_a_submission_that_cannot_be_read_again_stops_nobody(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls))
    grade_class(session, sources)

    def broken(source: Source, *rest: object) -> Intake:
        if source.student == "ada":
            raise OSError(5, "Input/output error")
        return take_in(source, *rest)  # type: ignore[arg-type]

    calls.clear()
    monkeypatch.setattr(classroom, "take_in_time", broken)
    assert len(grade_class(session, sources)) == 3
    assert calls == ["ada"]


def test_workers_are_told_absolute_paths(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    work = pretend(session, [])

    def note(out: str, source: str, student: str) -> str:
        told.append((out, source))
        return work(out, source, student)

    monkeypatch.setattr(classroom, "run_worker", note)
    monkeypatch.chdir(tmp_path)
    sources = find_submissions(Path("class")).sources
    grade_class(replace(session, out=Path("grades")), sources)
    folder = str(tmp_path / "class")
    assert told == [(str(session.out), folder)] * 3


def test_more_workers_than_submissions_are_no_trouble(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classroom, "run_worker", pretend(session, []))
    assert len(grade_class(session, sources, workers=40)) == 3


def test_never_more_at_once_than_asked_for(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, lock = pretend(session, []), threading.Lock()
    now, most = 0, 0

    def slow(*task: str) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return work(*task)

    monkeypatch.setattr(classroom, "run_worker", slow)
    grade_class(session, sources, workers=2)
    assert most == 2


def test_what_a_killed_grading_left_is_cleared_away(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".work", ".progress"):
        (session.out / name / "ada").mkdir(parents=True)
        (session.out / name / "ada").chmod(0)
    (session.out / ".stop").touch()
    monkeypatch.setattr(classroom, "run_worker", pretend(session, []))
    grade_class(session, sources)
    assert not {".work", ".progress", ".stop"} & {path.name for path in session.out.iterdir()}


def test_only_one_grader_at_a_time(session: Session, sources: list[Source]) -> None:
    with locked(session.out), pytest.raises(GradingRuns, match="another process grades into"):
        grade_class(session, sources)


def test_progress_that_is_just_being_written_is_skipped(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = pretend(session, [])
    seen: list[dict[str, tuple[str, float]]] = []

    def slow(*task: str) -> str:
        folder = session.out / ".progress"
        folder.mkdir(exist_ok=True)
        (folder / ".ada-x.json").write_text("")
        said = {"student": task[2], "step": "02_train", "since": time.time()}
        (folder / f"{task[2]}.json").write_text(json.dumps(said))
        time.sleep(0.4)
        return work(*task)

    monkeypatch.setattr(classroom, "run_worker", slow)
    grade_class(session, sources[:1], on_event=lambda event: seen.append(event.running or {}))
    assert any(running.get("ada", ("", 0))[0] == "02_train" for running in seen)


def test_where_the_grader_failed_it_tries_again(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(classroom, "run_worker", pretend(session, calls, FAILED))
    grade_class(session, sources)
    grade_class(session, sources)
    assert sorted(calls) == sorted(2 * ["ada", "bea", "cleo"])


def test_a_worker_that_raises_leaves_a_record_and_stops_nobody(
    session: Session, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = pretend(session, [])

    def sometimes(out: str, source: str, student: str) -> str:
        if student == "bea":
            raise OSError("no space left")
        return good(out, source, student)

    monkeypatch.setattr(classroom, "run_worker", sometimes)
    statuses = {r.student: (r.status, r.reason) for r in grade_class(session, sources)}
    assert statuses["ada"][0] == statuses["cleo"][0] == GRADED
    assert statuses["bea"][0] == FAILED
    assert "no space left" in statuses["bea"][1]


def test_a_worker_process_that_dies_leaves_a_record(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def dies(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(classroom.subprocess, "Popen", dies)
    run_worker(str(session.out), str(tmp_path / "class" / "ada"), "ada")
    result = read_result(session.result_path("ada"))
    assert result.status == FAILED
    assert "status -9" in result.reason
    assert result.maximum == 100 and result.points == 0


def test_giving_up_ends_the_workers(
    session: Session, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives as an exception in the loop that waits."""
    real = subprocess.Popen
    children: list[subprocess.Popen[bytes]] = []

    def sleeps(command: list[str], **options: object) -> object:
        child = real([sys.executable, "-c", "import time; time.sleep(60)"], **options)  # type: ignore[call-overload]
        children.append(child)
        return child

    def interrupt(event: Event) -> None:
        if event.kind == "running" and children:
            raise KeyboardInterrupt

    monkeypatch.setattr(classroom.subprocess, "Popen", sleeps)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        grade_class(session, sources, workers=2, on_event=interrupt)
    assert time.monotonic() - begin < 20
    assert children and all(child.poll() == -signal.SIGTERM for child in children)
    assert not list((session.out / "results").glob("*.json")), "nobody is failed for it"


def test_a_worker_ends_with_whoever_started_it(session: Session, tmp_path: Path) -> None:
    """Started by a process that has ended already, it does not begin."""
    command = [sys.executable, "-m", "labkit.grading.classroom", str(session.out)]
    command += [str(tmp_path / "class" / "ada"), str(os.getpid() + 100_000)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 1
    assert not session.result_path("ada").exists()


def with_files(student: str, **artifacts: str) -> Result:
    record = StageRecord("02_train", "ok", artifacts=artifacts)
    return Result(student, GRADED, "smoke", stages=[record])


def test_equal_files_are_named_on_both_sides() -> None:
    marked = mark_copies(
        [
            with_files("ada", **{"checkpoint.pt": "aa", "splits.json": "s"}),
            with_files("bea", **{"checkpoint.pt": "aa", "splits.json": "s"}),
            with_files("cleo", **{"checkpoint.pt": "bb", "splits.json": "s"}),
        ]
    )
    assert [result.same_as for result in marked] == [
        {"checkpoint.pt": ["bea"]},
        {"checkpoint.pt": ["ada"]},
        {},
    ]
    assert [result.points for result in marked] == [0, 0, 0]
