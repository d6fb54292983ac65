"""The instructor's commands: wrong input is one sentence, before anything runs."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import reference_run, write_notebook

from labkit import download
from labkit.cli import main
from labkit.grading import carry_forward as reference_module
from labkit.grading import classroom as classroom_module
from labkit.grading import sandbox
from labkit.grading import session as session_module
from labkit.grading.classroom import Event, grade_class, source_of
from labkit.grading.commands import describe
from labkit.grading.find_submissions import Source
from labkit.grading.grade import reference_notebooks, scored
from labkit.grading.results import (
    FAILED,
    GRADED,
    REJECTED,
    Measurement,
    Result,
    StageRecord,
    read_result,
    write_result,
)
from labkit.grading.rubric import RUBRIC
from labkit.grading.session import Session, locked
from labkit.grading.submission import take_in
from labkit.workspace import project_root, read_json, write_json

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def labkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; return its exit status and all that it said."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["labkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    for student in ("ada", "bea"):
        write_notebook(tmp_path / "class" / student, "01_data", f"print({student!r})")
    return tmp_path / "class"


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_run(tmp_path_factory.mktemp("complete"))


@pytest.fixture
def reference(tmp_path: Path, complete_run: Path) -> Path:
    return Path(shutil.copytree(complete_run, tmp_path / "reference"))


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was graded, by a stand-in; nothing is downloaded and no sandbox is tried out."""
    calls: list[dict[str, Any]] = []

    def grade_class(
        session: Session, sources: list[Source], workers: int, scheduler: str | None, on_event: Any
    ) -> list[Result]:
        calls.append(
            {"session": session, "students": [s.student for s in sources], "workers": workers}
        )
        assert all(source.path.is_absolute() for source in sources)
        results = []
        for number, source in enumerate(sources, start=1):
            items = session.rubric.items if source.platform else ()
            right = {item.id: Measurement(item.full) for item in items}
            status = REJECTED if source.student.startswith("empty") else GRADED
            staging = session.out / ".work" / source.student
            notes = take_in(source, staging, reference_notebooks()).notes
            shutil.rmtree(staging)
            made = Result(source.student, status, session.profile, measurements=right, notes=notes)
            result = scored(replace(made, handed_in=source.handed_in), session.rubric)
            write_result(session.result_path(source.student), result)
            on_event(Event("running", number - 1, len(sources), running={source.student: ("x", 1)}))
            on_event(Event("graded", number, len(sources), result))
            results.append(result)
        return results

    monkeypatch.setattr(classroom_module, "grade_class", grade_class)
    monkeypatch.setattr(sandbox, "find_isolation", lambda kind: kind)
    monkeypatch.setattr(sandbox, "require_readable", lambda isolation, folder: None)
    monkeypatch.setattr(download, "fetch", lambda: None)
    return calls


