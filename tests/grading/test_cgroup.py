"""Scopes of cgroup v2, on a made-up tree: this says what is written, not what a kernel does."""

from pathlib import Path

import pytest

from labkit.grading.limits import Limits, Scope, enter_grader

LIMITS = Limits(wall_s=1, cpu_s=1, memory_mib=1_000, processes=10)
OWN = "0::/user.slice/scope\n"
INSIDE = "0::/user.slice/scope/grader\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    here = tmp_path / "user.slice" / "scope"
    here.mkdir(parents=True)
    (here / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (here / "cgroup.subtree_control").write_text("\n")
    (here / "cgroup.procs").write_text("11\n")
    return tmp_path


def in_grader(tree: Path) -> None:
    """What a kernel makes of it when the grader has entered its own cgroup."""
    enter_grader(tree, OWN)
    grader = tree / "user.slice" / "scope" / "grader"
    assert (grader / "cgroup.procs").read_text() == "0"
    (grader / "cgroup.controllers").write_text("cpu memory pids\n")


def test_a_scope_has_its_limits_and_goes_away(tree: Path) -> None:
    in_grader(tree)
    scope = Scope(LIMITS, tree, INSIDE)
    assert scope.path is not None and scope.path.parent == tree / "user.slice" / "scope"
    kept = {path.name: path.read_text() for path in scope.path.iterdir()}
    assert kept == {
        "memory.max": str(1_100 * 2**20), "memory.oom.group": "1",
        "pids.max": str(LIMITS.tasks), "cpu.weight": "50",
    }  # fmt: skip
    scope.enter()
    assert (scope.path / "cgroup.procs").read_text() == "0"
    path = scope.path
    scope.close()
    assert (path / "cgroup.kill").read_text() == "1"  # a kernel would remove the files with it


def test_all_workers_make_their_scopes_in_one_place(tree: Path) -> None:
    in_grader(tree)
    here = tree / "user.slice" / "scope"
    assert (here / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    enter_grader(tree, INSIDE)  # a worker, which was started there
    scopes = [Scope(LIMITS, tree, INSIDE) for _ in range(3)]
    assert {scope.path.parent for scope in scopes if scope.path} == {here}
    assert len({scope.path for scope in scopes}) == 3
    assert not (here / "grader" / "grader").exists()


def test_beside_processes_of_others_nothing_is_left_behind(tree: Path) -> None:
    here = tree / "user.slice" / "scope"
    (here / "cgroup.subtree_control").unlink()
    (here / "cgroup.subtree_control").mkdir()  # where a kernel would say that it is busy
    enter_grader(tree, OWN)
    assert (here / "cgroup.procs").read_text() == "0", "back where it was"
    assert Scope(LIMITS, tree, OWN).path is None


@pytest.mark.parametrize("own", ["", "3:cpu:/x\n", "0::/elsewhere\n"])
def test_where_nothing_is_delegated_nothing_happens(tree: Path, own: str) -> None:
    scope = Scope(LIMITS, tree, own)
    scope.enter()
    scope.close()
    assert scope.path is None


def test_without_the_controllers_nothing_happens(tree: Path) -> None:
    (tree / "user.slice" / "scope" / "cgroup.controllers").write_text("cpu\n")
    assert Scope(LIMITS, tree, OWN).path is None
