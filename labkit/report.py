"""The report: evidence of a run → `report.json` → `report.html`.

Every value in the report is a `MeasuredValue`, read out of an artifact by a JSON pointer, or
`Unmeasured` with a reason. This module decides which claims are made and where their evidence lies;
it computes nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from labkit.environment import environment_facts
from labkit.errors import LabError
from labkit.evidence import EvidenceFolder, MeasuredValue, Unmeasured, measured_or_reason
from labkit.repository import PIPELINE, VARIANTS
from labkit.workspace import MADE_BY, Workspace, write_json, write_text

SCHEMA_VERSION = 1
NO_GPU = "no NVIDIA GPU with TensorRT was there: 03_export builds the engine where there is one"


class ReportError(LabError):
    """A report does not fit its schema, or says what its evidence does not."""


# Every row of the table of variants → the artifact with its evidence.
REPORTED = {**dict.fromkeys(VARIANTS, "query.json"), PIPELINE: "pipeline.json"}
PIPELINE_POINT = "raw pixels in: a Python step before cifar10_onnx"


@dataclass(frozen=True)
class Column:
    """One value that every variant has.

    Attributes:
        key: Name in `report.json`.
        pointer: JSON pointer in the artifact of the variant; `{name}` stands for its name.
    """

    key: str
    pointer: str


# What is said of each variant. A row is marked as measured only when all of these are.
COLUMNS = tuple(
    Column(key, f"/variants/{{name}}/{pointer}")
    for key, pointer in (
        ("backend", "backend"),
        ("instances", "instances"),
        ("runtime", "runtime"),
        ("engine", "engine"),
        ("size_bytes", "size_bytes"),
        ("accuracy", "accuracy"),
        ("accuracy_n", "n"),
        ("agreement", "agreement"),
        ("latency_p50_ms", "latency_ms/p50"),
        ("latency_p95_ms", "latency_ms/p95"),
        ("latency_p99_ms", "latency_ms/p99"),
        ("latency_n", "latency_ms/n"),
        ("throughput_images_s", "throughput_images_s/median"),
        ("throughput_low", "throughput_images_s/low"),
        ("throughput_high", "throughput_images_s/high"),
        ("throughput_n", "throughput_images_s/n"),
        ("throughput_batch", "throughput_images_s/batch"),
    )
)
# What a slow machine has too few samples for, and what an older notebook 06 did not write.
OPTIONAL = frozenset(
    {"latency_p95_ms", "latency_p99_ms", "throughput_low", "throughput_high", "engine"}
)


@dataclass(frozen=True)
class Claim:
    """One row of the report besides the variants.

    Attributes:
        section: Heading under which it stands.
        title: What is claimed.
        file, pointer: Where the evidence is.
        note: What the value means, one phrase.
        absent: Why there may be no evidence, for a person; else the pointer is named.
    """

    section: str
    title: str
    file: str
    pointer: str
    note: str = ""
    absent: str = ""


# What the evidence must say for these claims to be true; the others only report what was found.
_HOLDS_IF: dict[str, Any] = {
    "/server/health/live": True,
    "/server/health/ready": True,
    "/findings": [],
}
NO_ENGINE = (
    "no container engine was used in this run; docker/compose.yaml starts the official image on "
    "the same repository"
)

# Every claim besides the table of variants: section → (title, file, pointer, what the value means).
_CLAIMS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "Server": (
        ("Triton is live", "query.json", "/server/health/live", "GET /v2/health/live"),
        ("Triton and every model are ready", "query.json", "/server/health/ready", "…/ready"),
        ("Version", "query.json", "/server/version", "as the server itself says"),
        ("HTTP endpoint", "query.json", "/server/ports/http", "REST: inference, health, metadata"),
        ("gRPC endpoint", "query.json", "/server/ports/grpc", "the same protocol, binary"),
        ("Metrics endpoint", "query.json", "/server/ports/metrics", "Prometheus text"),
        (
            "Metrics count what was asked",
            "query.json",
            "/server/metrics/nv_inference_count",
            "images per model; requests where max_batch_size is 0",
        ),
        ("Wrong requests get a reason", "query.json", "/errors", "each request, and the answer"),
        ("Protocol extensions", "query.json", "/server/extensions", "GET /v2"),
    ),
    "Repository": (
        (
            "Configurations fit their files",
            "configure.json",
            "/findings",
            "what `labkit check` finds; none is the aim",
        ),
        (
            "Broken configurations are refused",
            "configure.json",
            "/refused",
            "model → the server's own words; broken on purpose in 05",
        ),
        ("Mistakes are diagnosed", "configure.json", "/diagnosed", "without a server, by 05"),
    ),
    "The model and its copies": (
        ("Validation accuracy", "history.json", "/validation_accuracy", "not trained on"),
        (
            "ONNX computes the same",
            "export.json",
            "/parity/model.onnx",
            "a logit's largest difference from PyTorch's, at three batch sizes",
        ),
        (
            "Optimized TorchScript",
            "export.json",
            "/speed/ratio/model_optimized.pt",
            "times the traced model's images/s, in process",
        ),
        (
            "INT8 TorchScript",
            "quantize.json",
            "/variants/model_int8.pt",
            "on validation images, in process",
        ),
        (
            "INT8 ONNX",
            "quantize.json",
            "/variants/model_int8.onnx",
            "on validation images, in process",
        ),
        (
            "INT8 OpenVINO",
            "quantize.json",
            "/variants/model_int8.xml",
            "on validation images, in process",
        ),
        (
            "INT8 against FP32 ONNX Runtime",
            "quantize.json",
            "/speed/ratio",
            "times its images/s at batch 32, one thread each",
        ),
    ),
    "Technical nuances": (
        ("Serialization", "export.json", "/bytes", "bytes of each format; IR keeps two files"),
        (
            "Memory of a file and of its process",
            "quantize.json",
            "/memory_mib",
            "MiB: the runtime alone, with the model, after a batch",
        ),
        (
            "Memory of instances",
            "tune.json",
            "/memory_mib",
            "MiB of their own; each instance of a stand-in is a process",
        ),
        (
            "Compatibility",
            "export.json",
            "/onnx",
            "versions that the server reads; what a trace loses is in 03",
        ),
        (
            "f32 against bf16",
            "tune.json",
            "/precision",
            "OpenVINO in process: its own choice, and both where the processor has both",
        ),
        (
            "Calibration",
            "quantize.json",
            "/calibration",
            "relative error of the logits by number of calibration images",
        ),
    ),
    "A raw image in, a label out": (
        (
            "What computed here",
            "pipeline.json",
            f"/variants/{PIPELINE}/runtime",
            "runtime of cifar10_onnx; the step before it is a Python model in each",
        ),
        (
            "Raw pixels against floats",
            "pipeline.json",
            "/same_answers",
            "the largest difference of a logit from cifar10_onnx, on the test images",
        ),
        (
            "A request's bytes, and photo to label",
            "pipeline.json",
            "/requests",
            "one client, its own work included; three ways to the same model",
        ),
        (
            "Where the photo's time goes",
            "pipeline.json",
            "/steps_ms",
            "ms for each request in each step, by the server's statistics",
        ),
        (
            "The same step, written another way",
            "pipeline.json",
            "/resizing",
            "pixels that differ, labels that change, accuracy on 200 enlarged images",
        ),
    ),
    "Batching, instances, threads": (
        ("What computed here", "tune.json", "/runtime", "runtime behind every value of 07"),
        (
            "One instance, one thread",
            "tune.json",
            "/grid/1 × 1/2/images_per_s",
            "images/s, 16 clients with one image each",
        ),
        (
            "… with dynamic batching",
            "tune.json",
            "/grid/1 × 1, batching/2/images_per_s",
            "images/s, same load",
        ),
        (
            "… executed in batches of",
            "tune.json",
            "/grid/1 × 1, batching/2/server/batch_histogram",
            "batch size → how often, by the server's statistics",
        ),
        (
            "Load balanced over two instances",
            "tune.json",
            "/grid/2 × 1, batching/2/images_per_s",
            "images/s, same load",
        ),
        (
            "Threads × instances above the cores",
            "tune.json",
            "/grid/4 × 2, batching/2/images_per_s",
            "images/s, same load, on purpose",
        ),
        (
            "TorchScript, optimized against original",
            "tune.json",
            "/torchscript_gain",
            "ratio of images/s at batch 32, per round",
        ),
        (
            "Served against in process",
            "tune.json",
            "/served_over_in_process",
            "ratio of images/s to ONNX Runtime's at batch 32, one thread, per round",
        ),
        ("The rule of choice", "tune.json", "/rule", "stated before the measurement"),
        (
            "Recommended setting",
            "tune.json",
            "/recommendation",
            "measured again against the committed configuration",
        ),
    ),
}


def claims() -> Iterator[Claim]:
    """Yield every claim that the report makes besides its table of variants."""
    for section, rows in _CLAIMS.items():
        for title, file, pointer, note in rows:
            yield Claim(section, title, file, pointer, note)
    for title, note in (
        ("Triton in its container", "docker ps"),
        ("Replicas behind one address", "docker compose up --scale"),
    ):
        yield Claim("Container", title, "query.json", "/server/container", note, absent=NO_ENGINE)


def build_report(workspace: Workspace) -> dict[str, Any]:
    """Collect the evidence of a run.

    Returns:
        The content of `report.json`, which fits `report_schema.json`.
    """
    folder = EvidenceFolder(workspace)
    report = {
        "schema_version": SCHEMA_VERSION,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": _environment(folder),
        "variants": [_variant(folder, name) for name in REPORTED],
        "claims": [_claim(folder, claim) for claim in claims()],
        "configs": {
            name: measured_or_reason(folder, file, f"/variants/{name}/config").to_dict()
            for name, file in REPORTED.items()
        },
        "evidence": {
            name: {key: entry[key] for key in ("sha256", "bytes", "made_by", "made_at")}
            for name, entry in workspace.manifest().items()
            if not name.startswith("report.")
        },
    }
    validate_report(report)
    return report


def _environment(folder: EvidenceFolder) -> dict[str, Any]:
    """Return where the serving was measured; this machine when nothing was served."""
    measured = measured_or_reason(folder, "query.json", "/environment")
    return dict(measured.value) if isinstance(measured, MeasuredValue) else environment_facts()


def _outdated(folder: EvidenceFolder, name: str) -> str:
    """Say whether a variant was measured on model files that the run no longer has."""
    files = measured_or_reason(folder, REPORTED[name], f"/variants/{name}/files")
    step = MADE_BY[REPORTED[name]]
    if isinstance(files, MeasuredValue):
        for file, digest in files.value.items():
            if digest != folder.recorded(file):
                return f"{file} was made anew after {step} had measured it: run {step} again"
    return ""


def _variant(folder: EvidenceFolder, name: str) -> dict[str, Any]:
    """Return the row of one variant."""
    spec = VARIANTS.get(name, VARIANTS["cifar10_onnx"])  # of the pipeline, the step that computes
    outdated = _outdated(folder, name)
    cells: dict[str, MeasuredValue | Unmeasured] = {
        column.key: Unmeasured(outdated)
        if outdated
        else measured_or_reason(folder, REPORTED[name], column.pointer.format(name=name))
        for column in COLUMNS
    }
    missing = [
        f"{key}: {cell.reason}"
        for key, cell in cells.items()
        if isinstance(cell, Unmeasured) and key not in OPTIONAL
    ]
    row: dict[str, Any] = {
        "name": name,
        "point": PIPELINE_POINT if name == PIPELINE else spec.point,
        "threads_asked_for": spec.threads,
        "status": "not measured" if missing else "measured",
        "cells": {key: cell.to_dict() for key, cell in cells.items()},
    }
    if missing:
        row["reason"] = outdated or _reason(folder, name) or missing[0]
    return row


def _reason(folder: EvidenceFolder, name: str) -> str:
    """Return why a variant was not measured, in the words of the notebook that tried."""
    reason = measured_or_reason(folder, REPORTED[name], f"/variants/{name}/reason")
    if isinstance(reason, MeasuredValue):
        return str(reason.value)
    return NO_GPU if name == "cifar10_tensorrt" else ""


def _claim(folder: EvidenceFolder, claim: Claim) -> dict[str, Any]:
    """Return the row of one claim."""
    found = measured_or_reason(folder, claim.file, claim.pointer).to_dict()
    if "reason" in found and claim.absent:
        found["reason"] = claim.absent
    row = {"section": claim.section, "title": claim.title, "note": claim.note, **found}
    if "value" in found:
        row["holds"] = found["value"] == _HOLDS_IF.get(claim.pointer, found["value"])
    return row


def validate_report(report: dict[str, Any], workspace: Workspace | None = None) -> None:
    """Hold a report against its schema, and against its evidence where the run is given.

    Raises:
        ReportError: it does not fit, or a value is not the one in the file it points at.
    """
    import jsonschema  # which takes some seconds

    try:
        jsonschema.validate(report, json.loads(_template("report_schema.json")))
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise ReportError(
            f"report.json does not fit its schema at {where}: {error.message}"
        ) from error
    if workspace is None:
        return
    folder = EvidenceFolder(workspace)
    for mark in marks(report):
        place = mark["evidence"]
        value = folder.value(place["file"], place["pointer"])
        if value != mark["value"]:
            raise ReportError(
                f"the report says {mark['value']!r}, {place['file']} has {value!r} at "
                f"{place['pointer']}: build the report again"
            )


def marks(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every measured value of a report, at whatever depth."""
    if isinstance(node, dict):
        if "evidence" in node and "value" in node:
            yield node
        else:
            for child in node.values():
                yield from marks(child)
    elif isinstance(node, list):
        for child in node:
            yield from marks(child)


def write_report(workspace: Workspace, made_by: str) -> list[Path]:
    """Build and write `report.json` and `report.html`; returns both paths."""
    from labkit.report_page import render

    report = build_report(workspace)
    write_json(workspace.path("report.json"), report)
    write_text(workspace.path("report.html"), render(report, workspace))
    workspace.record("report.json", "report.html", made_by=made_by)
    return [workspace.path("report.json"), workspace.path("report.html")]


def _template(name: str) -> str:
    """Return a file of `labkit/templates`."""
    return (resources.files("labkit") / "templates" / name).read_text(encoding="utf-8")
