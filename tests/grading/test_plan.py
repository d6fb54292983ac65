"""The settings of a grading: written down once, gone on with only as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.grading.plan import GradingRuns, Plan, PlanError, locked
from labkit.grading.results import GRADED, Result, write_result
from labkit.grading.rubric import RUBRIC


def begun(tmp_path: Path) -> Plan:
    plan = Plan.begin(Plan(tmp_path / "grades", "smoke", tmp_path / "run", seed=3), None, False)
    write_result(plan.result_path("ada"), Result("ada", GRADED, "smoke"))
    return plan


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = begun(tmp_path)
    assert Plan.load(plan.out) == plan
    assert (plan.out / "rubric.toml").read_bytes() == RUBRIC.read_bytes()


def test_results_that_are_there_are_not_graded_over(tmp_path: Path) -> None:
    plan = begun(tmp_path)
    with pytest.raises(PlanError, match=r"holds 1 results.*--resume"):
        Plan.begin(plan, None, resume=False)
    assert Plan.begin(plan, None, resume=True) == plan


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"profile": "standard"}, {"isolation": "none"}], ids=str
)
def test_a_grading_goes_on_with_its_own_settings_only(
    tmp_path: Path, change: dict[str, object]
) -> None:
    plan = begun(tmp_path)
    with pytest.raises(PlanError, match=next(iter(change))):
        Plan.begin(replace(plan, **change), None, resume=True)  # type: ignore[arg-type]
    assert Plan.load(plan.out) == plan, "what is there is untouched"


def test_another_rubric_is_for_regrade(tmp_path: Path) -> None:
    plan = begun(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(RUBRIC.read_text().replace("points = 8", "points = 9"))
    with pytest.raises(PlanError, match="labkit regrade"):
        Plan.begin(plan, other, resume=True)


def test_a_folder_that_is_no_grading_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is no grading"):
        Plan.load(tmp_path)
    (tmp_path / "grading.json").write_text('{"profile": "smoke"}')
    with pytest.raises(PlanError, match="damaged"):
        Plan.load(tmp_path)


def test_an_unknown_profile_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Plan.begin(Plan(tmp_path / "grades", "huge", tmp_path), None, False)
    assert not (tmp_path / "grades").exists()


def test_the_memory_cap_of_the_machine_gives_way_to_the_rubrics_own(tmp_path: Path) -> None:
    plan = replace(begun(tmp_path), memory_mib=1_234)
    assert plan.rubric.limits_for("smoke").memory_mib == 1_234
    own = tmp_path / "own.toml"
    own.write_text(f"{RUBRIC.read_text()}\n[limits]\nmemory_mib = 777\n")
    other = Plan(tmp_path / "more", "smoke", tmp_path, memory_mib=1_234)
    assert Plan.begin(other, own, False).rubric.limits_for("smoke").memory_mib == 777


def test_only_one_grader_at_a_time(tmp_path: Path) -> None:
    second = locked(tmp_path)
    with locked(tmp_path), pytest.raises(GradingRuns, match="another process"):
        second.__enter__()
    with locked(tmp_path):
        pass
