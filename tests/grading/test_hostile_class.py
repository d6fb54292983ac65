"""A class of faults, graded for real through the command line: every one ends as it must."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import onnx
import psutil
import pytest
from hostile.claims import evil_pickle
from hostile.composed import PARTS, Composed, composed_faults
from hostile.fault import Bait, Fault, NoBait
from hostile.faults import small_class, whole_class
from hostile.grading import Grading, marked
from hostile.make_class import write_class, write_rubric

from labkit.chain import STAGES
from labkit.grading.find_submissions import safe_name
from labkit.grading.results import FAILED, MISSING, REJECTED, Result, read_result
from labkit.grading.rubric import RUBRIC
from labkit.workspace import cache_dir

pytestmark = [
    pytest.mark.data, pytest.mark.triton, pytest.mark.sandbox, pytest.mark.timeout(1_200),
]  # fmt: skip
SECRET = "a-secret-that-no-notebook-may-see-7d1f"
CANARY = "still-here.txt"
SMALL, WHOLE = small_class(NoBait()), whole_class(NoBait())  # for their names; made anew below
HONEST, *COMPOSED = [fault.name for fault in SMALL if isinstance(fault, Composed)]
QUICK = [fault.name for fault in SMALL if fault.quick]
SMALL_LIMIT_S, WHOLE_LIMIT_S = 900.0, 900.0
ROUNDING = 0.011  # points of an item, of two gradings of the same files


@dataclass(frozen=True)
class Graded:
    """A class that has been graded.

    Attributes:
        root: The folder with everything of it.
        bait: What was laid out.
        faults: By name.
        results: By name.
        said: What the grader printed.
        left: Processes that it has left running.
        connections: How many the listener has seen.
    """

    root: Path
    bait: Bait
    faults: dict[str, Fault]
    results: dict[str, Result]
    said: str
    left: list[psutil.Process]
    connections: int

    @property
    def grades(self) -> Path:
        return self.bait.grades

    def notebook(self, name: str) -> str:
        """Everything that the executed notebooks of a submission hold."""
        folder = self.grades / "evidence" / safe_name(name)
        texts = sorted(folder.glob("*/executed.ipynb"))
        return "\n".join(path.read_text() for path in texts)


def lay_out(root: Path, reference: Path, port: int = 9) -> Bait:
    """Make what the class may find, in folders that anybody may enter."""
    bait = Bait(
        reference=reference,
        home=root / "home",
        classroom=root / "class",
        grades=root / "grades",
        drop=root / "drop",
        secret=SECRET,
        port=port,
        marker=f"left-behind-{root.name}-{os.getpid()}",
    )
    for folder in (bait.home, bait.drop):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    (bait.home / "notes.txt").write_text(SECRET)
    (bait.drop / CANARY).write_text(CANARY)
    for parent in (root, *root.parents):
        if parent.owner() == root.owner() and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)  # so that only the sandbox keeps them out
        if parent.name.startswith("pytest-of"):
            break
    return bait


def environment(bait: Bait) -> dict[str, str]:
    return {"HOME": str(bait.home), "LABKIT_CACHE": str(cache_dir()), "LABKIT_SECRET": SECRET}


def grade(root: Path, bait: Bait, faults: list[Fault], limit_s: float, *options: str) -> Graded:
    """Grade faults as a person would, with a listener on the host that must hear nothing."""
    write_class(bait.classroom, faults)
    with (
        socket.create_server(("127.0.0.1", bait.port)) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind(f"\0labkit-test-{bait.port}")
        abstract.listen()
        grading = Grading(
            bait.classroom, bait.grades, "--reference", str(bait.reference),
            *options, environment=environment(bait),
        )  # fmt: skip
        status = grading.wait(limit_s)
        connections = heard(listener) + heard(abstract)
    assert status in (0, 1, 2), grading.said[
        -3_000:
    ]  # 1: rejected ones; 2: an archive is not opened
    assert grading.processes > len(faults)
    results = read_results(bait.grades / "results")
    named = {fault.name: fault for fault in faults}
    return Graded(root, bait, named, results, grading.said, grading.left(), connections)


def heard(listener: socket.socket) -> int:
    """Return how many have connected and wait to be accepted."""
    count = 0
    listener.setblocking(False)
    try:
        while True:
            listener.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, isolation: object, reference: Path
) -> Iterator[Graded]:
    root = tmp_path_factory.mktemp("hostile")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bait = lay_out(root, reference, port)
    write_rubric(root / "rubric.toml")
    options = ("--workers", "2", "--rubric", str(root / "rubric.toml"))
    yield grade(root, bait, small_class(bait), SMALL_LIMIT_S, *options)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, isolation: object, reference: Path
) -> Iterator[Graded]:
    root = tmp_path_factory.mktemp("whole")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bait = lay_out(root, reference, port)
    yield grade(root, bait, whole_class(bait), WHOLE_LIMIT_S, "--workers", "2")
    shutil.rmtree(root, ignore_errors=True)


def test_the_class_has_at_least_25_faults() -> None:
    assert len({fault.name for fault in (*SMALL, *WHOLE)}) == len(SMALL) + len(WHOLE) >= 25
    assert len(QUICK) >= 6


def hold(graded: Graded, name: str) -> None:
    """Hold a graded submission to what its fault must come to."""
    fault, result = graded.faults[name], graded.results[name]
    if fault.status:  # else it may have ended in any way, as long as it earns no more
        why = result.reason if result.status == FAILED else ""
        assert (result.status, why) == (fault.status, "")
    verdicts = {record.stage: record.verdict for record in result.stages}
    told = [(r.stage, r.verdict, r.reason, r.why_not, r.notes) for r in result.stages]
    if result.status != REJECTED:
        assert set(verdicts) == set(STAGES), "every notebook has a terminal record"
    for stage, verdict in verdicts.items():
        assert verdict in fault.verdicts.get(stage, (MISSING,)), told
    lost = [(item.id, item.points, item.maximum, item.reason) for item in result.items]
    low, high = fault.points
    assert low <= result.points <= high, lost
    everything = json.dumps(result.to_json(), ensure_ascii=False)
    assert re.search(fault.says, everything), told
    shown = graded.notebook(name).replace("\\n", "\n")
    assert re.search(fault.shows, shown), shown[-3_000:]


@pytest.mark.parametrize("name", [fault.name for fault in SMALL])
def test_every_fault_ends_as_it_must(small: Graded, name: str) -> None:
    hold(small, name)


@pytest.mark.parametrize("name", [fault.name for fault in WHOLE])
def test_whole_submissions(whole: Graded, name: str) -> None:
    hold(whole, name)


def test_released_and_solved_again_earns_every_point(whole: Graded) -> None:
    result = whole.results["correct"]
    short = [(item.id, item.value, item.reason) for item in result.items if item.hint]
    assert short == []
    assert result.points == result.maximum == 100
    assert all(record.accepted for record in result.stages)


def test_a_network_with_one_more_layer_is_the_one_that_is_exported_and_graded(
    whole: Graded,
) -> None:
    """What the student wrote in notebook 02, and not a copy that the lab has."""
    result = whole.results["deeper"]
    short = [(item.id, item.value, item.reason) for item in result.items if item.hint]
    assert short == [] and all(record.accepted for record in result.stages)
    convolutions = {}
    for student in ("correct", "deeper"):
        path = whole.grades / "evidence" / student / "03_export" / "model.onnx"
        nodes = onnx.load(path).graph.node
        convolutions[student] = sum(node.op_type == "Conv" for node in nodes)
    assert convolutions["deeper"] == convolutions["correct"] + 1


def points(graded: Graded, name: str) -> dict[str, float]:
    """Return item → points of a submission."""
    return {item.id: item.points for item in graded.results[name].items}


def test_the_honest_work_leaves_something_to_earn_in_each_of_its_notebooks(small: Graded) -> None:
    honest = small.faults[HONEST]
    assert isinstance(honest, Composed)
    items = small.results[HONEST].items
    for stage in honest.verdicts:
        beside = [item for item in items if item.stage == stage]
        assert 0 < sum(i.points for i in beside) < sum(i.maximum for i in beside), beside
    full = {item.id for item in items if item.id.startswith("ex-") and not item.hint}
    assert full == honest.solved


@pytest.mark.parametrize("seed", range(20))
def test_every_hostile_part_is_in_a_composed_submission(seed: int) -> None:
    honest, *composed = composed_faults(NoBait(), seed)
    told = re.split("[:,; ]+", " ".join(fault.does for fault in composed))
    assert {name: told.count(name) for name in PARTS} == {
        name: 1 if part.spoils else len(composed) for name, part in PARTS.items()
    }
    assert len({fault.spoiled for fault in composed}) == len(composed)
    assert not honest.spoiled and all(len(fault.spoiled) == 1 for fault in composed)


@pytest.mark.parametrize("name", COMPOSED)
def test_hostile_parts_earn_nothing_beside_honest_work(small: Graded, name: str) -> None:
    """No item more than the same work by itself; none less where no part could spoil it."""
    composed, honest = small.faults[name], points(small, HONEST)
    assert isinstance(composed, Composed)
    found = {item.id: item for item in small.results[name].items}
    told = {item.id: (item.points, honest[item.id], item.reason) for item in found.values()}
    gained = {key for key, item in found.items() if item.points > honest[key] + ROUNDING}
    assert not gained, (composed.does, {key: told[key] for key in gained})
    lost = {key for key, item in found.items() if item.points < honest[key] - ROUNDING}
    lost -= {key for key in lost if found[key].stage in composed.spoiled}
    assert not lost, (composed.does, {key: told[key] for key in lost})


def test_nothing_of_the_class_is_left(small: Graded) -> None:
    assert small.left == []
    assert marked(small.bait.marker) == []
    for name in (".work", ".progress", ".home", ".stop"):
        assert not (small.grades / name).exists()


def test_nobody_has_reached_the_machine_that_grades(small: Graded) -> None:
    assert small.connections == 0
    (only,) = small.bait.drop.iterdir()  # nothing was written or deleted outside the sandbox
    assert (only.name, only.read_text()) == (CANARY, CANARY)
    assert not Path("/tmp/labkit-escaped.txt").exists()
    assert not (small.root / "escaped.txt").exists()


def test_no_secret_is_anywhere_in_the_grades(small: Graded) -> None:
    """Of the instructor's home and environment, and of another student."""
    holding = [
        str(path.relative_to(small.grades))
        for path in small.grades.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert holding == []
    (line,) = re.findall(r"FOUND (\{.*?\})\\n\"", small.notebook("reads"))[:1]
    found = json.loads(json.loads(f'"{line}"'))
    absent = {"shadow", "home", "notes", "classroom", "other", "grades", "results", "rubric",
              "tests"}  # fmt: skip
    assert {key: found[key] for key in absent} == dict.fromkeys(absent, "FileNotFoundError")
    assert found["grader"] == []
    assert found["passwd"].startswith("student:") and found["passwd"].count("\n") == 1
    assert "notebooks" not in found["project"] and ".git" not in found["project"]


def test_links_lead_to_nothing_of_the_grader(small: Graded) -> None:
    """Neither the solved notebooks nor the reference's files become a submission's own."""
    records = small.results["links-out"].stages
    assert [record.artifacts for record in records] == [{}] * len(STAGES)
    solution = "return len(set(first) & set(second))"
    assert solution in small.notebook("control-a")
    for kind in ("evidence", "feedback"):
        for path in (small.grades / kind / "links-out").rglob("*.*"):
            assert solution not in path.read_text(), path


def test_no_fault_has_harmed_another_submission(small: Graded) -> None:
    for name in ("control-a", "control-z"):
        assert small.results[name].points == 8, small.results[name].items


def test_equal_files_are_reported_and_cost_nothing(small: Graded) -> None:
    original, copy = small.results["original"], small.results["copy"]
    assert "copy" in original.same_as["checkpoint.pt"]
    assert "original" in copy.same_as["checkpoint.pt"]
    assert original.points == copy.points


def test_a_broken_export_costs_its_own_points_only(small: Graded) -> None:
    result = small.results["broken-03"]
    records = {record.stage: record for record in result.stages}
    assert not records["03_export"].accepted
    assert "model.onnx" in records["04_quantize"].used_reference
    points = dict.fromkeys(STAGES, 0.0)
    for item in result.items:
        if not item.id.startswith("ex-"):
            points[item.stage] += item.points
    assert points["03_export"] == 0
    assert points["04_quantize"] >= 13.5
    assert points["05_configure"] == 8


class Scripts(HTMLParser):
    """Collects what a page could run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        handlers = [name for name, _ in attrs if name.startswith("on")]
        if tag in ("script", "iframe", "object", "embed") or handlers:
            self.found.append(f"{tag} {handlers}")


def test_no_page_runs_what_a_student_wrote(small: Graded) -> None:
    pages = [small.grades / "class.html", *small.grades.glob("feedback/*/*.html")]
    assert len(pages) > len(small.faults)
    for page in pages:
        parser = Scripts()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found == [], page


def test_a_killed_grading_goes_on_and_gives_the_same_gradebook(
    small: Graded, tmp_path: Path, reference: Path
) -> None:
    """What was graded stands, nobody is graded twice, and the table is the same, byte for byte."""
    bait = lay_out(tmp_path / "killed", reference, small.bait.port)
    write_class(bait.classroom, [fault for fault in small_class(bait) if fault.quick])
    options = ("--reference", str(reference), "--rubric", str(small.root / "rubric.toml"))
    options = (*options, "--workers", "2")
    results = bait.grades / "results"
    first = Grading(bait.classroom, bait.grades, *options, environment=environment(bait))
    deadline = time.monotonic() + 120
    while len(list(results.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    first.kill()
    assert first.left() == [], "the workers and sandboxes end with the grader"
    before, evidence = read_results(results), stamps(bait.grades / "evidence")
    assert 2 <= len(before) < len(QUICK), first.said

    options = (*options, "--resume")
    again = Grading(bait.classroom, bait.grades, *options, environment=environment(bait))
    assert again.wait(300) == 1, again.said[-2_000:]  # one of them is rejected
    assert again.left() == []
    after = read_results(results)
    assert sorted(after) == sorted(QUICK)
    assert again.said.count("(graded earlier)") == len(before)
    assert {name: after[name] for name in before} == before
    kept = {path: stamp for path, stamp in evidence.items() if path.split("/")[0] in before}
    assert kept and kept.items() <= stamps(bait.grades / "evidence").items()
    # The lines of these submissions in the gradebook of the whole class, graded before.
    assert (bait.grades / "gradebook.csv").read_bytes() == b"".join(
        line
        for line in (small.grades / "gradebook.csv").read_bytes().splitlines(keepends=True)
        if line.split(b",")[0].decode() in ("student", *QUICK)
    )


def read_results(folder: Path) -> dict[str, Result]:
    """Return student → result."""
    return {result.student: result for result in map(read_result, folder.glob("*.json"))}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return path → (inode, time of the last change) of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files
    }


def test_the_pickle_is_a_real_one(tmp_path: Path) -> None:
    """Loaded where nothing confines it, it runs: so what the class shows is the sandbox's work."""
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    attack = evil_pickle(Bait(drop=tmp_path))
    done = subprocess.run([sys.executable, "-c", code], input=attack, timeout=60, check=False)
    assert (tmp_path / "pickle-ran").exists() and done.returncode == -signal.SIGKILL


def test_points_are_given_again_without_running_a_notebook(whole: Graded, tmp_path: Path) -> None:
    """A new rubric from stored measurements; then the stored files, measured again."""
    before = whole.results["correct"]
    (whole.grades / "results" / "deeper.json").unlink()  # one submission is enough
    ran = {path: path.stat().st_mtime_ns for path in whole.grades.rglob("executed.ipynb")}
    text = RUBRIC.read_text()
    head, _, tail = text.partition('id = "02.accuracy"')
    (tmp_path / "rubric.toml").write_text(
        f'{head}id = "02.accuracy"{tail.replace("points = 8", "points = 18", 1)}'
    )
    said = regrade(whole, "--rubric", str(tmp_path / "rubric.toml"))
    after = read_result(whole.grades / "results" / "correct.json")
    assert (after.points, after.maximum) == (before.points + 10, before.maximum + 10)
    assert "from stored measurements" in said and "measured again" not in said
    assert "110" in (whole.grades / "gradebook.csv").read_text()

    assert "measured again" in regrade(whole, "--measure")
    again = read_result(whole.grades / "results" / "correct.json")
    assert again.points == after.points
    assert {k: m.value for k, m in again.measurements.items()} == {
        k: m.value for k, m in before.measurements.items()
    }
    assert {path: path.stat().st_mtime_ns for path in ran} == ran, "no notebook ran"


@pytest.mark.native
def test_native_backends_give_the_same_points(whole: Graded) -> None:
    """What the class has left, measured again by servers with native backends."""
    before = read_result(whole.grades / "results" / "correct.json")
    session = json.loads((whole.grades / "grading.json").read_text())
    (whole.grades / "grading.json").write_text(json.dumps(session | {"runtime": "native"}))
    assert "measured again" in regrade(whole, "--measure")
    after = read_result(whole.grades / "results" / "correct.json")
    assert (after.points, after.maximum) == (before.points, before.maximum)
    assert {k: m.value for k, m in after.measurements.items()} == {
        k: m.value for k, m in before.measurements.items()
    }


def regrade(graded: Graded, *options: str) -> str:
    command = [sys.executable, "-m", "labkit", "regrade", str(graded.grades), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: some are rejected
    return done.stdout
