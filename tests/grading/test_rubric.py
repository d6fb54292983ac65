"""The rubric: measurements become points, and a file that cannot be used is refused by name."""

import math
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.grading.exercises import EXERCISES
from labkit.grading.limits import LIMITS, UnknownLimit
from labkit.grading.measure.stages import MEASURES
from labkit.grading.results import Measurement
from labkit.grading.rubric import RUBRIC, Item, Rubric, RubricError, load_rubric
from labkit.profiles import PROFILES, UnknownProfile

MEASURED = {name: stage for stage, names in MEASURES.items() for name in names} | EXERCISES

GOOD = """
title = "A rubric"
[[item]]
id = "02.accuracy"
stage = "02_train"
title = "Accuracy"
points = 8
zero = 0.5
full = 0.9
[item.profile.smoke]
full = 0.4
zero = 0.1
[[item]]
id = "ex-01-leak"
stage = "01_data"
title = "Leak"
points = 2.5
partial = false
visible = false
hint = "look"
[limits]
wall_s = 60
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def item(points: float = 4, **fields: object) -> Item:
    return Item("02.accuracy", "02_train", "Accuracy", points, **fields)  # type: ignore[arg-type]


# ---- the lab's own


@pytest.mark.parametrize("profile", PROFILES)
def test_the_labs_own_rubric_has_a_hundred_points_for_all_that_is_measured(profile: str) -> None:
    rubric = load_rubric(None, profile)
    assert rubric.maximum == 100
    assert {one.id: one.stage for one in rubric.items} == MEASURED
    assert sum(one.points for one in rubric.items if one.id.startswith("ex-")) == 38
    assert rubric.stages == tuple(MEASURES)
    assert rubric.limits_for(profile) == LIMITS[profile]
    assert all(one.hint for one in rubric.items)


@pytest.mark.parametrize("profile", PROFILES)
def test_full_marks_and_none_are_within_reach(profile: str) -> None:
    for one in load_rubric(None, profile).items:
        assert one.share(one.full) == 1
        assert one.share(one.zero) == 0
        between = one.share((one.full + one.zero) / 2)
        assert 0 < between < 1 if one.partial else between == 0


# ---- one item


@pytest.mark.parametrize(
    ("value", "points"),
    [
        (None, 0), (-math.inf, 0), (-1.0, 0), (0.5, 0), (0.6, 1), (0.7, 2), (0.9, 4), (7.0, 4),
        (math.nan, 0),
    ],
)  # fmt: skip
def test_points_lie_on_a_line_between_zero_and_full(value: float | None, points: float) -> None:
    rubric = Rubric("", (item(zero=0.5, full=0.9),))
    [result] = rubric.score({"02.accuracy": Measurement(value, "found")})
    assert result.points == pytest.approx(points)
    assert result.maximum == 4
    assert result.value is value


def test_less_is_better_where_zero_is_above_full() -> None:
    lost = item(full=1.0, zero=5.0)
    assert [lost.share(value) for value in (-3.0, 1.0, 3.0, 5.0, 99.0)] == [1, 1, 0.5, 0, 0]


def test_without_partial_there_are_all_points_or_none() -> None:
    whole = item(partial=False)
    assert [whole.share(value) for value in (0.0, 0.5, 0.9999, 1.0, None)] == [0, 0, 0, 1, 0]


def test_the_hint_is_for_whoever_lost_points() -> None:
    rubric = Rubric("", (item(hint="look at the curves"),))
    [full] = rubric.score({"02.accuracy": Measurement(1.0, "all right")})
    [part] = rubric.score({"02.accuracy": Measurement(0.5, "half of it")})
    assert (full.hint, full.reason) == ("", "all right")
    assert (part.hint, part.reason) == ("look at the curves", "half of it")


def test_what_was_not_measured_earns_nothing_and_says_so() -> None:
    [result] = Rubric("", (item(),)).score({"03.onnx": Measurement(1.0)})
    assert (result.points, result.value, result.reason) == (0, None, "nothing was measured")


def test_points_are_rounded_to_hundredths() -> None:
    [result] = Rubric("", (item(points=1),)).score({"02.accuracy": Measurement(1 / 3)})
    assert result.points == 0.33


# ---- a file


def test_a_file_is_read_with_the_values_of_its_profile(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    smoke, standard = load_rubric(path, "smoke"), load_rubric(path, "standard")
    assert (smoke.items[0].zero, smoke.items[0].full) == (0.1, 0.4)
    assert (standard.items[0].zero, standard.items[0].full) == (0.5, 0.9)
    assert smoke.items[1] == Item(
        "ex-01-leak", "01_data", "Leak", 2.5, partial=False, visible=False, hint="look"
    )
    assert (smoke.title, smoke.maximum) == ("A rubric", 10.5)
    assert smoke.stages == ("01_data", "02_train")  # in order of the notebooks
    assert smoke.limits_for("smoke").wall_s == 60
    assert smoke.sha256 == standard.sha256 != load_rubric().sha256


def test_a_rubric_may_have_a_byte_order_mark_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert len(load_rubric(path).items) == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("points = 8", "points = -1", r"02\.accuracy: got points -1"),
        ("points = 8", "points = true", "got points True: Input should be a valid number"),
        ("points = 8", 'points = "8"', "got points '8': Input should be a valid number"),
        ("points = 8", "points = nan", "got points nan: Input should be a finite number"),
        ("points = 8", "points = inf", "got points inf: Input should be a finite number"),
        ("points = 8", "", r"02\.accuracy: .*points"),
        ("full = 0.9", "full = nan", "got full nan: Input should be a finite number"),
        ("full = 0.9", "full = 0.5", "expected them to differ"),
        ("full = 0.9", "ful = 0.9", "ful"),
        ('stage = "02_train"', 'stage = "02"', "got stage '02', expected '02_train'"),
        ('stage = "02_train"', 'stage = "03_export"', "'03_export', expected '02_train'"),
        ('stage = "02_train"', "stage = 2", "got stage 2"),
        ('id = "02.accuracy"', 'id = "02.acuracy"', r"02\.acuracy.*nothing measures"),
        ('id = "02.accuracy"', "id = 2", "got id 2: Input should be a valid string"),
        ('id = "02.accuracy"', 'id = ["a"]', "got id .*: Input should be a valid string"),
        ('id = "02.accuracy"', "", "without an id"),
        ('title = "Accuracy"', "title = 5", "got title 5: Input should be a valid string"),
        ('hint = "look"', "hint = 5", "got hint 5: Input should be a valid string"),
        ("visible = false", 'visible = "no"', "got visible 'no': Input should be a valid boolean"),
        ("partial = false", "partial = 0", "got partial 0: Input should be a valid boolean"),
        ("[item.profile.smoke]", "[item.profile.smok]", "got profile 'smok'"),
        ('hint = "look"', 'profile = "smoke"', "ex-01-leak: .*profile"),
        ('hint = "look"', "profile = 3", "ex-01-leak: .*profile"),
        ('hint = "look"', "profile.full = 3", "ex-01-leak: .*profile"),
        ('hint = "look"', "profile.full.points = -1", "ex-01-leak: got points -1"),
        ('hint = "look"', "profile.full.colour = 1", "ex-01-leak: .*colour"),
        ("[limits]\nwall_s = 60", "[[limits]]\nwall_s = 60", "limits"),
        ('id = "ex-01-leak"\nstage = "01_data"', 'id = "02.accuracy"\nstage = "02_train"', "two"),
    ],
)  # fmt: skip
def test_a_rubric_that_cannot_be_used_is_refused(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert GOOD.count(before) == 1
    path = write(tmp_path, GOOD.replace(before, after))
    with pytest.raises(RubricError, match=message) as caught:
        load_rubric(path, "full")
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "title = 3", "item = 3", "item = []", "item = [3]", "[item]\nid = 'x'", "= 3"]
)
def test_a_file_without_items_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RubricError, match=r"mine\.toml"):
        load_rubric(write(tmp_path, text))


def test_limits_are_checked_before_anything_is_graded(tmp_path: Path) -> None:
    with pytest.raises(UnknownLimit, match="got limit wall"):
        load_rubric(write(tmp_path, GOOD.replace("wall_s = 60", "wall = 60")))
    with pytest.raises(RubricError, match="limits"):
        load_rubric(write(tmp_path, "limits = 3\n" + GOOD.replace("[limits]\nwall_s = 60", "")))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RubricError, match=r"nowhere\.toml cannot be read"):
        load_rubric(tmp_path / "nowhere.toml")
    with pytest.raises(RubricError, match="cannot be read"):
        load_rubric(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RubricError, match=r"bytes\.toml cannot be read"):
        load_rubric(tmp_path / "bytes.toml")


def test_wrong_rubrics_and_profiles_are_wrong_usage(tmp_path: Path) -> None:
    assert issubclass(RubricError, UsageError)
    with pytest.raises(UnknownProfile, match="profile 'fast' does not exist"):
        load_rubric(None, "fast")
    with pytest.raises(UnknownProfile, match="fast"):
        load_rubric(write(tmp_path, GOOD), "fast")


def test_the_labs_own_rubric_is_the_file_beside_the_module() -> None:
    assert load_rubric(RUBRIC) == load_rubric()


# What the notebooks make by themselves


def solved(*names: str) -> dict[str, Measurement]:
    """Everything of every notebook, and these exercises only."""
    made = {item.id: Measurement(item.full, "right") for item in load_rubric().items}
    return {name: what for name, what in made.items() if name not in EXERCISES or name in names}


def test_who_solves_no_exercise_earns_nothing() -> None:
    """The notebooks as they are handed out make nearly everything that is measured."""
    results = load_rubric().score(solved())
    assert sum(result.points for result in results) == 0
    [accuracy] = [result for result in results if result.id == "02.accuracy"]
    assert accuracy.reason == "right; counts 0%, as 0% of this notebook's exercises are solved"
    assert accuracy.hint == "solve the exercises beside it"


def test_one_of_two_exercises_is_enough_and_half_of_one_is_half() -> None:
    def points(measurements: dict[str, Measurement]) -> dict[str, float]:
        return {result.id: result.points for result in load_rubric().score(measurements)}

    full = points(solved("ex-02-calibration"))
    assert (full["02.accuracy"], full["ex-02-learning-rate"]) == (8, 0)
    half = points(solved() | {"ex-02-calibration": Measurement(0.5, "half")})
    assert (half["02.accuracy"], half["ex-02-calibration"]) == (4, 1)
    assert half["01.splits"] == 0, "the exercises of one notebook say nothing of another"
    assert sum(points(solved(*EXERCISES)).values()) == 100


def test_a_rubric_without_that_rule_gives_the_points_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "rubric.toml"
    path.write_text(RUBRIC.read_text().replace("exercises_for_full = 0.5\n", ""))
    assert sum(result.points for result in load_rubric(path).score(solved())) == 62


@pytest.mark.parametrize("share", ["2", "-0.1", '"half"', "true", "nan"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str) -> None:
    path = tmp_path / "rubric.toml"
    text = RUBRIC.read_text()
    path.write_text(text.replace("exercises_for_full = 0.5", f"exercises_for_full = {share}"))
    with pytest.raises(RubricError, match=r"got exercises_for_full .*: Input should be"):
        load_rubric(path)


def test_a_misspelt_part_of_an_item_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rubric.toml"
    path.write_text(RUBRIC.read_text().replace("points = 8", "poinst = 8", 1))
    with pytest.raises(RubricError, match=r"poinst: Unexpected keyword"):
        load_rubric(path)
