"""Grading on Dask: a real scheduler, two real workers, one of them killed while it grades."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import psutil
import pytest
from tiny import reference_run, write_notebook

from labkit.grading.classroom import DaskUnavailable, Event, grade_class
from labkit.grading.find_submissions import find_submissions
from labkit.grading.results import GRADED
from labkit.grading.session import Session
from labkit.server.ports import free_port

pytestmark = [pytest.mark.data, pytest.mark.timeout(240)]
SLOW = "import time\nfor step in range(40):\n    time.sleep(0.1)"


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = start(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
        "--no-dashboard", cwd=tmp_path,
    )  # fmt: skip
    workers = [
        start(
            "distributed.cli.dask_worker",
            address,
            "--host",
            "127.0.0.1",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--name",
            name,
            cwd=tmp_path,
        )
        for name in ("one", "two")
    ]
    try:
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.terminate()
        for process in (*workers, scheduler):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # a busy machine
                process.kill()
                process.wait()


def make_session(tmp_path: Path, students: list[str]) -> Session:
    for student in students:
        write_notebook(tmp_path / "class" / student, "01_data", SLOW)
    session = Session(tmp_path / "grades", "smoke", reference_run(tmp_path))
    return Session.begin(session, None, resume=False)


def command_of(process: psutil.Process) -> str:
    """The command line of a process; empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_the_submissions_of_a_killed_worker_are_graded_by_the_other(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, (victim, _) = cluster
    students = ["ada", "bea", "cleo", "dora"]
    session = make_session(tmp_path, students)
    sources = find_submissions(tmp_path / "class").sources
    graders: list[psutil.Process] = []
    finished: list[str] = []

    def kill_one(event: Event) -> None:
        if event.result is not None:
            finished.append(event.result.student)
        if not graders and victim.poll() is None:
            found = psutil.Process(victim.pid).children(recursive=True)
            if any("bwrap" in command_of(process) for process in found):
                graders.extend(found)
                victim.send_signal(signal.SIGKILL)

    results = grade_class(session, sources, scheduler=address, on_event=kill_one)
    assert graders, "the worker was never seen to grade"
    assert victim.wait(10) == -signal.SIGKILL
    assert [result.student for result in results] == students
    assert all(result.status == GRADED for result in results), [r.reason for r in results]
    assert sorted(finished) == students, "each is reported once"
    _, alive = psutil.wait_procs(graders, timeout=20)
    assert alive == [], "what the killed worker had started ends with it"
    assert not (session.out / ".work").exists()


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["ada"])
    sources = find_submissions(tmp_path / "class").sources
    begin = time.monotonic()
    with pytest.raises(DaskUnavailable, match="does not answer"):
        grade_class(session, sources, scheduler=f"tcp://127.0.0.1:{free_port()}")
    assert time.monotonic() - begin < 30


def test_a_cluster_that_cannot_be_used_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = []

    def refuse(cluster: distributed.LocalCluster, **options: object) -> None:
        clusters.append(cluster)
        raise OSError("no answer")

    monkeypatch.setattr(distributed, "Client", refuse)
    session = make_session(tmp_path, ["ada"])
    sources = find_submissions(tmp_path / "class").sources
    with pytest.raises(DaskUnavailable, match="no answer"):
        grade_class(session, sources, workers=1, scheduler="local")
    assert [cluster.status.name for cluster in clusters] == ["closed"]


def test_a_cluster_on_this_machine(tmp_path: Path) -> None:
    session = make_session(tmp_path, ["ada"])
    sources = find_submissions(tmp_path / "class").sources
    (result,) = grade_class(session, sources, workers=1, scheduler="local")
    assert result.status == GRADED, result.reason
