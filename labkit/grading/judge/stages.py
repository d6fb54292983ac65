"""Which judgement belongs to which stage; and those that need nothing but JSON."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data import SPLIT_SIZES
from labkit.grading.box import write_manifest
from labkit.grading.files import UnfitFile
from labkit.grading.judge.base import Case, Checks, Judgement, entry, nothing
from labkit.grading.judge.models import judge_export, judge_quantization, judge_training
from labkit.grading.judge.serving import judge_configuration, judge_queries, judge_tuning
from labkit.grading.printable import short_line
from labkit.report import build_report, marks, validate_report
from labkit.repository import VARIANTS
from labkit.workspace import Workspace

TRAINING_IMAGES = 50_000
PAGE_BYTES = 10_000
MAX_DETAIL = 800  # characters of a sentence for the student

# Which items of the rubric each stage's judgement measures.
MEASURES: dict[str, tuple[str, ...]] = {
    "01_data": ("01.splits",),
    "02_train": ("02.accuracy", "02.history"),
    "03_export": ("03.torchscript", "03.optimized", "03.onnx", "03.evidence"),
    "04_quantize": ("04.torchscript", "04.onnx", "04.openvino", "04.evidence"),
    "05_configure": ("05.configs", "05.served"),
    "06_serve": ("06.answers",),
    "07_tune": ("07.tuned",),
    "08_report": ("08.report",),
}


def judge_stage(stage: str, case: Case) -> Judgement:
    """Measure what a stage has made.

    Args:
        stage: Such as `03_export`.
        case: The submission: what the stage was given and what it made.

    Returns:
        A measurement for every item of the stage, also where nothing could be measured.
    """
    try:
        return _printable(JUDGES[stage](case))
    except UnfitFile as error:  # of what the stage was given, or a sandbox that was stopped
        missing = dict.fromkeys(MEASURES[stage], nothing(error))
        return _printable(Judgement(missing, False, str(error)))


def _printable(judgement: Judgement) -> Judgement:
    """Return a judgement whose sentences fit a page, whatever strangers' text is quoted in them."""
    told = {
        item: replace(measured, detail=short_line(measured.detail, MAX_DETAIL))
        for item, measured in judgement.measurements.items()
    }
    return replace(judgement, measurements=told, why_not=short_line(judgement.why_not, MAX_DETAIL))


def judge_data(case: Case) -> Judgement:
    """The splits: sizes, range, no image twice, every class in equal shares."""
    try:
        indices = split_indices(case.document("splits.json"))
    except UnfitFile as error:
        return Judgement({"01.splits": nothing(error)}, False, str(error))
    checks = Checks()
    sizes = {name: len(part) for name, part in indices.items()}
    usable = checks.add(sizes == SPLIT_SIZES, f"got sizes {sizes}, expected {SPLIT_SIZES}")
    together = np.concatenate([np.asarray(part, np.int64) for part in indices.values()])
    repeated = len(together) - len(np.unique(together))
    usable &= checks.add(repeated == 0, f"{repeated} images are in more than one part, or twice")
    usable &= checks.add(
        bool(((together >= 0) & (together < TRAINING_IMAGES)).all()),
        f"some indices are not among the {TRAINING_IMAGES:,} training images",
    )
    if usable:
        counts = [
            np.bincount(case.images.training_labels[np.asarray(part)], minlength=10)
            for part in indices.values()
        ]
        checks.add(
            all(int(np.ptp(count)) <= 0.05 * count.mean() for count in counts),
            "the classes do not have equal shares in every part",
        )
    measurement = checks.measurement("three parts of the right sizes, no image in two of them")
    return Judgement({"01.splits": measurement}, usable, "" if usable else measurement.detail)


def split_indices(document: Any) -> dict[str, list[int]]:
    """Return the indices of a `splits.json`.

    Raises:
        UnfitFile: it has no such lists of whole numbers.
    """
    indices = document.get("indices") if isinstance(document, dict) else None
    if not isinstance(indices, dict) or set(indices) != set(SPLIT_SIZES):
        raise UnfitFile(f"splits.json names no indices of {', '.join(SPLIT_SIZES)}")
    for name, part in indices.items():
        whole = isinstance(part, list) and len(part) <= TRAINING_IMAGES
        if not whole or not all(type(i) is int and abs(i) < 2**31 for i in part):
            raise UnfitFile(f"splits.json: {name} is no list of at most 50,000 whole numbers")
    return indices


def judge_report(case: Case) -> Judgement:
    """The report fits its schema, shows what was measured, and its values are the evidence's."""
    checks = Checks()
    try:
        report = case.document("report.json")
        page = case.own("report.html")
    except UnfitFile as error:
        return Judgement({"08.report": nothing(error)}, False, str(error))
    problem = _report_problem(case, report)
    checks.add(not problem, problem)
    rows = report.get("variants")
    rows = rows if isinstance(rows, list) else []
    names = [entry(row, "name") for row in rows]
    checks.add(names == list(VARIANTS), "report.json has not a row for every variant")
    checks.add(page.stat().st_size > PAGE_BYTES, "report.html is nearly empty")
    measurement = checks.measurement("every value of the report is the one in its evidence file")
    return Judgement({"08.report": measurement}, True)


def _report_problem(case: Case, report: Any) -> str:
    """Hold a report against the evidence that the notebook was given; say what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace = Workspace(root, root / "model_repository")
        workspace.artifacts.mkdir()
        for name, path in case.given.items():
            shutil.copyfile(path, workspace.path(name))
        write_manifest(workspace.root, case.given)
        try:
            validate_report(report, workspace)
            return _left_out(report, build_report(workspace))
        except Exception as error:  # of a stranger's JSON, anything
            return f"report.json: {(str(error) or type(error).__name__).splitlines()[0][:300]}"


def _left_out(report: Any, expected: dict[str, Any]) -> str:
    """Say which values that were measured a report does not show."""
    shown = _places(report)
    missing = [place for place in _places(expected) if place not in shown]
    if not missing:
        return ""
    file, pointer = missing[0]
    count = f"{len(missing):,} values that were measured"
    return f"report.json leaves out {count}, such as {file}{pointer}"


def _places(report: Any) -> dict[tuple[str, str], None]:
    """Return file and place of every value that a report shows, in its order."""
    found = (mark["evidence"] for mark in marks(report))
    return dict.fromkeys((place["file"], place["pointer"]) for place in found)


JUDGES: dict[str, Callable[[Case], Judgement]] = {
    "01_data": judge_data,
    "02_train": judge_training,
    "03_export": judge_export,
    "04_quantize": judge_quantization,
    "05_configure": judge_configuration,
    "06_serve": judge_queries,
    "07_tune": judge_tuning,
    "08_report": judge_report,
}
