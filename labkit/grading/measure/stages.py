"""What measures which stage; and the measurements that need nothing but JSON."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data import SPLIT_SIZES
from labkit.grading.measure.base import (
    Case,
    Checks,
    StageMeasurements,
    entry,
    number,
    split_indices,
)
from labkit.grading.measure.images import TRAINING_IMAGES
from labkit.grading.measure.models import measure_export, measure_quantization, measure_training
from labkit.grading.measure.serving import (
    measure_configuration,
    measure_pipeline,
    measure_queries,
    measure_tuning,
)
from labkit.grading.results import Measurement
from labkit.grading.untrusted import UnfitFile, short_line
from labkit.grading.workdir import write_manifest
from labkit.report import REPORTED, build_report, marks, validate_report
from labkit.workspace import Workspace

PAGE_BYTES = 10_000
MOST_REPORT_BYTES = 300_000  # the lab's own has a third; holding it against the schema takes time
MAX_DETAIL = 800  # characters of a sentence for the student


def measure_stage(stage: str, case: Case) -> StageMeasurements:
    """Measure what a stage has made.

    Args:
        stage: Such as `03_export`.
        case: The submission: what the stage was given and what it made.

    Returns:
        A measurement for every item of the stage, also where nothing could be measured.
    """
    measure, items = MEASURERS[stage]
    try:
        return _printable(measure(case))
    except UnfitFile as error:  # of what the stage was given, or a sandbox that was stopped
        missing = dict.fromkeys(items, Measurement(None, str(error)))
        return _printable(StageMeasurements(missing, [str(error)]))


def measure_patiently(
    stage: str, case: Case, alone: Callable[[], AbstractContextManager[None]] = nullcontext
) -> tuple[StageMeasurements, str]:
    """Measure a stage; where the machine was too busy for that, once more.

    Args:
        stage: Such as `03_export`.
        case: The submission: what the stage was given and what it made.
        alone: Waits until nothing runs beside it.

    Returns:
        The measurements; and why they are none, by the grader's own fault. Empty where they are.
    """
    sandbox = case.sandbox
    sandbox.forget_trouble()
    measured = measure_stage(stage, case)
    if sandbox.starved or sandbox.trouble:
        with alone():
            sandbox.forget_trouble()
            case.forget_failures()
            measured = measure_stage(stage, case)
    return measured, sandbox.trouble


def _printable(measured: StageMeasurements) -> StageMeasurements:
    """Return measurements whose sentences fit a page, whatever text of strangers they quote."""
    told = {
        item: replace(measurement, detail=short_line(measurement.detail, MAX_DETAIL))
        for item, measurement in measured.measurements.items()
    }
    problems = [] if measured.accepted else [short_line(measured.why_not, MAX_DETAIL)]
    return StageMeasurements(told, problems)


def measure_data(case: Case) -> StageMeasurements:
    """The splits: sizes, range, no image twice, every class in equal shares."""
    indices = split_indices(case.document("splits.json"))
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
    measured = StageMeasurements.one("01.splits", measurement, usable)
    try:
        require_statistics(case.document("statistics.json"))
    except UnfitFile as error:
        measured.require(False, str(error))
    return measured


def require_statistics(document: Any) -> None:
    """Refuse a `statistics.json` that no network can be trained with.

    Raises:
        UnfitFile: mean and standard deviation are not three numbers each, of pixels in [0, 1].
    """
    for name, low, high in (("mean", 0.3, 0.7), ("std", 0.1, 0.4)):
        values = entry(document, name)
        found = [number(value) for value in values] if isinstance(values, list) else []
        if len(found) != 3 or not all(v is not None and low <= v <= high for v in found):
            raise UnfitFile(
                f"statistics.json: {name} is no list of three numbers between {low:g} and {high:g}"
            )


def measure_report(case: Case) -> StageMeasurements:
    """The report fits its schema, shows what was measured, and its values are the evidence's."""
    checks = Checks()
    report = case.document("report.json")
    page = case.own("report.html")
    problem = _report_problem(case, report)
    checks.add(not problem, problem)
    rows = report.get("variants")
    rows = rows if isinstance(rows, list) else []
    names = [entry(row, "name") for row in rows]
    checks.add(names == list(REPORTED), "report.json has not a row for every variant")
    checks.add(page.stat().st_size > PAGE_BYTES, "report.html is nearly empty")
    measurement = checks.measurement("every value of the report is the one in its evidence file")
    return StageMeasurements.one("08.report", measurement, accepted=True)


def _report_problem(case: Case, report: Any) -> str:
    """Hold a report against the evidence that the notebook was given; say what is wrong."""
    size = case.own("report.json").stat().st_size
    if size > MOST_REPORT_BYTES:
        return f"report.json has {size:,} bytes, expected at most {MOST_REPORT_BYTES:,}"
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


# Stage → what measures it, and the items of the rubric that it measures.
MEASURERS: dict[str, tuple[Callable[[Case], StageMeasurements], tuple[str, ...]]] = {
    "01_data": (measure_data, ("01.splits",)),
    "02_train": (measure_training, ("02.accuracy", "02.history")),
    "03_export": (
        measure_export,
        ("03.torchscript", "03.optimized", "03.onnx", "03.evidence"),
    ),
    "04_quantize": (
        measure_quantization,
        ("04.torchscript", "04.onnx", "04.openvino", "04.evidence"),
    ),
    "05_configure": (measure_configuration, ("05.configs", "05.served")),
    "06_serve": (measure_queries, ("06.answers",)),
    "07_tune": (measure_tuning, ("07.tuned",)),
    "10_pipeline": (measure_pipeline, ("10.answers",)),
    "08_report": (measure_report, ("08.report",)),
}
MEASURES = {stage: items for stage, (_, items) in MEASURERS.items()}
