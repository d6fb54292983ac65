"""A result → the pages that a student gets back: `feedback/<student>/`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from labkit.chain import STAGES, CellFinding
from labkit.grading.exercises import EXERCISES
from labkit.grading.find_submissions import safe_name
from labkit.grading.notebook_page import render_notebook, stopped_cell
from labkit.grading.pages import INDEX, environment, words_for, write_page
from labkit.grading.results import ERROR, GRADED, ItemResult, Result, StageRecord
from labkit.grading.rubric import UNLOCKS
from labkit.workspace import MADE_BY

EXECUTED: Final = "executed.ipynb"
MOST_LOSSES: Final = 3
FP32: Final = "model.onnx"  # the model that these items hold against the files made from it
AGAINST_FP32: Final = frozenset({"04.torchscript", "04.onnx", "04.openvino"})


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
            cell = stopped_cell(executed) if words_for(record.verdict).cut_short else None
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
    records = {record.stage: record for record in result.stages}
    graded = result.status == GRADED
    return (
        environment()
        .get_template("feedback.html")
        .render(
            result=result,
            title=title,
            graded=graded,
            in_full=sum(item.points >= item.maximum for item in result.items),
            losses=_losses(result) if graded else [],
            stages=list(_stages(result)) if graded else [],
            records=records,
            carried=result.carried(),
            stopped={
                stage: cell.where
                for stage, cell in stopped.items()
                if f"code cell {cell.number} of" not in records[stage].reason
            },
            number=_number,
            listed=_listed,
            notebooks=_notebooks,
        )
    )


# ---- what each notebook's section shows


@dataclass(frozen=True)
class Replaced:
    """Files of earlier notebooks in whose place a notebook was given the reference's.

    Attributes:
        own: Notebook that left unusable files → those files.
        together: The same → usable files of other notebooks, which belong together with those.
    """

    own: Mapping[str, list[str]]
    together: Mapping[str, list[str]]


@dataclass(frozen=True)
class StageView:
    """What the page shows of one notebook.

    Attributes:
        name: Such as `03_export`.
        record: What became of it; None where the submission was not run at all.
        checks: Its items, of hidden ones only points and title.
        replaced: What it was given that was not the student's own.
    """

    name: str
    record: StageRecord | None
    checks: list[ItemResult]
    replaced: Replaced


def _stages(result: Result) -> Iterable[StageView]:
    """Yield every notebook of the rubric, whether or not it was run."""
    records = {record.stage: record for record in result.stages}
    for name in dict.fromkeys([*records, *(item.stage for item in result.items)]):
        record = records.get(name)
        checks = [_shown(item, record) for item in result.items if item.stage == name]
        replaced = _replaced(record, records) if record and record.was_run else Replaced({}, {})
        yield StageView(name, record, checks, replaced)


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
    if words_for(record.verdict).cut_short:
        return item.points < item.maximum
    return record.verdict == ERROR and item.value is None and item.id not in EXERCISES


def _replaced(record: StageRecord, records: Mapping[str, StageRecord]) -> Replaced:
    """Return which files a notebook was given in place of the student's, by who caused it."""
    own: dict[str, list[str]] = {}
    together: dict[str, list[str]] = {}
    for name in record.used_reference:
        maker = MADE_BY.get(name, "")
        cause = _cause(maker, record.stage, records)
        (own if cause == maker else together).setdefault(cause, []).append(name)
    return Replaced(own, together)


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


# ---- what cost most


@dataclass(frozen=True)
class Loss:
    """What cost points: an item, or something that cost several items theirs.

    Attributes:
        kind: `item`; `locked` where a notebook's exercises are not solved; `lost` where a notebook
            did not come to what was to be measured; `not_run` for notebooks that were not run.
        items: The items, as they are shown.
    """

    kind: str
    items: list[ItemResult]

    @property
    def gap(self) -> float:
        """Points that are missing."""
        return sum(item.maximum - item.points for item in self.items)

    @property
    def stages(self) -> list[str]:
        """The notebooks that it is about."""
        return list(dict.fromkeys(item.stage for item in self.items))


def _losses(result: Result) -> list[Loss]:
    """Return what cost most, at most `MOST_LOSSES`: what has one cause together."""
    records = {record.stage: record for record in result.stages}
    found: dict[tuple[str, str], list[ItemResult]] = defaultdict(list)
    for item in result.items:
        record = records.get(item.stage)
        if item.points < item.maximum:
            found[_cause_of_loss(item, record)].append(_shown(item, record))
    losses = [Loss(kind, items) for (kind, _), items in found.items()]
    return sorted(losses, key=lambda loss: -loss.gap)[:MOST_LOSSES]


def _cause_of_loss(item: ItemResult, record: StageRecord | None) -> tuple[str, str]:
    """Return what cost an item points: the kind, see `Loss`, and what it is of that kind."""
    if record and not record.was_run:
        return "not_run", record.verdict
    if record and _is_lost(item, record):
        return "lost", item.stage
    if item.hint == UNLOCKS:
        return "locked", item.stage
    return "item", item.id


# ---- words


def _notebooks(stages: list[str], order: Iterable[str]) -> str:
    """Name notebooks by their numbers: notebook 03; notebooks 03 and 05; notebooks 03 to 08."""
    numbers = [_number(stage) for stage in stages]
    if len(numbers) == 1:
        return f"notebook {numbers[0]}"
    graded = list(order)
    first = graded.index(stages[0])
    if len(numbers) > 2 and stages == graded[first : first + len(stages)]:
        return f"notebooks {numbers[0]} to {numbers[-1]}"
    return f"notebooks {_listed(numbers)}"


def _number(stage: str) -> str:
    """Return the number of a notebook: `04` of `04_quantize`."""
    return stage.split("_", 1)[0]


def _listed(names: list[str]) -> str:
    """Join names as a person writes them: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
