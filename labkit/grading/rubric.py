"""The rubric: which measurements are worth how many points."""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from labkit.chain import STAGES
from labkit.errors import UsageError
from labkit.grading.exercises import EXERCISES
from labkit.grading.limits import LIMITS, Limits
from labkit.grading.measure import MEASURES
from labkit.grading.results import ItemResult, Measurement
from labkit.profiles import PROFILES, preset

RUBRIC = Path(__file__).parent / "rubric.toml"
DIGITS = 2  # of points
UNLOCKS = "solve the exercises beside it"  # hint of what they hold back
AS_WRITTEN = ConfigDict(strict=True, extra="forbid")  # a number in quotes is no number
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Tables = TypeAdapter(dict[str, dict[str, dict[str, Any]]])  # an item's values for profiles
MOST_TOLD = 3  # things that are wrong, in one message

# Everything that is measured → the notebook that it belongs to.
MEASURED = {name: stage for stage, names in MEASURES.items() for name in names} | EXERCISES


class RubricError(UsageError):
    """A rubric file that cannot be used."""


@dataclass(frozen=True, config=AS_WRITTEN)
class Item:
    """One line of the rubric.

    Attributes:
        id: Names the measurement, such as `02.accuracy` or `ex-01-leak`.
        stage: The notebook that it belongs to.
        title: What is graded, as the student reads it.
        points: For `full` and better.
        full, zero: Values of the measurement for all points and for none. Between them points lie
            on a straight line; `zero` above `full` where less is better.
        partial: Without it there are all points or none.
        visible: Whether the student is told what was measured.
        hint: What to look at, for whoever does not get all points.
    """

    id: str
    stage: str
    title: str
    points: Annotated[Finite, Field(ge=0)]
    full: Finite = 1.0
    zero: Finite = 0.0
    partial: bool = True
    visible: bool = True
    hint: str = ""

    @model_validator(mode="after")
    def _is_measured(self) -> "Item":
        if self.id not in MEASURED:
            raise ValueError(f"nothing measures it; expected one of: {', '.join(MEASURED)}")
        if self.stage != MEASURED[self.id]:
            raise ValueError(f"got stage {self.stage!r}, expected {MEASURED[self.id]!r}")
        if self.full == self.zero:
            raise ValueError(f"got full {self.full} and zero {self.zero}, expected them to differ")
        return self

    def share(self, value: float | None) -> float:
        """Return the share of the points, in [0, 1], that a measured value is worth."""
        if value is None:
            return 0.0
        share = min(1.0, max(0.0, (value - self.zero) / (self.full - self.zero)))
        return share if self.partial or share == 1.0 else 0.0


