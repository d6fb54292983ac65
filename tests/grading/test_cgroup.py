"""Scopes of cgroup v2, on a made-up tree: this says what is written, not what a kernel does."""

from pathlib import Path

import pytest

from labkit.grading.limits import Limits, Scope

LIMITS = Limits(wall_s=1, cpu_s=1, memory_mib=1_000, processes=10)
OWN = "0::/user.slice/scope\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    here = tmp_path / "user.slice" / "scope"
    here.mkdir(parents=True)
    (here / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (here / "cgroup.subtree_control").write_text("\n")
    (here / "cgroup.procs").write_text("11\n12\n")
    return tmp_path


def test_a_scope_has_its_limits_and_goes_away(tree: Path) -> None:
    scope = Scope(LIMITS, tree, OWN)
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


def test_controllers_are_asked_for_and_nobody_elses_process_is_moved(tree: Path) -> None:
    Scope(LIMITS, tree, OWN)
    here = tree / "user.slice" / "scope"
    assert (here / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert not (here / "grader").exists()
    assert (here / "cgroup.procs").read_text() == "11\n12\n"


@pytest.mark.parametrize("own", ["", "3:cpu:/x\n", "0::/elsewhere\n"])
def test_where_nothing_is_delegated_nothing_happens(tree: Path, own: str) -> None:
    scope = Scope(LIMITS, tree, own)
    scope.enter()
    scope.close()
    assert scope.path is None


def test_without_the_controllers_nothing_happens(tree: Path) -> None:
    (tree / "user.slice" / "scope" / "cgroup.controllers").write_text("cpu\n")
    assert Scope(LIMITS, tree, OWN).path is None
