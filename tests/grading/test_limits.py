"""Limits: what may be changed, and that nonsense is refused before anything is graded."""

from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from labkit.errors import UsageError
from labkit.grading.limits import LIMITS, MIB, Limits, UnknownLimit, memory_for
from labkit.profiles import PROFILES

INF, NAN = float("inf"), float("nan")


def test_every_profile_has_limits_and_more_work_gets_more_time() -> None:
    assert set(LIMITS) == set(PROFILES)
    assert LIMITS["smoke"].wall_s < LIMITS["standard"].wall_s < LIMITS["full"].wall_s


def test_some_limits_change_and_the_others_stay() -> None:
    before = LIMITS["smoke"]
    after = before.changed({"wall_s": 1.5, "processes": 7})
    assert (after.wall_s, after.processes) == (1.5, 7)
    assert (after.cpu_s, after.files) == (before.cpu_s, before.files)
    assert before == LIMITS["smoke"]
    assert before.changed({}) == before


def test_an_unknown_limit_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownLimit, match="got limit memory, expected one of: wall_s, cpu_s, mem"):
        LIMITS["smoke"].changed({"memory": 1})


@pytest.mark.parametrize("name", ["wall_s", "memory_mib", "files"])
@pytest.mark.parametrize("value", [0, -1, NAN, INF, True, "60", None, [60], {"s": 60}])
def test_a_value_that_is_no_limit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UnknownLimit, match=f"got limits {{'{name}'"):
        LIMITS["smoke"].changed({name: value})


@pytest.mark.parametrize("name", ["memory_mib", "processes", "disk_mib", "files", "output_mib"])
def test_what_is_counted_must_be_whole(name: str) -> None:
    with pytest.raises(UnknownLimit, match=r"got limits .*: Input should be a valid integer"):
        LIMITS["smoke"].changed({name: 2.5})


def test_wrong_limits_are_wrong_usage() -> None:
    assert issubclass(UnknownLimit, UsageError)


@pytest.mark.parametrize("value", [0, -3, NAN])
def test_limits_made_directly_are_checked_too(value: float) -> None:
    with pytest.raises(ValidationError, match="wall_s"):
        Limits(wall_s=value, cpu_s=1)


def test_the_kernels_own_cap_on_tasks_is_above_that_on_processes() -> None:
    limits = Limits(wall_s=1, cpu_s=1, processes=10)
    assert limits.tasks > limits.processes
    assert isinstance(limits.tasks, int)  # setrlimit takes nothing else


def test_memory_is_divided_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 16_000 * MIB

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    assert memory_for(1) == LIMITS["smoke"].memory_mib  # never above the usual cap
    assert memory_for(4) == 3_000
    assert memory_for(4) * 4 <= 0.75 * 16_000
    assert memory_for(1_000) == 1_000  # less would stop honest notebooks


def test_a_cell_gets_a_share_of_what_is_left() -> None:
    limits = Limits(wall_s=100, cpu_s=50)
    assert limits.of_cell(0, 0) == (60, 30)
    assert limits.of_cell(60, 30) == (24, 12)
    assert limits.of_cell(99, 0) is None
    assert limits.of_cell(0, 49.5) is None
