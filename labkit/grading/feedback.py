"""A result → the pages that a student gets back: `feedback/<student>/`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from labkit.chain import STAGES, CellFinding
from labkit.grading.exercises import EXERCISES
from labkit.grading.notebook_page import render_notebook, stopped_cell
from labkit.grading.pages import (
    INDEX,
    environment,
    href,
    one_line,
    sentence,
    was_cut_short,
    words_for,
    write_page,
)
from labkit.grading.results import (
    ERROR,
    GRADED,
    OK,
    ItemResult,
    Result,
    StageRecord,
)
from labkit.grading.rubric import UNLOCKS
from labkit.grading.submission import safe_name
from labkit.workspace import MADE_BY

EXECUTED: Final = "executed.ipynb"
MOST_LOSSES: Final = 3
FP32: Final = "model.onnx"  # the model that these items hold against the files made from it
AGAINST_FP32: Final = frozenset({"04.torchscript", "04.onnx", "04.openvino"})


@dataclass(frozen=True)
class StageView:
    """What the page shows of one notebook.

    Attributes:
        name: Such as `03_export`.
        record: What became of it; None where the submission was not run at all.
        checks: Its items, of hidden ones only points and title.
        points, maximum: Sums over `checks`.
        page: Link to the executed notebook; empty where nothing ran.
        stopped: A sentence on the cell at which it was stopped; empty where it was not.
        carried: What it was given that was not the student's own, a sentence each.
        went_on: Why later notebooks did not get its files; empty where they did.
    """

    name: str
    record: StageRecord | None
    checks: list[ItemResult]
    points: float
    maximum: float
    page: str
    stopped: str
    carried: list[str]
    went_on: str


@dataclass(frozen=True)
class Loss:
    """What cost points: an item, or something that cost several items theirs.

    Attributes:
        title: What is to be done, or of the item.
        stage: Its notebook; empty where it is about several.
        gap: Points that are missing.
        hint: What to look at; empty for a hidden item.
        cause: What happened; takes the place of a hint.
    """

    title: str
    stage: str
    gap: float
    hint: str = ""
    cause: str = ""


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
    stopped = {}
    for record in result.stages:
        page = folder / f"{record.stage}.html"
        if not record.was_run:
            page.unlink(missing_ok=True)  # of an earlier grading
        else:
            executed = evidence / record.stage / EXECUTED
            cell = stopped_cell(executed) if was_cut_short(record) else None
            if cell:
                stopped[record.stage] = cell
            html = render_notebook(executed, result.shown, record.stage, record.verdict, cell)
            write_page(page, html)
    return write_page(folder / INDEX, render_feedback(result, title, stopped))


def render_feedback(
    result: Result, title: str = "", stopped: Mapping[str, CellFinding] = MappingProxyType({})
) -> str:
    """Return the first page of a student's feedback as HTML.

    Nothing on it comes from other students' submissions, or tells what a hidden item measured.

    Args:
        result: What was graded. Of a submission that was not, nothing is shown but why.
        title: Of the rubric.
        stopped: Notebook → the cell at which it was stopped.
    """
    graded = result.status == GRADED
    reasons = {record.stage: record.reason for record in result.stages}
    said = {
        stage: f"That was in {cell.where}."
        for stage, cell in stopped.items()
        if f"code cell {cell.number} of" not in reasons.get(stage, "")
    }
    return (
        environment()
        .get_template("feedback.html")
        .render(
            result=result,
            title=title,
            graded=graded,
            headline=_headline(result) if graded else [],
            losses=_losses(result, said) if graded else [],
            stages=list(_stages(result, said)) if graded else [],
        )
    )


def _shown(item: ItemResult, record: StageRecord | None) -> ItemResult:
    """Return an item as the student may see it: of a hidden one points and title only.

    A hint is shown where it can be right: not where the notebook never came to what it is about.
    """
    if not item.visible:
        return replace(item, reason="", hint="", value=None)
    if record is None:
        return item
    if not record.was_run:
        why = f"notebook {_number(record.stage)} {words_for(record.verdict).not_run}"
        return replace(item, reason=why, hint="")
    if item.id in AGAINST_FP32 and FP32 in record.used_reference and item.value is not None:
        item = replace(item, reason=f"{item.reason}; FP32 is the reference's {FP32} here")
    return replace(item, hint="") if _is_lost(item, record) else item


def _is_lost(item: ItemResult, record: StageRecord) -> bool:
    """Return whether an item lost its points because its notebook did not come that far."""
    if was_cut_short(record):
        return item.points < item.maximum
    return record.verdict == ERROR and item.value is None and item.id not in EXERCISES


def _headline(result: Result) -> list[str]:
    """Return what the student should take away, computed from the result."""
    lines = []
    if result.stages:
        ran = sum(record.verdict == OK for record in result.stages)
        lines.append(f"{ran} of {len(result.stages)} notebooks ran without an error.")
        if lost := result.carried():
            lines.append(
                f"Later notebooks ran on the course's own files instead of those of {_and(lost)}; "
                "that costs no points there."
            )
    if result.late:
        lines.append("It was handed in late.")
    if result.items:
        full = sum(item.points >= item.maximum for item in result.items)
        lines.append(f"{full} of {len(result.items)} checks earned full points.")
    return lines


def _losses(result: Result, stopped: Mapping[str, str]) -> list[Loss]:
    """Return what cost most, at most `MOST_LOSSES`: what has one cause together."""
    records = {record.stage: record for record in result.stages}
    losses: list[Loss] = []
    absent: dict[str, dict[str, float]] = {}  # verdict → notebook → points
    lost: dict[str, float] = {}  # notebook → points
    locked: dict[str, float] = {}  # notebook → points that its exercises unlock
    for item in result.items:
        gap, record = item.maximum - item.points, records.get(item.stage)
        if gap <= 0:
            continue
        if record and not record.was_run:
            gaps = absent.setdefault(record.verdict, {})
            gaps[item.stage] = gaps.get(item.stage, 0.0) + gap
        elif record and _is_lost(item, record):
            lost[item.stage] = lost.get(item.stage, 0.0) + gap
        elif item.hint == UNLOCKS:
            locked[item.stage] = locked.get(item.stage, 0.0) + gap
        else:
            losses.append(Loss(item.title, item.stage, gap, _shown(item, record).hint))
    for stage, gap in locked.items():
        title = f"Solve the exercises of notebook {_number(stage)}: what it makes counts with them"
        losses.append(Loss(title, stage, gap))
    for verdict, gaps in absent.items():
        title = f"{words_for(verdict).ask} {_notebooks(list(gaps), list(records))}"
        losses.append(Loss(title, next(iter(gaps)) if len(gaps) == 1 else "", sum(gaps.values())))
    for stage, gap in lost.items():
        losses.append(_loss_of_notebook(records[stage], gap, stopped.get(stage, "")))
    return sorted(losses, key=lambda loss: -loss.gap)[:MOST_LOSSES]


def _loss_of_notebook(record: StageRecord, gap: float, stopped: str) -> Loss:
    """Return what a notebook cost that did not come to what was to be measured."""
    cut_short = was_cut_short(record)
    what = "runs to its end" if cut_short else "makes its files"
    happened = words_for(record.verdict).sentence if cut_short else ""
    where = stopped or sentence(record.reason)
    return Loss(
        f"See that notebook {_number(record.stage)} {what}",
        record.stage,
        gap,
        cause=f"{happened} {where}".strip(),
    )


def _stages(result: Result, stopped: Mapping[str, str]) -> Iterable[StageView]:
    """Yield every notebook of the rubric, whether or not it was run."""
    records = {record.stage: record for record in result.stages}
    replaced = result.carried()
    for name in dict.fromkeys([*records, *(item.stage for item in result.items)]):
        record = records.get(name)
        checks = [_shown(item, record) for item in result.items if item.stage == name]
        yield StageView(
            name=name,
            record=record,
            checks=checks,
            points=sum(item.points for item in checks),
            maximum=sum(item.maximum for item in checks),
            page=href(f"{name}.html") if record and record.was_run else "",
            stopped=stopped.get(name, ""),
            carried=list(_carried(record, records)) if record else [],
            went_on=_went_on(record) if record and name in replaced else "",
        )


def _carried(record: StageRecord, records: Mapping[str, StageRecord]) -> Iterable[str]:
    """Yield a sentence for every reason why files of earlier notebooks were replaced."""
    if not record.was_run:
        return
    own: dict[str, list[str]] = {}  # notebook that left unusable files → those files
    together: dict[str, list[str]] = {}  # the same → usable files of other notebooks
    for name in record.used_reference:
        maker = MADE_BY.get(name, "")
        cause = _cause(maker, record.stage, records)
        (own if cause == maker else together).setdefault(cause, []).append(name)
    start = f"Notebook {_number(record.stage)} was run on the reference's"
    for maker, names in own.items():
        if maker and maker not in records:
            number = _number(maker)
            yield f"{start} {_and(names)}: notebook {number} is no part of this assignment."
            continue
        whose = f"yours from notebook {_number(maker)}" if maker else "yours"
        verb = "was" if len(names) == 1 else "were"
        yield (
            f"{start} {_and(names)}, because {whose} {verb} not used"
            f"{_why(records.get(maker), ': {}')}. This costs you nothing here."
        )
    for cause, names in together.items():
        whose = f"notebook {_number(cause)} left no usable"
        rest = "files that belong together were replaced together"
        if unusable := own.get(cause):
            what = unusable[0] if len(unusable) == 1 else "files"
            yield (
                f"It was given the reference's {_and(names)} as well, because {whose} {what}; "
                f"{rest}."
            )
        else:
            yield (
                f"{start} {_and(names)}, because {whose} files"
                f"{_why(records.get(cause), ' ({})')}; {rest}. "
                "This costs you nothing here."
            )


def _cause(maker: str, stage: str, records: Mapping[str, StageRecord]) -> str:
    """Return the notebook on whose account files of `maker` were replaced for `stage`.

    Where a notebook leaves no usable files, those that it was made from are replaced with them.
    """
    if maker not in records or not records[maker].accepted:
        return maker
    before = STAGES[: STAGES.index(stage)]
    failed = [name for name in before if name in records and not records[name].accepted]
    after = STAGES[STAGES.index(maker) + 1 :]
    return next((name for name in failed if name in after), failed[0] if failed else maker)


def _why(record: StageRecord | None, form: str) -> str:
    """Return why a notebook's files are not used, in a form; empty where nothing is said."""
    why = one_line(record.why_not).rstrip(".") if record else ""
    return form.format(why) if why else ""


def _went_on(record: StageRecord) -> str:
    """Return why later notebooks did not get this one's files; empty where nothing is to say."""
    if not record.was_run or not record.why_not:
        return ""
    return f"Its files were not passed on to later notebooks: {one_line(record.why_not)}"


def _notebooks(stages: list[str], order: list[str]) -> str:
    """Name notebooks by their numbers: notebook 03; notebooks 03 and 05; notebooks 03 to 08."""
    numbers = [_number(stage) for stage in stages]
    if len(numbers) == 1:
        return f"notebook {numbers[0]}"
    first = order.index(stages[0])
    if len(numbers) > 2 and stages == order[first : first + len(stages)]:
        return f"notebooks {numbers[0]} to {numbers[-1]}"
    return f"notebooks {_and(numbers)}"


def _number(stage: str) -> str:
    """Return the number of a notebook: `04` of `04_quantize`."""
    return stage.split("_", 1)[0]


def _and(names: list[str]) -> str:
    """Join names as a person writes them: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
