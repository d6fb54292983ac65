"""The settings of a grading: written down once, gone on with only as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import LabError, UsageError
from labkit.grading import session as session_module
from labkit.grading.results import GRADED, Result, write_result
from labkit.grading.rubric import RUBRIC, load_rubric
from labkit.grading.session import (
    GradingRuns,
    Session,
    SessionError,
    locked,
    own_cores,
    require_runtime,
    runtime_for,
    seed_for,
)


def begun(tmp_path: Path) -> Session:
    session = Session.begin(
        Session(tmp_path / "grades", "smoke", tmp_path / "run", seed=3), None, False
    )
    write_result(session.result_path("ada"), Result("ada", GRADED, "smoke"))
    return session


def test_a_session_is_read_as_it_was_written(tmp_path: Path) -> None:
    session = begun(tmp_path)
    assert Session.load(session.out) == session
    assert (session.out / "rubric.toml").read_bytes() == RUBRIC.read_bytes()


def test_results_that_are_there_are_not_graded_over(tmp_path: Path) -> None:
    session = begun(tmp_path)
    with pytest.raises(SessionError, match=r"holds 1 results.*--resume"):
        Session.begin(session, None, resume=False)
    assert Session.begin(session, None, resume=True) == session


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"profile": "standard"}, {"isolation": "none"}, {"runtime": "native"}],
    ids=str,
)
def test_a_grading_goes_on_with_its_own_settings_only(
    tmp_path: Path, change: dict[str, object]
) -> None:
    session = begun(tmp_path)
    with pytest.raises(SessionError, match=next(iter(change))):
        Session.begin(replace(session, **change), None, resume=True)  # type: ignore[arg-type]
    assert Session.load(session.out) == session, "what is there is untouched"


@pytest.mark.parametrize(
    ("built", "only_here", "runtime"),
    [(True, True, "native"), (True, False, "stand-in"), (False, True, "stand-in")],
)
def test_native_serves_where_every_worker_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: bool, only_here: bool, runtime: str
) -> None:
    monkeypatch.setattr(session_module, "built_backends", lambda: tmp_path if built else None)
    chosen = "native" if built else "stand-in"
    monkeypatch.setattr(session_module, "choose_runtime", lambda: chosen)
    assert runtime_for(tmp_path / "new", only_here) == runtime
    earlier = begun(tmp_path)
    assert runtime_for(earlier.out, only_here) == earlier.runtime == "stand-in", "it goes on so"
    if built:
        require_runtime("native")
    else:
        with pytest.raises(SessionError, match=r"none are built.*triton build"):
            require_runtime("native")


def test_a_seed_is_drawn_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same class gets the same grades twice, and nobody knows the inputs beforehand."""
    seeds = []
    for name in ("one", "two"):
        monkeypatch.setattr(session_module, "project_root", lambda name=name: tmp_path / name)
        (tmp_path / name).mkdir()
        seeds.append(seed_for(tmp_path / "new"))
        assert seed_for(tmp_path / "another") == seeds[-1]
        kept = tmp_path / name / "runs" / "grading-seed.json"
        assert kept.stat().st_mode & 0o077 == 0
    assert seeds[0] != seeds[1], "once in two thousand million runs"
    assert seed_for(begun(tmp_path).out) == 3, "a grading goes on with its own"


@pytest.mark.parametrize("content", ['"5"', "-1", "null", str(2**63)])
def test_a_damaged_seed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(session_module, "project_root", lambda: tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "grading-seed.json").write_text(content)
    with pytest.raises(SessionError, match="holds no seed: delete it"):
        seed_for(tmp_path / "new")


def test_another_rubric_is_for_regrade(tmp_path: Path) -> None:
    session = begun(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(RUBRIC.read_text().replace("points = 8", "points = 9"))
    with pytest.raises(SessionError, match="labkit regrade"):
        Session.begin(session, other, resume=True)


def test_it_goes_on_with_the_rubric_it_was_begun_with(tmp_path: Path) -> None:
    """Without --rubric, a resumed grading keeps its own, also after a regrade with another."""
    own = tmp_path / "own.toml"
    own.write_text(RUBRIC.read_text().replace("points = 8", "points = 9"))
    session = Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), own, False)
    write_result(session.result_path("ada"), Result("ada", GRADED, "smoke"))
    again = Session.begin(Session(session.out, "smoke", tmp_path), None, resume=True)
    assert again.rubric.sha256 == load_rubric(own).sha256
    assert Session.begin(session, session.out / "rubric.toml", resume=True).rubric == again.rubric


def test_what_was_begun_without_any_result_may_begin_anew(tmp_path: Path) -> None:
    session = Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), None, False)
    (session.out / "results").mkdir()
    other = Session.begin(replace(session, profile="full", seed=9), None, False)
    assert Session.load(session.out) == other