def everything_below(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- wrong input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "eve"], "got --only eve, expected one of: ada, bea"),
        (["--only", "ada", "--only", "Ada"], "got --only Ada"),
        (["--profile", "huge"], "profile 'huge' does not exist; choose one of: smoke"),
        (["--rubric", "nowhere.toml"], "rubric nowhere.toml cannot be read"),
        (["--rubric", "wrong.toml"], "wrong.toml has no item"),
        (["--rubric", "limits.toml"], "got limit wall, expected one of: wall_s"),
        (["--roster", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--roster", "wrong.csv"], "has the columns name; expected student, name"),
        (["--isolation", "hope"], "got --isolation hope, expected bubblewrap or none"),
        (["--reference", "nowhere"], "nowhere is no complete run in profile smoke"),
        (["--profile", "full", "--reference", "reference"], "reference is no complete run in prof"),
        (["--reference", "damaged"], "damaged has a damaged run.json"),
        (["--reference", "list"], "list has a damaged run.json"),
        (["--seed", "-1"], "seed"),
        (["--seed", "one"], "seed"),
        (["--workers", "0"], "workers"),
        (["--runtime", "container"], "expected stand-in or native"),
        (["--out", "class/grades"], "a folder of "),
        (["--out", "class"], "a folder of "),
        (["--out", "wrong.csv"], "is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_sentence_and_nothing_runs(
    labkit: Command,
    submissions: Path,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ran: list[Any],
    options: list[str],
    words: str,
) -> None:
    (tmp_path / "wrong.toml").write_text("")
    (tmp_path / "limits.toml").write_text(f"{RUBRIC.read_text()}\n[limits]\nwall = 1\n")
    (tmp_path / "wrong.csv").write_text("name\nAda")
    for name, content in (("damaged", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    before = everything_below(tmp_path)
    status, said = labkit("grade", submissions, "--out", "grades", *options)
    assert status == 2
    assert words in said
    assert "Traceback" not in said
    assert ran == []
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nowhere is not a folder"), ("empty", "holds no submission"),
        ("file", "is not a folder"), ("loose", "note.txt is neither a folder nor a zip"),
    ],
)  # fmt: skip
def test_submissions_that_are_none(
    labkit: Command, tmp_path: Path, name: str, words: str, ran: list[Any]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for folder in ("loose",):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "loose" / "note.txt").touch()
    status, said = labkit("grade", tmp_path / name, "--out", tmp_path / "grades")
    assert status == 2
    assert words in said
    assert ran == []
    assert not (tmp_path / "grades").exists()


def test_grades_that_are_there_are_not_written_over(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[Any]
) -> None:
    command = ("grade", submissions, "--out", tmp_path / "grades", "--reference", reference)
    assert labkit(*command, "--seed", "3")[0] == 0
    before = everything_below(tmp_path / "grades")
    status, said = labkit(*command)
    assert status == 2
    assert "holds 2 results: go on with --resume, or name another folder" in said
    status, said = labkit(*command, "--resume", "--seed", "5")
    assert status == 2
    assert "was begun with other settings: seed: 3, now 5" in said
    assert len(ran) == 1
    assert everything_below(tmp_path / "grades") == before
    assert labkit(*command, "--resume")[0] == 0
    assert ran[-1]["session"].seed == 3, "it goes on with its own"


def test_existing_grades_are_noticed_before_a_reference_is_made(
    labkit: Command,
    submissions: Path,
    complete_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Making one takes a quarter of an hour."""
    made: list[Path] = []

    def make(run: Path, *rest: object) -> None:
        made.append(run)
        shutil.copytree(complete_run, run)

    monkeypatch.setattr(
        reference_module, "reference_folder", lambda profile: tmp_path / "reference"
    )
    monkeypatch.setattr(reference_module, "make_reference", make)
    session = Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), None, False)
    write_result(session.result_path("ada"), Result("ada", GRADED, "smoke"))
    assert labkit("grade", submissions, "--out", session.out)[0] == 2
    assert made == []
    status, said = labkit("grade", submissions, "--out", tmp_path / "new")
    assert status == 0
    assert made == [tmp_path / "reference"]
    assert "reference run: the solved notebooks, profile smoke, once" in said


def test_somebodys_own_run_is_never_made_anew(
    labkit: Command,
    submissions: Path,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference_module, "make_reference", lambda *rest: pytest.fail("made anew"))
    run = reference.rename(tmp_path / "my-smoke-run")
    (run / "artifacts" / "model.pt").write_text("changed by hand")
    status, said = labkit("grade", submissions, "--out", tmp_path / "out", "--reference", run)
    assert status == 2
    assert "model.pt changed after the run" in said


def test_a_second_grader_waits(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[Any]
) -> None:
    with locked(tmp_path / "grades"):
        status, said = labkit(
            "grade", submissions, "--out", tmp_path / "grades", "--reference", reference
        )
    assert status == 1  # nothing is wrong with the command
    assert "another process grades into" in said
    assert ran == []


# ---- right input


def test_a_class_is_graded_and_what_an_instructor_opens_is_named(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[dict[str, Any]]
) -> None:
    (submissions / "link").symlink_to("/etc")
    out = tmp_path / "grades [/b] [red]"  # no markup
    status, said = labkit(
        "grade", submissions, "--out", out, "--reference", reference, "--workers", "2"
    )
    assert status == 0, said
    assert ran[0]["students"] == ["ada", "bea"]
    assert said.count("left out: link is a link") == said.count("left out") == 1
    assert "2 submissions, profile smoke" in said
    assert "2 of 2 graded" in said
    for name in ("class.html", "gradebook.csv", "canvas.csv", "moodle.csv"):
        assert str(out / name) in said
        assert (out / name).is_file()
    assert (out / "feedback" / "ada" / "index.html").is_file()
    assert Session.load(out).reference == reference


def test_only_some_are_graded_and_all_are_given_back(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[dict[str, Any]]
) -> None:
    command = ("grade", submissions, "--out", tmp_path / "grades", "--reference", reference)
    labkit(*command)
    status, said = labkit(*command, "--only", "bea")
    assert status == 0
    assert ran[1]["students"] == ["bea"]
    assert "2 of 2 graded" in said
    assert "ada" in (tmp_path / "grades" / "gradebook.csv").read_text()


def test_a_name_is_the_same_however_it_is_composed(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[dict[str, Any]]
) -> None:
    write_notebook(submissions / "jos\u00e9", "01_data", "1")
    command = ("grade", submissions, "--out", tmp_path / "grades", "--reference", reference)
    assert labkit(*command, "--only", "jose\u0301")[0] == 0
    assert ran[0]["students"] == ["jos\u00e9"]


def test_memory_is_shared_by_those_who_run_at_once(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[dict[str, Any]]
) -> None:
    command = ("grade", submissions, "--reference", reference, "--workers", "64")
    labkit(*command, "--out", tmp_path / "two")
    labkit(*command, "--out", tmp_path / "one", "--only", "ada")
    two, one = (call["session"].memory_mib for call in ran)
    assert two >= 1_000
    assert one >= two
    assert one > 1_000 or two == one  # on a machine with little memory


def test_paths_may_be_relative(
    labkit: Command, submissions: Path, reference: Path, tmp_path: Path, ran: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert labkit("grade", "class", "--out", "grades", "--reference", "reference")[0] == 0
    assert ran[0]["session"].out == tmp_path / "grades"
    assert ran[0]["session"].reference == tmp_path / "reference"


# ---- again


@pytest.fixture
def grades(labkit: Command, submissions: Path, reference: Path, tmp_path: Path) -> Path:
    out = tmp_path / "grades"
    labkit("grade", submissions, "--out", out, "--reference", reference)
    return out


@pytest.mark.parametrize(
    ("built", "options", "words"),
    [
        (False, ["--resume"], "none are built for this environment: run labkit triton build"),
        (True, ["--resume", "--scheduler", "tcp://10.0.0.1:1"], "give --runtime native where"),
    ],
)
def test_a_native_grading_goes_on_only_where_native_backends_are(
    labkit: Command,
    submissions: Path,
    grades: Path,
    reference: Path,
    ran: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    built: bool,
    options: list[str],
    words: str,
) -> None:
    """Without them every model would count as broken."""
    write_json(grades / "grading.json", read_json(grades / "grading.json") | {"runtime": "native"})
    monkeypatch.setattr(session_module, "built_backends", lambda: grades if built else None)
    graded = len(ran)
    command = ("grade", submissions, "--out", grades, "--reference", reference, *options)
    status, said = labkit(*command)
    assert (status, len(ran)) == (2, graded)
    assert words in said


def test_regrade_needs_a_grading(labkit: Command, tmp_path: Path) -> None:
    status, said = labkit("regrade", tmp_path)
    assert status == 2
    assert "is no grading" in said


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [("--roster", "name\nAda", "has the columns name"), ("--rubric", "", "has no item")],
)
def test_what_is_wrong_is_said_before_points_change(
    labkit: Command, grades: Path, tmp_path: Path, option: str, content: str, words: str
) -> None:
    (tmp_path / "wrong").write_text(content)
    before = everything_below(grades)
    status, said = labkit("regrade", grades, option, tmp_path / "wrong")
    assert status == 2
    assert words in said
    assert everything_below(grades) == before


def test_points_change_with_the_rubric(labkit: Command, grades: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(RUBRIC.read_text().replace("points = 8", "points = 9", 1))
    status, said = labkit("regrade", grades, "--rubric", other)
    assert status == 0, said
    assert said.count("0 of 101 points, from stored measurements") == 2
    assert {read_json(path)["maximum"] for path in (grades / "results").iterdir()} == {101}


def test_what_was_cleared_away_keeps_its_points(labkit: Command, grades: Path) -> None:
    """Evidence takes room; without it, a measurement cannot be repeated, and stands."""
    path = grades / "results" / "ada.json"
    record = read_json(path)
    record["measurements"] = {
        name: {"value": 1.0, "detail": "all right"} for name in ("02.accuracy", "ex-02-calibration")
    }
    write_json(path, record)
    status, said = labkit("regrade", grades, "--measure")
    assert status == 0, said
    assert "ada: 10 of 100 points, from stored measurements" in said
    assert read_result(path).points == 10


# ---- parts


def test_a_result_is_a_line() -> None:
    records = [StageRecord("01_data", "ok"), StageRecord("02_train", "timeout")]
    graded = Result("ada", GRADED, "smoke", stages=records, points=7.5, maximum=100)
    assert describe(graded) == "7.5 of 100 points in 0 s; timeout 02"
    broken = Result("bea", FAILED, "smoke", reason="[b]lost[/b]")
    assert describe(broken) == "[red]failed[/]: \\[b]lost\\[/b]"


def test_the_command_line_has_all_three() -> None:
    """In a process of its own, as an instructor types it."""
    found = subprocess.run(
        [sys.executable, "-m", "labkit", "grade", "nowhere", "--out", "nowhere-else"],
        capture_output=True, text=True, check=False, timeout=60, cwd=project_root(),
    )  # fmt: skip
    assert found.returncode == 2
    assert "nowhere is not a folder" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_release_is_not_written_over_something(labkit: Command, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    status, said = labkit("release", tmp_path)
    assert status != 0
    assert "Traceback" not in said
    assert (tmp_path / "note.txt").read_text() == "mine"


# ---- interrupted, or too early


def test_ctrl_c_says_how_to_go_on(
    labkit: Command,
    submissions: Path,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def grade_class(session: Session, *arguments: Any) -> list[Result]:
        write_result(session.result_path("ada"), Result("ada", GRADED, "smoke"))
        raise KeyboardInterrupt

    monkeypatch.setattr(classroom_module, "grade_class", grade_class)
    status, said = labkit(
        "grade", submissions, "--out", tmp_path / "grades", "--reference", reference
    )
    assert status == 130
    assert "stopped: 1 of 2 graded; go on with --resume" in said


def test_a_regrade_of_nothing_writes_nothing(labkit: Command, tmp_path: Path) -> None:
    session = Session.begin(Session(tmp_path / "grades", "smoke", tmp_path), None, False)
    status, said = labkit("regrade", session.out)
    assert status == 2
    assert "has no results yet: labkit grade makes them" in said
    assert not (session.out / "class.html").exists()


def test_make_grade_asks_for_a_class() -> None:
    """Without one it would take the checkout itself for a class of folders."""
    makefile = project_root() / "Makefile"
    rule = makefile.read_text().split("\ngrade:")[1].split("\n\n")[0]
    recipe = rule.split("\n", 1)[1]
    text = f"VENV_PYTHON := false\ngrade:\n{recipe}\n"
    done = subprocess.run(
        ["make", "-f", "-", "grade"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "say which class: make grade SUBMISSIONS=FOLDER" in done.stderr


# ---- the walks of docs/grading.md, from a download to a gradebook

CANVAS = """Student,ID,SIS User ID,SIS Login ID,Section,Lab (4711)
    Points Possible,,,,,100
"Doe, Jane",12345,s-1,jane@x.example,A,
"Lee, Ann",222,s-2,ann@x.example,A,
"Gone, Bob",333,s-3,bob@x.example,A,
"""


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {next(iter(row.values())): row for row in rows}


@pytest.fixture
def walk(labkit: Command, tmp_path: Path, reference: Path) -> Callable[..., tuple[int, str]]:
    """Grade the folder `class` into `grades`."""

    def go(*options: object) -> tuple[int, str]:
        command = ("grade", tmp_path / "class", "--out", tmp_path / "grades")
        return labkit(*command, "--reference", reference, *options)

    return go


def hand_in(folder: Path, *names: str) -> None:
    for name in names:
        path = write_notebook(folder / "made", "01_data", f"print({name!r})")
        (folder / "class").mkdir(exist_ok=True)
        path.replace(folder / "class" / name)


def test_canvas_from_download_to_gradebook(walk: Command, tmp_path: Path) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "leeann_LATE_222_78_01_data-1.ipynb")
    (tmp_path / "roster.csv").write_text(CANVAS)
    status, said = walk("--roster", tmp_path / "roster.csv")
    assert (status, "2 of 2 graded" in said) == (0, True), said
    canvas = table(tmp_path / "grades" / "canvas.csv")
    assert list(canvas) == ["Points Possible", "Doe, Jane", "Lee, Ann"]
    assert canvas["Lee, Ann"]["ID"] == "222"
    assert canvas["Lee, Ann"]["Deploying a model with Triton"] == "100"
    gradebook = table(tmp_path / "grades" / "gradebook.csv")
    assert gradebook["leeann"]["late"] == "late"
    assert gradebook["Gone, Bob"]["status"] == "no submission"
    page = (tmp_path / "grades" / "class.html").read_text()
    assert "Doe, Jane" in page and ">doejane<" not in page and "Points Possible" not in page
    with zipfile.ZipFile(tmp_path / "grades" / "canvas-feedback.zip") as archive:
        assert sorted(archive.namelist()) == [
            "doejane_12345_77_feedback.zip", "leeann_LATE_222_78_feedback.zip",
        ]  # fmt: skip


def test_what_does_not_fit_the_roster_is_told(walk: Command, tmp_path: Path) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "poeedgar_9_78_01_data.ipynb")
    mine = CANVAS.replace("Lab (", "Deploying a model with Triton (").replace(",100", ",20")
    (tmp_path / "roster.csv").write_text(mine)
    status, said = walk("--roster", tmp_path / "roster.csv")
    assert status == 0
    assert "the platform gives 20 points at most and the rubric 100" in said
    assert "not on the roster: poeedgar\n" in said
    assert "on the roster, and handed in nothing: Gone, Bob, Lee, Ann\n" in said
    first = (tmp_path / "grades" / "canvas.csv").read_text().splitlines()[0]
    assert first.endswith("Deploying a model with Triton (4711)")


def test_moodle_from_download_to_worksheet(walk: Command, tmp_path: Path) -> None:
    folder = "Jane Doe_31415_assignsubmission_file_"
    write_notebook(tmp_path / "class" / folder, "01_data", "1")
    (tmp_path / "roster.csv").write_text(
        "Identifier,Full name,ID number,Email address,Status,Grade\n"
        "Participant 31415,Jane Doe,8,jane@x.example,Submitted,-\n"
    )
    status, said = walk("--roster", tmp_path / "roster.csv")
    assert status == 0, said
    sheet = table(tmp_path / "grades" / "moodle-worksheet.csv")["Participant 31415"]
    assert (sheet["Full name"], sheet["Grade"]) == ("Jane Doe", "100")
    with zipfile.ZipFile(tmp_path / "grades" / "moodle-feedback.zip") as archive:
        assert archive.namelist() == [f"{folder}/index.html"]


def test_a_late_submission_loses_what_the_rubric_says(walk: Command, tmp_path: Path) -> None:
    hand_in(tmp_path, "leeann_LATE_222_78_01_data.ipynb")
    rubric = tmp_path / "strict.toml"
    rubric.write_text("late_penalty = 0.1\n" + RUBRIC.read_text())
    assert walk("--rubric", rubric)[0] == 0
    assert table(tmp_path / "grades" / "gradebook.csv")["leeann"]["total"] == "90"


def test_a_late_hand_in_goes_on_to_the_gradebook(
    walk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who has handed in something else is graded again; that is looked for as it really is."""
    graded: list[str] = []

    def work(out: str, folder: str, student: str) -> str:
        session, source = Session.load(Path(out)), source_of(Path(folder), student)
        staging = Path(out) / ".work" / f"{student}-{len(graded)}"
        intake = take_in(source, staging, reference_notebooks())
        right = {item.id: Measurement(item.full) for item in session.rubric.items}
        made = Result(student, GRADED, session.profile, measurements=right, seed=session.seed,
                      submission_sha256=intake.sha256, handed_in=source.handed_in)  # fmt: skip
        write_result(session.result_path(student), scored(made, session.rubric))
        graded.append(student)
        return student

    monkeypatch.setattr(classroom_module, "grade_class", grade_class)
    monkeypatch.setattr(classroom_module, "run_worker", work)
    monkeypatch.setattr(classroom_module, "make_home", lambda folder: None)
    (tmp_path / "roster.csv").write_text(CANVAS)
    (tmp_path / "strict.toml").write_text("late_penalty = 0.1\n" + RUBRIC.read_text())
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "leeann_222_78_01_data.ipynb")
    options = ("--roster", tmp_path / "roster.csv", "--rubric", tmp_path / "strict.toml")
    assert walk(*options)[0] == 0
    hand_in(tmp_path, "leeann_LATE_222_91_01_data-1.ipynb", "goneBob_LATE_333_92_01_data.ipynb")
    graded.clear()
    status, said = walk("--resume")
    assert (status, sorted(graded)) == (0, ["goneBob", "leeann"]), said
    assert "3 of 3 graded" in said
    points = {name: row["Deploying a model with Triton"]
              for name, row in table(tmp_path / "grades" / "canvas.csv").items()}  # fmt: skip
    assert points == {
        "Points Possible": "100", "Doe, Jane": "100", "Lee, Ann": "90", "Gone, Bob": "90",
    }  # fmt: skip
    gradebook = table(tmp_path / "grades" / "gradebook.csv")
    assert [row["late"] for row in gradebook.values()] == ["", "late", "late"]
    with zipfile.ZipFile(tmp_path / "grades" / "canvas-feedback.zip") as archive:
        assert "leeann_LATE_222_91_feedback.zip" in archive.namelist()


def test_who_is_exempt_is_so_after_a_regrade(
    walk: Command, labkit: Command, tmp_path: Path
) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb")
    assert walk()[0] == 0
    rows = CANVAS.replace("Lab (4711)", "Lab (4711),Exempt").replace("jane@x.example,A,", "j,A,,x")
    (tmp_path / "roster.csv").write_text(rows)
    assert labkit("regrade", tmp_path / "grades", "--roster", tmp_path / "roster.csv")[0] == 0
    canvas = table(tmp_path / "grades" / "canvas.csv")
    assert canvas["Doe, Jane"]["Deploying a model with Triton"] == "EX"


def test_who_has_left_stays_away(walk: Command, labkit: Command, tmp_path: Path) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "leeann_222_78_01_data.ipynb")
    assert walk()[0] == 0
    (tmp_path / "class" / "leeann_222_78_01_data.ipynb").unlink()
    status, said = walk("--resume")
    assert (status, "no longer handed in, put into removed/: leeann" in said) == (0, True)
    assert labkit("regrade", tmp_path / "grades")[0] == 0
    assert list(table(tmp_path / "grades" / "gradebook.csv")) == ["doejane"]
    assert (tmp_path / "grades" / "removed" / "leeann" / "result.json").is_file()
    assert not (tmp_path / "grades" / "feedback" / "leeann").exists()


def test_notebooks_that_are_nobodys_are_told_at_the_end(walk: Command, tmp_path: Path) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "01_data.ipynb", "02 copy.ipynb")
    (tmp_path / "class" / "readme.txt").touch()
    status, said = walk()
    assert status == 2
    assert "left out: 2 notebooks or archives that are nobody's (01_data.ipynb, 02 co" in said
    assert "1 of 1 graded" in said
    assert walk("--resume", "--leave-out")[0] == 0


