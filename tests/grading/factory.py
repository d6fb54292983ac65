"""Results as a real class would give them, and notebooks as a sandbox would leave them."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from labkit.grading import results as verdicts
from labkit.grading.results import (
    FAILED,
    GRADED,
    REJECTED,
    ItemResult,
    Measurement,
    Result,
    StageRecord,
)
from labkit.workspace import MADE_BY

STAGES = ("01_data", "02_train", "03_export", "04_quantize")
STAGES += ("05_configure", "06_serve", "07_tune", "08_report")

# id, stage, title, points, visible, hint
RUBRIC = (
    ("ex-01-leak", 0, "The leaking split is found", 2, True, "compare the indices of the splits"),
    ("ex-01-statistics", 0, "Mean and deviation of the training images", 2, True, "per channel"),
    ("01.splits", 0, "The splits share no image", 4, True, "see make_splits"),
    ("ex-02-learning-rate", 1, "The learning-rate schedule", 2, True, "it ends at zero"),
    ("ex-02-calibration", 1, "The calibration error", 2, True, "weigh each bin by its answers"),
    ("02.accuracy", 1, "Accuracy on held-out images", 8, False, "SECRET train longer"),
    ("02.history", 1, "The training history", 2, True, "one entry per epoch"),
    ("ex-03-fold", 2, "Batch norm folded into the convolution", 2, True, "mind epsilon"),
    ("ex-03-batch", 2, "A batch axis of any size", 2, True, "dynamic_axes"),
    ("03.torchscript", 2, "model.pt predicts what the checkpoint predicts", 4, True, "eval mode"),
    ("03.optimized", 2, "model_optimized.pt predicts the same", 4, True, "freeze after eval()"),
    ("03.onnx", 2, "model.onnx predicts the same", 4, True, "opset and axis names"),
    ("03.evidence", 2, "export.json tells what was measured", 2, True, "run it to the end"),
    ("ex-04-quantize", 3, "Quantize and dequantize", 2, True, "round half to even"),
    ("ex-04-broken", 3, "The broken layer", 2, True, "compare in order"),
    ("04.torchscript", 3, "INT8 TorchScript keeps its accuracy", 4, True, "calibrate"),
    ("04.onnx", 3, "INT8 ONNX keeps its accuracy", 4, True, "weights per channel"),
    ("04.openvino", 3, "INT8 OpenVINO keeps its accuracy", 4, True, "calibrate on preprocessed"),
    ("04.evidence", 3, "quantize.json tells what was measured", 2, True, "run it to the end"),
    ("ex-05-repair", 4, "The broken configuration is repaired", 2, True, "read the finding"),
    ("ex-05-split", 4, "A split of cores", 2, True, "instances times threads"),
    ("05.configs", 4, "Every configuration fits its files", 6, True, "run `labkit check`"),
    ("05.served", 4, "The server loads and answers with every variant", 8, False, "SECRET log"),
    ("ex-06-body", 5, "The binary body", 2, True, "v2/models"),
    ("ex-06-split", 5, "Time split into queue and compute", 2, True, "differences of counters"),
    ("06.answers", 5, "Answers of every variant", 6, True, "preprocess as in training"),
    ("ex-07-little", 6, "Little's law", 2, True, "rate times time"),
    ("ex-07-choose", 6, "The best setting under a limit", 2, True, "filter first"),
    (
        "07.tuned",
        6,
        "The tuned configuration is written back",
        4,
        True,
        "write_config(name='tuned')",
    ),
    ("ex-08-front", 7, "The Pareto front", 2, True, "no other is better in both"),
    ("ex-08-error", 7, "Standard error of an accuracy", 2, True, "sqrt(p(1-p)/n)"),
    ("08.report", 7, "The report fits its schema", 2, True, "run it to the end"),
)
NAMES = (
    "abel_n", "bianchi", "chen_wei", "dupont.j", "eriksson", "fischer-k", "garcia_m", "hansen",
    "ito.y", "jansen", "kowalska", "lópez", "müller_t", "nguyen.h", "o'brien", "petrov",
    "quist", "rossi.a", "Smith, Jane", "takahashi", "ünal", "varga", "wójcik", "李雷",
    "yilmaz", "zhang", "almeida", "brown", "cohen", "dubois",
)  # fmt: skip


def make_item(number: int, share: float) -> ItemResult:
    """One item of the rubric with a share of its points."""
    name, stage, title, maximum, visible, hint = RUBRIC[number]
    points = round(maximum * share * 4) / 4
    full = points >= maximum
    return ItemResult(
        id=name,
        stage=STAGES[stage],
        title=title,
        points=points,
        maximum=maximum,
        visible=visible,
        reason=f"{share:.0%} of the cases are right" if visible else f"SECRET measured {share:.3f}",
        hint="" if full else hint,
        value=share,
    )


def make_record(
    stage: str, verdict: str = verdicts.OK, accepted: bool = True, **changes: Any
) -> StageRecord:
    """One notebook's record; `changes` override fields."""
    made = [name for name, maker in MADE_BY.items() if maker == stage]
    fields: dict[str, Any] = {
        "reason": "" if verdict == verdicts.OK else REASONS.get(verdict, ""),
        "seconds": 31.5,
        "cpu_s": 55.0,
        "peak_memory_mib": 812.0,
        "artifacts": {name: f"{len(name):064x}" for name in made} if accepted else {},
        "accepted": accepted,
        "why_not": "" if accepted else f"{made[0]} was not made.",
    }
    return StageRecord(stage, verdict, **{**fields, **changes})