@dataclass(frozen=True, config=AS_WRITTEN)
class Rubric:
    """All items, and the limits under which notebooks run.

    Attributes:
        title: Of the assignment, as gradebooks name it.
        items: In the order of the feedback.
        limits: Changes to the profile's limits.
        sha256: Of the file, to tell which rubric gave which points.
        exercises_for_full: Share of a notebook's exercise points, in [0, 1], from which on what the
            notebook makes counts in full; below, in proportion. 0: always in full.
        late_penalty: Share of all points, in [0, 1], that a late submission loses.
    """

    title: str
    items: Annotated[tuple[Item, ...], Field(strict=False)]
    limits: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    exercises_for_full: Share = 0.0
    late_penalty: Share = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The notebooks that are graded, in order."""
        named = {item.stage for item in self.items}
        return tuple(stage for stage in STAGES if stage in named)

    @property
    def maximum(self) -> float:
        """All points."""
        return round(sum(item.points for item in self.items), DIGITS)

    def limits_for(self, profile: str) -> Limits:
        """Return the limits of one notebook in a profile."""
        return LIMITS[profile].changed(dict(self.limits))

    def score(self, measurements: Mapping[str, Measurement]) -> list[ItemResult]:
        """Turn measurements into points; what was not measured earns none.

        The notebooks as they are handed out make nearly everything that is measured. So that this
        alone earns nothing, it counts as far as the exercises beside it are solved.
        """
        items = [_score(item, measurements.get(item.id)) for item in self.items]
        return [self._beside_exercises(item, items) for item in items]

    def _beside_exercises(self, item: ItemResult, items: Sequence[ItemResult]) -> ItemResult:
        """Return what an item is worth, given the exercises of its notebook."""
        beside = [other for other in items if other.stage == item.stage and other.id in EXERCISES]
        possible = sum(other.maximum for other in beside)
        if item.id in EXERCISES or not possible or not self.exercises_for_full:
            return item
        solved = sum(other.points for other in beside) / possible
        share = min(1.0, solved / self.exercises_for_full)
        if share == 1.0:
            return item
        points = round(share * item.points, DIGITS)
        told = f"counts {share:.0%}, as {solved:.0%} of this notebook's exercises are solved"
        reason = f"{item.reason}; {told}" if item.reason else told
        return replace(item, points=points, reason=reason, hint=UNLOCKS)


def _score(item: Item, measured: Measurement | None) -> ItemResult:
    measurement = measured or Measurement(None, "nothing was measured")
    points = round(item.points * item.share(measurement.value), DIGITS)
    return ItemResult(
        id=item.id,
        stage=item.stage,
        title=item.title,
        points=points,
        maximum=item.points,
        visible=item.visible,
        reason=measurement.detail,
        hint=item.hint if points < item.points else "",
        value=measurement.value,
    )


def load_rubric(path: Path | None = None, profile: str = "smoke") -> Rubric:
    """Read a rubric; values that depend on the profile are taken for this one.

    Args:
        path: A TOML file; the lab's own when None.
        profile: `smoke`, `standard` or `full`.

    Raises:
        RubricError: it is not TOML, or an item is not complete; the message names it.
        UnknownLimit: it changes a limit that does not exist, or to a value that is none.
        UnknownProfile: there is no such profile.
    """
    path = path or RUBRIC
    preset(profile)
    try:
        content = path.read_bytes()
        document = tomllib.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise RubricError(f"the rubric {path} cannot be read: {error}") from error
    entries = document.pop("item", None)
    if not isinstance(entries, list) or not entries:
        raise RubricError(f"{path.name} has no item; expected [[item]] with id, stage, points …")
    items = tuple(_item(entry, profile, path.name) for entry in entries)
    ids = [item.id for item in items]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise RubricError(f"{path.name} has two items {', '.join(twice)}; each id may stand once")
    rest = {"title": "Deploying a model", **document, "sha256": hashlib.sha256(content).hexdigest()}
    try:
        rubric = Rubric(**rest, items=items)
    except ValidationError as error:
        raise RubricError(f"{path.name}: {_told(error)}") from None
    rubric.limits_for(profile)  # says what is wrong before anything is graded
    return rubric


def _item(entry: Any, profile: str, file: str) -> Item:
    """Make an item of a table of the file, with its values for one profile.

    Those stand in tables of their own, such as [item.profile.smoke].
    """
    values = dict(entry) if isinstance(entry, dict) else {}
    where = f"{file}, item {values.get('id', 'without an id')}"
    try:
        tables = Tables.validate_python({"profile": values.pop("profile", {})})["profile"]
        if unknown := sorted(set(tables) - set(PROFILES)):
            known = ", ".join(PROFILES)
            raise RubricError(f"{where}: got profile {unknown[0]!r}, expected {known}")
        return Item(**{**values, **tables.get(profile, {})})
    except ValidationError as error:
        raise RubricError(f"{where}: {_told(error)}") from None


def _told(error: ValidationError) -> str:
    """Return what is wrong, a few words for each place."""
    told = []
    for found in error.errors()[:MOST_TOLD]:
        place, message = ".".join(map(str, found["loc"])), found["msg"]
        if found["type"] == "value_error":
            told.append(message.removeprefix("Value error, "))
        elif found["type"] in ("unexpected_keyword_argument", "missing"):
            told.append(f"{place}: {message}")
        else:
            told.append(f"got {place} {found['input']!r}: {message}")
    return "; ".join(told)