def test_results_without_their_settings_are_left_alone(tmp_path: Path) -> None:
    session = begun(tmp_path)
    (session.out / "grading.json").unlink()
    with pytest.raises(SessionError, match="holds 1 results"):
        Session.begin(session, None, resume=False)
    with pytest.raises(SessionError, match="is no grading"):
        Session.begin(session, None, resume=True)


def test_a_second_grader_cannot_change_the_settings_of_the_first(tmp_path: Path) -> None:
    """The first one's workers read them again for every submission."""
    session = Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), None, False)
    with locked(session.out), pytest.raises(GradingRuns):
        Session.begin(replace(session, profile="full"), None, False)
    assert Session.load(session.out).profile == "smoke"


def test_a_file_is_no_folder_for_grades(tmp_path: Path) -> None:
    (tmp_path / "grades").write_text("mine")
    with pytest.raises(SessionError, match="is no folder"):
        Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), None, False)
    assert (tmp_path / "grades").read_text() == "mine"


def test_half_written_results_are_no_results(tmp_path: Path) -> None:
    session = begun(tmp_path)
    (session.out / "results" / ".ada-x7.json").write_text("")  # of a process that was killed
    assert [result.student for result in session.results()] == ["ada"]


def test_results_come_by_name_whatever_their_files_are_called(tmp_path: Path) -> None:
    session = begun(tmp_path)
    names = ["ünal", "con", "o'brien", "x" * 250, "李雷", "a.b", "{}", "results"]
    for name in names:
        write_result(session.result_path(name), Result(name, GRADED, "smoke"))
    found = [result.student for result in session.results()]
    assert found == sorted([*names, "ada"])
    assert len({session.evidence(name) for name in found}) == len(found)
    for name in found:
        assert session.result_path(name).parent == session.out / "results"
        assert session.evidence(name).parent == session.out / "evidence"
        assert session.result_path(name).name.isascii()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "7", '"x"', "{}", '{"reference": 3}', '{"reference": "x", "a": 1}'],
)
def test_damaged_settings_are_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "grading.json").write_text(content)
    with pytest.raises(LabError):
        Session.load(tmp_path)


def test_a_folder_that_is_no_grading_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="is no grading"):
        Session.load(tmp_path)
    (tmp_path / "grading.json").write_text('{"profile": "smoke"}')
    with pytest.raises(SessionError, match="damaged"):
        Session.load(tmp_path)


def test_an_unknown_profile_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Session.begin(Session(tmp_path / "grades", "huge", tmp_path), None, False)
    assert not (tmp_path / "grades").exists()


def test_the_memory_cap_of_the_machine_gives_way_to_the_rubrics_own(tmp_path: Path) -> None:
    session = replace(begun(tmp_path), memory_mib=1_234)
    assert session.rubric.limits_for("smoke").memory_mib == 1_234
    own = tmp_path / "own.toml"
    own.write_text(f"{RUBRIC.read_text()}\n[limits]\nmemory_mib = 777\n")
    other = Session(tmp_path / "more", "smoke", tmp_path, memory_mib=1_234)
    assert Session.begin(other, own, False).rubric.limits_for("smoke").memory_mib == 777


def test_a_folder_that_was_there_is_private_before_the_first_result(tmp_path: Path) -> None:
    out = tmp_path / "grades"
    out.mkdir(mode=0o755)
    session = begun(tmp_path)
    assert (session.out, out.stat().st_mode & 0o777) == (out, 0o700)
    out.chmod(0o750)  # for a colleague
    write_result(session.result_path("ada"), Result("ada", GRADED, "smoke"))
    with locked(out):
        assert out.stat().st_mode & 0o777 == 0o750


def test_only_one_grader_at_a_time(tmp_path: Path) -> None:
    second = locked(tmp_path)
    with locked(tmp_path), pytest.raises(GradingRuns, match="another process"):
        second.__enter__()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("workers", "cores", "expected"),
    [
        (1, {0, 1}, [None]),
        (2, {0, 1}, [[0], [1], None]),
        (2, {2, 3, 5, 7}, [[2, 5], [3, 7]]),
        (3, {0, 1}, [None]),
    ],
)
def test_each_of_several_workers_has_cores_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    cores: set[int],
    expected: list[list[int] | None],
) -> None:
    taken: list[list[int]] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)
    monkeypatch.setattr("os.sched_setaffinity", lambda process, own: taken.append(own))
    held = [own_cores(tmp_path, workers) for _ in expected]
    assert [stream is not None for stream in held] == [own is not None for own in expected]
    assert taken == [own for own in expected if own is not None]
    if taken:
        assert held[0] is not None
        held[0].close()  # a worker has ended: the next one takes its cores
        assert own_cores(tmp_path, workers) is not None
        assert taken[-1] == taken[0]
