"""What is given back: results with their copies marked, a page each, the class, the gradebooks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from factory import make_result

from labkit.grading.publish import mark_copies, publish
from labkit.grading.results import FAILED, GRADED, REJECTED, Result, StageRecord, read_result
from labkit.grading.session import GradingRuns, Session, locked
from labkit.workspace import write_json


def with_files(student: str, *stages: dict[str, str]) -> Result:
    """A result whose stages have left these files: name → SHA-256."""
    records = [StageRecord(f"0{n}", "ok", artifacts=files) for n, files in enumerate(stages, 1)]
    return Result(student, GRADED, "smoke", stages=records)


def same_as(*results: Result) -> dict[str, dict[str, list[str]]]:
    marked = mark_copies(results)
    assert [result.student for result in marked] == [result.student for result in results]
    return {result.student: result.same_as for result in marked}


# ---- equal files


def test_every_owner_of_a_file_is_told_of_all_others_by_name() -> None:
    found = same_as(*(with_files(name, {"checkpoint.pt": "aa"}) for name in ("cleo", "ada", "bea")))
    assert found == {
        "cleo": {"checkpoint.pt": ["ada", "bea"]},
        "ada": {"checkpoint.pt": ["bea", "cleo"]},
        "bea": {"checkpoint.pt": ["ada", "cleo"]},
    }


def test_a_file_is_compared_with_those_of_its_own_name() -> None:
    found = same_as(
        with_files("ada", {"model.pt": "aa"}, {"model.onnx": "bb"}),
        with_files("bea", {"model.pt": "bb"}, {"model.onnx": "aa"}),
    )
    assert found == {"ada": {}, "bea": {}}


def test_two_equal_files_of_one_student_are_no_copy() -> None:
    assert same_as(with_files("ada", {"model.pt": "aa"}, {"model.pt": "aa"})) == {"ada": {}}


@pytest.mark.parametrize(
    "name", ["splits.json", "configure.json", "model_repository/cifar10_onnx/config.pbtxt"]
)
def test_what_is_equal_by_construction_is_not_reported(name: str) -> None:
    files = {name: "aa"}
    assert same_as(with_files("ada", files), with_files("bea", files)) == {"ada": {}, "bea": {}}


def test_files_that_are_the_reference_runs_own_are_not_reported(tmp_path: Path) -> None:
    files = [{"model.onnx": "reference", "checkpoint.pt": "aa"}]
    found = mark_copies([with_files("ada", *files), with_files("bea", *files)], {"reference"})
    assert [result.same_as for result in found] == [
        {"checkpoint.pt": ["bea"]}, {"checkpoint.pt": ["ada"]},
    ]  # fmt: skip
    run = tmp_path / "run"
    write_json(run / "manifest.json", {"model.onnx": {"sha256": "reference"}})
    session = Session.begin(Session(tmp_path / "grades", "smoke", run), None, False)
    publish(session, found)
    assert "model.onnx" not in (session.out / "class.html").read_text()
    assert read_result(session.result_path("ada")).same_as == {"checkpoint.pt": ["bea"]}


def test_marks_of_an_earlier_time_do_not_stay() -> None:
    before = replace(with_files("ada", {"model.pt": "aa"}), same_as={"model.pt": ["bea"]})
    assert same_as(before, with_files("bea", {"model.pt": "bb"})) == {"ada": {}, "bea": {}}


def test_marks_change_nothing_else() -> None:
    one = make_result("ada", 0.5)
    [marked] = mark_copies([one])
    assert replace(marked, same_as={}) == replace(one, same_as={})
    assert mark_copies([]) == []


# ---- what is written


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), None, False)


def test_everybody_gets_a_page_and_the_class_its_own(session: Session) -> None:
    results = [
        make_result("ada"),
        make_result("bea", 0.25),
        make_result("cleo", 0, status=REJECTED, reason="no notebook", stages=[], measurements={}),
        make_result("dora", 0, status=FAILED, reason="the disk was full", stages=[]),
    ]
    paths = publish(session, results)
    names = [path.name for path in paths]
    assert names == ["class.html", "gradebook.csv", "canvas.csv", "moodle.csv"]
    assert all(path.parent == session.out and path.stat().st_size > 50 for path in paths)
    for result in results:
        page = session.out / "feedback" / result.student / "index.html"
        assert result.student in page.read_text()
    gradebook = (session.out / "gradebook.csv").read_text()
    assert [line.split(",")[0] for line in gradebook.splitlines()[1:]] == [
        "ada", "bea", "cleo", "dora",
    ]  # fmt: skip


def test_nothing_is_written_while_another_grader_does(session: Session) -> None:
    with locked(session.out), pytest.raises(GradingRuns):
        publish(session, [make_result("ada")])
    assert not (session.out / "feedback").exists()


def test_marks_are_kept_with_the_results(session: Session) -> None:
    publish(session, [make_result("ada"), make_result("bea")])
    for student, other in (("ada", "bea"), ("bea", "ada")):
        kept = read_result(session.result_path(student))
        assert kept.same_as["checkpoint.pt"] == [other]
        assert "splits.json" not in kept.same_as


def test_the_same_results_give_the_same_gradebooks(session: Session) -> None:
    results = [make_result(name, share) for name, share in (("bea", 0.3), ("ada", 0.9))]
    first = [path.read_bytes() for path in publish(session, results)[1:]]
    second = [path.read_bytes() for path in publish(session, results[::-1])[1:]]
    assert first == second


def test_the_roster_names_who_is_who(session: Session, tmp_path: Path) -> None:
    roster = tmp_path / "roster.csv"
    roster.write_text("student,name,email,id\nada,Ada L,a@x.org,7\neve,Eve N,e@x.org,8\n")
    publish(session, [make_result("ada")], roster)
    gradebook = (session.out / "gradebook.csv").read_text()
    assert "Ada L,a@x.org,7" in gradebook
    assert "eve,Eve N,e@x.org,8,no submission,0" in gradebook
    roster.unlink()
    publish(session, [make_result("ada")])
    assert (session.out / "gradebook.csv").read_text() == gradebook, "it is kept for a regrade"


def test_late_is_cleared_with_an_extension(session: Session, tmp_path: Path) -> None:
    session.__dict__["rubric"] = replace(session.rubric, late_penalty=0.5)
    roster = tmp_path / "roster.csv"
    given = []
    result = make_result("Jane Doe")
    for status in ("Submitted", "Submitted, 2 hours late", "Submitted, extension granted"):
        roster.write_text(f'Identifier,Full name,Status\nParticipant 1,Jane Doe,"{status}"\n')
        publish(session, [result], roster)
        result = read_result(session.result_path("Jane Doe"))
        given.append(result)
    assert [result.late for result in given] == [False, True, False]
    assert given[1].points == pytest.approx(given[2].points / 2, abs=0.01)


def test_no_results_make_empty_pages(session: Session) -> None:
    assert all(path.is_file() for path in publish(session, []))