REASONS = {
    verdicts.ERROR: "Cell 12 raised ValueError: shapes (32, 10) and (10,) differ.",
    verdicts.STOPPED: "The kernel exited in cell 9.",
    verdicts.TIMEOUT: "The limit is 600 s.",
    verdicts.OOM: "The limit is 4,096 MiB.",
    verdicts.MISSING: "No file looks like this notebook.",
    verdicts.GRADER_ERROR: "The probe did not start.",
}


def make_result(student: str = "ada", share: float = 1.0, **changes: Any) -> Result:
    """A graded submission whose every item earned `share` of its points."""
    items = changes.pop("items", [make_item(number, share) for number in range(len(RUBRIC))])
    stages = changes.pop("stages", [make_record(stage) for stage in STAGES])
    fields: dict[str, Any] = {
        "status": GRADED,
        "profile": "smoke",
        "measurements": {item.id: Measurement(item.value, item.reason) for item in items},
        "points": sum(item.points for item in items),
        "maximum": sum(item.maximum for item in items),
        "submission_sha256": "ab" * 32,
        "rubric_sha256": "cd" * 32,
        "seed": 77123,
        "isolation": "bubblewrap 0.11.0",
        "timings": {"notebooks": 320.0, "measure": 41.0, "total": 363.0},
    }
    return Result(student=student, items=items, stages=stages, **{**fields, **changes})


def make_class(n: int = 30, seed: int = 5) -> list[Result]:
    """A class of `n`: most do well, some hit limits, one is rejected, one met a failing grader."""
    chance = random.Random(seed)
    return [_student(place, chance) for place in range(n)]


def _student(place: int, chance: random.Random) -> Result:
    """One student of the class; the same place and generator state give the same result."""
    name = NAMES[place % len(NAMES)] + (f"_{place}" if place >= len(NAMES) else "")
    skill = min(1.0, max(0.2, chance.gauss(0.85, 0.18)))
    special = {3: verdicts.TIMEOUT, 11: verdicts.OOM, 17: verdicts.MISSING, 22: verdicts.STOPPED}
    if place == 8:
        reason = "The archive cannot be read: it is not a zip file."
        return make_result(
            name, 0.0, status=REJECTED, reason=reason, stages=[], timings={}, measurements={}
        )
    if place == 14:
        return make_result(name, 0.0, status=FAILED, reason="The disk was full.", stages=[])
    stages, lost = [], set()
    for number, stage in enumerate(STAGES):
        verdict = verdicts.OK if chance.random() < 0.6 + 0.4 * skill else verdicts.ERROR
        if place in special and number == 3:
            verdict = special[place]
        accepted = verdict == verdicts.OK or chance.random() < 0.4
        carried = [name for name, maker in MADE_BY.items() if maker in lost][:3]
        seconds = chance.uniform(8, 70) * (8 if verdict == verdicts.TIMEOUT else 1)
        stages.append(
            make_record(stage, verdict, accepted, used_reference=carried, seconds=seconds)
        )
        if not accepted:
            lost.add(stage)
    items = []
    for number, (_, stage_number, *_rest) in enumerate(RUBRIC):
        difficulty = 0.25 * (number * 7 % 5) / 4
        right = chance.random() < skill - difficulty + 0.15
        share = 1.0 if right else chance.choice([0.0, 0.0, 0.5, 0.75])
        items.append(make_item(number, 0.0 if STAGES[stage_number] in lost else share))
    same = {"splits.json": [other for other in NAMES[:6] if other != name]} if place < 6 else {}
    if place in (20, 21):
        other = NAMES[41 - place]
        same = {name: [other] for name in ("checkpoint.pt", "model.pt", "model.onnx")}
    seconds = sum(record.seconds for record in stages)
    timings = {"notebooks": seconds, "measure": chance.uniform(25, 60), "total": seconds + 60}
    notes = ["A copy of 03_export.ipynb in backup/ was left out."] if place % 9 == 4 else []
    return make_result(name, items=items, stages=stages, same_as=same, timings=timings, notes=notes)


def png(width: int = 60, height: int = 40) -> str:
    """A small blue PNG as base64."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "#0072B2").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def code_cell(source: str, *outputs: dict[str, Any], count: int | None = 1) -> dict[str, Any]:
    """A code cell as nbformat 4 writes it."""
    return {
        "cell_type": "code",
        "execution_count": count,
        "metadata": {},
        "outputs": list(outputs),
        "source": source,
    }


def markdown_cell(source: str) -> dict[str, Any]:
    """A markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    """What a cell printed."""
    return {"output_type": "stream", "name": name, "text": text}


def display(**data: Any) -> dict[str, Any]:
    """What a cell displayed; `image_png` becomes `image/png`."""
    formats = {name.replace("_", "/", 1): value for name, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": formats}


def error(name: str, message: str) -> dict[str, Any]:
    """What a cell raised."""
    trace = [f"\x1b[0;31m{name}\x1b[0m: {message}"]
    return {"output_type": "error", "ename": name, "evalue": message, "traceback": trace}


def write_executed(
    evidence: Path, student: str, stage: str, cells: list[dict[str, Any]] | str | bytes
) -> Path:
    """Write an executed notebook where grading leaves it; text or bytes are written as they are."""
    path = evidence / student / stage / "executed.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(cells, bytes):
        path.write_bytes(cells)
        return path
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(cells if isinstance(cells, str) else json.dumps(notebook), encoding="utf-8")
    return path
