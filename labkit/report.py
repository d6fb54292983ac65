"""The report: evidence of a run → `report.json` → `report.html`.

Every value in the report is a `MeasuredValue`, read out of an artifact by a JSON pointer, or
`Unmeasured` with a reason. Which claims are made, and where their evidence lies, is in
`templates/report_claims.toml`; nothing is computed here.
"""

import json
import tomllib
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
class Claim:
    """One row of the report besides the variants.

    Attributes:
        section: Heading under which it stands.
        title: What is claimed.
        file, pointer: Where the evidence is.
        note: What the value means, one phrase.
        holds_if: What the evidence must say for the claim to be true; None: it only reports.
        absent: Why there may be no evidence, for a person; else the pointer is named.
    """

    section: str
    title: str
    file: str
    pointer: str
    note: str
    holds_if: Any = None
    absent: str = ""


def _template(name: str) -> str:
    """Return a file of `labkit/templates`."""
    return (resources.files("labkit") / "templates" / name).read_text(encoding="utf-8")


_TABLE = tomllib.loads(_template("report_claims.toml"))
# What is said of each variant. A row is marked as measured only when all of these are, but for the
# optional ones.
COLUMNS: dict[str, str] = _TABLE["columns"]
OPTIONAL = frozenset(_TABLE["optional"])
# Every claim besides the table of variants.
CLAIMS = tuple(Claim(section, **row) for section, rows in _TABLE["claims"].items() for row in rows)


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
        "claims": [_claim(folder, claim) for claim in CLAIMS],
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
        key: Unmeasured(outdated)
        if outdated
        else measured_or_reason(folder, REPORTED[name], f"/variants/{name}/{pointer}")
        for key, pointer in COLUMNS.items()
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
        row["holds"] = claim.holds_if is None or found["value"] == claim.holds_if
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
