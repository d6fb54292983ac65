"""The rubric: which measurements are worth how many points."""

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from labkit.chain import STAGES
from labkit.errors import UsageError
from labkit.grading.exercises import EXERCISES
from labkit.grading.judge import MEASURES
from labkit.grading.limits import LIMITS, Limits
from labkit.grading.results import ItemResult, Measurement
from labkit.profiles import PROFILES, preset

RUBRIC = Path(__file__).parent / "rubric.toml"
DIGITS = 2  # of points
KNOWN = ", ".join(PROFILES)
KINDS: dict[Any, str] = {str: "text", bool: "true or false", float: "a number"}

# Everything that is measured → the notebook that it belongs to.
MEASURED = {name: stage for stage, names in MEASURES.items() for name in names} | EXERCISES


class RubricError(UsageError):
    """A rubric file that cannot be used."""


@dataclass(frozen=True)
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
    points: float
    full: float = 1.0
    zero: float = 0.0
    partial: bool = True
    visible: bool = True
    hint: str = ""

    def share(self, value: float | None) -> float:
        """Return the share of the points, in [0, 1], that a measured value is worth."""
        if value is None:
            return 0.0
        share = min(1.0, max(0.0, (value - self.zero) / (self.full - self.zero)))
        return share if self.partial or share == 1.0 else 0.0


@dataclass(frozen=True)
class Rubric:
    """All items, and the limits under which notebooks run.

    Attributes:
        title: Of the assignment, as gradebooks name it.
        items: In the order of the feedback.
        limits: Changes to the profile's limits.
        sha256: Of the file, to tell which rubric gave which points.
        exercises_for_full: Share of a notebook's exercise points, in [0, 1], from which on what the
            notebook makes counts in full; below, in proportion. 0: always in full.
    """

    title: str
    items: tuple[Item, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    exercises_for_full: float = 0.0

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
        return replace(item, points=points, reason=reason, hint="solve the exercises beside it")


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
    entries = document.get("item")
    if not isinstance(entries, list) or not entries:
        raise RubricError(f"{path.name} has no item; expected [[item]] with id, stage, points …")
    items = tuple(_item(entry, profile, path.name) for entry in entries)
    ids = [item.id for item in items]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise RubricError(f"{path.name} has two items {', '.join(twice)}; each id may stand once")
    limits = document.get("limits", {})
    if not isinstance(limits, dict):
        raise RubricError(f"{path.name}: got limits {limits!r}, expected one table [limits]")
    LIMITS[profile].changed(limits)  # says what is wrong before anything is graded
    title = document.get("title", "Deploying a model")
    share = document.get("exercises_for_full", 0.0)
    if not _is_a(float, share) or not 0 <= share <= 1:
        raise RubricError(
            f"{path.name}: got exercises_for_full {share!r}, expected a share from 0 to 1"
        )
    return Rubric(str(title), items, limits, hashlib.sha256(content).hexdigest(), share)


def _item(entry: Any, profile: str, file: str) -> Item:
    """Make an item of a table of the file."""
    values = dict(entry) if isinstance(entry, dict) else {}
    where = f"{file}, item {values.get('id', 'without an id')}"
    values |= _special(values.pop("profile", {}), profile, where)
    names = [part.name for part in fields(Item)]
    if unknown := sorted(set(values) - set(names)):
        known = ", ".join(names)
        raise RubricError(f"{where}: got {', '.join(unknown)}, expected some of: {known}")
    if missing := sorted({"id", "stage", "title", "points"} - set(values)):
        raise RubricError(f"{where}: {', '.join(missing)} missing")
    item = Item(**values)
    for part in fields(item):
        value = getattr(item, part.name)
        if not _is_a(part.type, value):
            kind = KINDS[part.type]
            raise RubricError(f"{where}: got {part.name} {value!r}, expected {kind}")
    if item.id not in MEASURED:
        known = ", ".join(MEASURED)
        raise RubricError(f"{where}: nothing measures it; expected one of: {known}")
    if item.stage != MEASURED[item.id]:
        raise RubricError(f"{where}: got stage {item.stage!r}, expected {MEASURED[item.id]!r}")
    if item.points < 0 or item.full == item.zero:
        raise RubricError(
            f"{where}: got points {item.points}, full {item.full}, zero {item.zero}; "
            "expected points ≥ 0, and full and zero to differ"
        )
    return item


def _special(tables: Any, profile: str, where: str) -> dict[str, Any]:
    """Return an item's values for one profile, such as those of [item.profile.smoke]."""
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise RubricError(f"{where}: got profile {tables!r}, expected [item.profile.smoke] …")
    if unknown := sorted(set(tables) - set(PROFILES)):
        raise RubricError(f"{where}: got profile {unknown[0]!r}, expected {KNOWN}")
    return tables.get(profile, {})


def _is_a(kind: Any, value: Any) -> bool:
    """Return whether a value of the file is text, a truth value, or a finite number."""
    if kind is not float:
        return type(value) is kind
    return type(value) in (int, float) and abs(value) < math.inf