def test_who_was_rejected_is_left_empty_and_said(walk: Command, tmp_path: Path) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "emptybo_333_79_01_data.ipynb")
    status, said = walk()
    assert (status, "left empty for the platforms: emptybo" in said) == (1, True)
    canvas = table(tmp_path / "grades" / "canvas.csv")
    assert canvas["emptybo"]["Deploying a model with Triton"] == ""


def test_archives_beside_notebooks_are_told_at_the_end(walk: Command, tmp_path: Path) -> None:
    for student, archive in (("ada", "rest.7z"), ("bea", "rest.tar.gz"), ("cleo", "data.csv.gz")):
        write_notebook(tmp_path / "class" / student, "01_data", "1")
        (tmp_path / "class" / student / archive).write_bytes(b"7z")
    status, said = walk()
    assert (status, "not opened: archives in 2 submissions (ada, bea): see" in said) == (2, True)
    assert "rest.7z" in table(tmp_path / "grades" / "gradebook.csv")["ada"]["notes"]
    assert walk("--resume", "--leave-out")[0] == 0


def test_the_terminal_names_people_as_the_roster_does(
    walk: Command, labkit: Command, tmp_path: Path
) -> None:
    hand_in(tmp_path, "doejane_12345_77_01_data.ipynb", "emptylee_222_79_01_data.ipynb")
    (tmp_path / "roster.csv").write_text(CANVAS)
    status, said = walk("--roster", tmp_path / "roster.csv")
    for again in (said, walk("--resume")[1], labkit("regrade", tmp_path / "grades")[1]):
        assert "Doe, Jane" in again and "doejane" not in again
        assert "left empty for the platforms: Lee, Ann" in again
    assert (status, labkit("regrade", tmp_path / "grades")[0]) == (1, 1)


def test_nbgraders_folders_are_submissions(walk: Command, tmp_path: Path) -> None:
    write_notebook(tmp_path / "class" / "ada" / "lab3", "01_data", "1")
    assert walk()[0] == 0
    assert list(table(tmp_path / "grades" / "gradebook.csv")) == ["ada"]
