"""A result → the pages that a student gets back: `feedback/<student>/`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from labkit.grading.intake import safe_name
from labkit.grading.notebook_page import render_notebook
from labkit.grading.pages import (
    INDEX,
    environment,
    href,
    one_line,
    write_page,
)
from labkit.grading.results import (
    AMBIGUOUS,
    INVALID,
    MISSING,
    OK,
    ItemResult,
    Result,
    StageRecord,
)
from labkit.workspace import MADE_BY

EXECUTED: Final = "executed.ipynb"
NOT_RUN: Final = frozenset({MISSING, AMBIGUOUS, INVALID})
MOST_LOSSES: Final = 3


@dataclass(frozen=True)
class StageView:
    """What the page shows of one notebook.

    Attributes:
        name: Such as `03_export`.
        record: What became of it; None where the submission was not run at all.
        checks: Its items, of hidden ones only points and title.
        points, maximum: Sums over `checks`.
        page: Link to the executed notebook; empty where nothing ran.
        carried: What it was given that was not the student's own, a sentence each.
        went_on: Why later notebooks did not get its files; empty where they did.
    """

    name: str
    record: StageRecord | None
    checks: list[ItemResult]
    points: float
    maximum: float
    page: str
    carried: list[str]
    went_on: str


@dataclass(frozen=True)
class Loss:
    """An item that cost points.

    Attributes:
        title, stage: Of the item.
        gap: Points that are missing.
        hint: What to look at; empty for a hidden item.
    """

    title: str
    stage: str
    gap: float
    hint: str


def write_feedback(out: Path, result: Result, evidence: Path, title: str = "") -> Path:
    """Write the pages of one student.

    Args:
        out: Folder of the grades; the pages go to `feedback/<student>/` below it.
        result: What was graded.
        evidence: The submission's folder with `<stage>/executed.ipynb`.
        title: Of the rubric.

    Returns:
        The first page, `index.html`.
    """
    folder = out / "feedback" / safe_name(result.student)
    for record in result.stages:
        page = folder / f"{record.stage}.html"
        if record.verdict in NOT_RUN:
            page.unlink(missing_ok=True)  # of an earlier grading
        else:
            executed = evidence / record.stage / EXECUTED
            write_page(page, render_notebook(executed, result.student, record.stage))
    return write_page(folder / INDEX, render_feedback(result, title))


def render_feedback(result: Result, title: str = "") -> str:
    """Return the first page of a student's feedback as HTML.

    Nothing on it comes from other students' submissions, or tells what a hidden item measured.
    """
    items = [_shown(item) for item in result.items]
    return (
        environment()
        .get_template("feedback.html")
        .render(
            result=result,
            title=title,
            headline=_headline(result),
            losses=_losses(items),
            stages=list(_stages(result, items)),
        )
    )


def _shown(item: ItemResult) -> ItemResult:
    """Return an item as the student may see it: of a hidden one points and title only."""
    return item if item.visible else replace(item, reason="", hint="", value=None)


def _headline(result: Result) -> list[str]:
    """Return what the student should take away, computed from the result."""
    lines = []
    if result.stages:
        ran = sum(record.verdict == OK for record in result.stages)
        lines.append(f"{ran} of {len(result.stages)} notebooks ran without an error.")
        lost = [record.stage for record in result.stages if _went_on(record)]
        if lost:
            lines.append(
                f"Later notebooks ran on the course's own files instead of those of {_and(lost)}; "
                "that costs no points there."
            )
    if result.items:
        full = sum(item.points >= item.maximum for item in result.items)
        lines.append(f"{full} of {len(result.items)} checks earned full points.")
    return lines


def _losses(items: Iterable[ItemResult]) -> list[Loss]:
    """Return the items that cost most, at most `MOST_LOSSES`."""
    missed = [
        Loss(item.title, item.stage, item.maximum - item.points, item.hint)
        for item in items
        if item.points < item.maximum
    ]
    return sorted(missed, key=lambda loss: -loss.gap)[:MOST_LOSSES]


def _stages(result: Result, items: list[ItemResult]) -> Iterable[StageView]:
    """Yield every notebook of the rubric, whether or not it was run."""
    records = {record.stage: record for record in result.stages}
    for name in dict.fromkeys([*records, *(item.stage for item in items)]):
        record = records.get(name)
        checks = [item for item in items if item.stage == name]
        yield StageView(
            name=name,
            record=record,
            checks=checks,
            points=sum(item.points for item in checks),
            maximum=sum(item.maximum for item in checks),
            page=href(f"{name}.html") if record and record.verdict not in NOT_RUN else "",
            carried=list(_carried(record, records)) if record else [],
            went_on=_went_on(record) if record else "",
        )


def _carried(record: StageRecord, records: dict[str, StageRecord]) -> Iterable[str]:
    """Yield a sentence for every earlier notebook whose files were replaced for this one."""
    makers: dict[str, list[str]] = {}
    for name in record.used_reference:
        makers.setdefault(MADE_BY.get(name, ""), []).append(name)
    for maker, names in makers.items():
        why = one_line(records[maker].why_not) if maker in records else ""
        whose = f"yours from notebook {_number(maker)}" if maker else "yours"
        reason = f": {why.rstrip('.')}" if why else ""
        verb = "was" if len(names) == 1 else "were"
        yield (
            f"Notebook {_number(record.stage)} was run on the reference's {_and(names)}, because "
            f"{whose} {verb} not used{reason}. This costs you nothing here."
        )


def _went_on(record: StageRecord) -> str:
    """Return why later notebooks did not get this one's files; empty where they did."""
    if record.accepted or not record.why_not:
        return ""
    return f"Its files were not passed on to later notebooks: {one_line(record.why_not)}"


def _number(stage: str) -> str:
    """Return the number of a notebook: `04` of `04_quantize`."""
    return stage.split("_", 1)[0]


def _and(names: list[str]) -> str:
    """Join names as a person writes them: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
