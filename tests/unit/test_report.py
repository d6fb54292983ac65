import hashlib
import json
import math
import re
from copy import deepcopy
from pathlib import Path

import pytest
from jsonpointer import JsonPointer

from labkit import plots
from labkit.environment import environment_facts
from labkit.evidence import NoEvidence
from labkit.report import (
    CLAIMS,
    COLUMNS,
    OPTIONAL,
    ReportError,
    build_report,
    validate_report,
    write_report,
)
from labkit.report_page import _lines, render, variant_points
from labkit.repository import PIPELINE, VARIANTS
from labkit.workspace import MADE_BY, Workspace, write_json

MODEL = b"a model file"
MODEL_SHA = hashlib.sha256(MODEL).hexdigest()
MEASURED = [name for name in VARIANTS if name != "cifar10_tensorrt"]


def row(name: str, accuracy: float = 0.91) -> dict:
    spec = VARIANTS.get(name, VARIANTS["cifar10_onnx"])
    return {
        "status": "measured",
        "backend": spec.backend,
        "runtime": "stand-in",
        "engine": "ONNX Runtime 1.24.1",
        "instances": 1,
        "config": f'name: "{name}"',
        "files": dict.fromkeys(spec.artifacts, MODEL_SHA),
        "size_bytes": 1_500_000,
        "accuracy": accuracy,
        "n": 10_000,
        "agreement": 0.99,
        "latency_ms": {"p50": 1.5, "p95": 2.5, "p99": None, "n": 60},
        "throughput_images_s": {"median": 900.0, "low": 850, "high": 950, "n": 3, "batch": 32},
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.at(tmp_path / "run")
    variants = {name: row(name) for name in MEASURED}
    fast = {"median": 1_800.0, "low": 1_700, "high": 1_900, "n": 3, "batch": 32}
    variants["cifar10_onnx_int8"]["throughput_images_s"] = fast
    for artifact in {artifact for name in MEASURED for artifact in VARIANTS[name].artifacts}:
        workspace.path(artifact).write_bytes(MODEL)
        workspace.record(artifact, made_by="03_export")
    variants["cifar10_tensorrt"] = {"status": "not measured", "reason": "no NVIDIA GPU here"}
    query = {
        "variants": variants,
        "server": {"version": "2.51.0", "health": {"live": True}},
        "environment": {**environment_facts(), "cpu": "the CPU that served"},
    }
    workspace.save_json("query.json", query, made_by="06_serve")
    pipeline = {"variants": {PIPELINE: row(PIPELINE)}, "same_answers": {"n": 10_000}}
    workspace.save_json("pipeline.json", pipeline, made_by="10_pipeline")
    configure = {"findings": [], "diagnosed": ["a <b>finding</b>"], "models": {"cifar10_onnx": "x"}}
    workspace.save_json("configure.json", configure, made_by="05_configure")
    return workspace


def test_the_claims_name_artifacts_and_places_in_them() -> None:
    assert set(COLUMNS) >= OPTIONAL
    for claim in CLAIMS:
        assert claim.title and claim.note
        assert MADE_BY[claim.file] != "08_report"
        assert JsonPointer(claim.pointer).parts[0]
    headings = [(claim.section, claim.title) for claim in CLAIMS]
    assert len(set(headings)) == len(headings)
    assert {c.pointer for c in CLAIMS if "/variants/cifar10_" in c.pointer} == {
        f"/variants/{PIPELINE}/runtime"
    }
    assert [c.title for c in CLAIMS if c.holds_if is not None] == [
        "Triton is live",
        "Triton and every model are ready",
        "Configurations fit their files",
    ]


def test_a_row_for_every_variant_measured_or_explained(workspace: Workspace) -> None:
    report = build_report(workspace)
    assert [entry["name"] for entry in report["variants"]] == [*VARIANTS, PIPELINE]
    statuses = {entry["name"]: entry["status"] for entry in report["variants"]}
    assert [name for name, status in statuses.items() if status == "measured"] == [
        *MEASURED,
        PIPELINE,
    ]
    reasons = {entry["name"]: entry.get("reason") for entry in report["variants"]}
    assert reasons["cifar10_tensorrt"] == "no NVIDIA GPU here"


def test_the_pipelines_row_is_evidence_of_its_own_notebook(workspace: Workspace) -> None:
    entry = build_report(workspace)["variants"][-1]
    assert {cell["evidence"]["file"] for cell in entry["cells"].values() if "value" in cell} == {
        "pipeline.json"
    }
    workspace.path("model.onnx").write_bytes(b"another model")
    workspace.record("model.onnx", made_by="03_export")
    reason = build_report(workspace)["variants"][-1]["reason"]
    assert "run 10_pipeline again" in reason
    workspace.path("pipeline.json").unlink()
    assert build_report(workspace)["variants"][-1]["status"] == "not measured"


def test_measurements_beside_the_variants_name_their_runtime(workspace: Workspace) -> None:
    workspace.save_json("tune.json", {"runtime": "native"}, made_by="07_tune")
    found = {
        claim["section"]: claim["value"]
        for claim in build_report(workspace)["claims"]
        if claim["title"] == "What computed here"
    }
    assert found == {
        "A raw image in, a label out": "stand-in",
        "Batching, instances, threads": "native",
    }


def test_a_table_of_records_is_a_line_each() -> None:
    requests = {"photo": {"bytes": 921_752, "n": 40}, "tensor": {"bytes": 12_436, "n": 41}}
    assert _lines(requests) == ["photo: bytes: 921,752, n: 40", "tensor: bytes: 12,436, n: 41"]
    assert _lines({"queue": 0.5, "compute": 1}) == ["queue: 0.5, compute: 1"]
    assert _lines({}) == [""]


def test_an_empty_run_makes_no_mark_at_all(tmp_path: Path) -> None:
    report = build_report(Workspace.at(tmp_path / "empty"))
    assert '"status": "measured"' not in json.dumps(report)
    assert all(entry["reason"] for entry in report["variants"])
    page = render(report, Workspace.at(tmp_path / "empty"))
    assert 'class="yes">✔</td>' not in page


@pytest.mark.parametrize("column", ["accuracy", "runtime"])
def test_one_missing_value_takes_the_mark_from_the_row(workspace: Workspace, column: str) -> None:
    query = workspace.load_json("query.json")
    del query["variants"]["cifar10_onnx"][column]
    workspace.save_json("query.json", query, made_by="06_serve")
    entry = next(e for e in build_report(workspace)["variants"] if e["name"] == "cifar10_onnx")
    assert entry["status"] == "not measured"
    assert f"/variants/cifar10_onnx/{column}" in entry["reason"]


def test_a_slow_machine_has_no_p95_and_a_report_all_the_same(workspace: Workspace) -> None:
    """The solved notebook 08 once broke off for that: its table had lost the original model."""
    query = workspace.load_json("query.json")
    for entry in query["variants"].values():
        entry.get("latency_ms", {}).update(p95=None, n=14)
    workspace.save_json("query.json", query, made_by="06_serve")
    pipeline = workspace.load_json("pipeline.json")
    pipeline["variants"][PIPELINE]["latency_ms"].update(p95=None, n=14)
    workspace.save_json("pipeline.json", pipeline, made_by="10_pipeline")
    report = build_report(workspace)
    points = variant_points(report)
    measured = [row["name"] for row in report["variants"] if row["status"] == "measured"]
    assert "cifar10_torchscript" in measured
    assert [point.name for point in points] == measured
    assert all(math.isnan(point.p95_ms) for point in points)
    plots.report.variant_comparison(points)
    assert render(report, workspace).count("1.50 / – / –") == len(measured)


def test_p99_of_few_samples_may_be_missing(workspace: Workspace) -> None:
    entry = build_report(workspace)["variants"][0]
    assert entry["status"] == "measured"
    assert entry["cells"]["latency_p99_ms"]["status"] == "not measured"


def test_the_schema_refuses_a_mark_without_evidence(workspace: Workspace) -> None:
    report = build_report(workspace)
    for forge in (
        lambda r: r["variants"][0]["cells"]["accuracy"].pop("evidence"),
        lambda r: r["variants"][0]["cells"].pop("accuracy"),
        lambda r: r["variants"][-2].update(status="measured"),
        lambda r: r["variants"][-2].pop("reason"),
        lambda r: r["claims"][-1].update(status="measured", value=1, holds=True),
        lambda r: r["claims"][0]["evidence"].update(sha256="1234"),
        lambda r: r.pop("environment"),
    ):
        forged = deepcopy(report)
        forge(forged)
        with pytest.raises(ReportError, match="does not fit its schema"):
            validate_report(forged)
    validate_report(report)


def test_a_changed_value_is_found_out(workspace: Workspace) -> None:
    report = build_report(workspace)
    validate_report(report, workspace)
    report["variants"][0]["cells"]["accuracy"]["value"] = 0.99
    with pytest.raises(ReportError, match=r"the report says 0\.99, query\.json has 0\.91"):
        validate_report(report, workspace)


def test_changed_evidence_makes_no_report(workspace: Workspace) -> None:
    report = build_report(workspace)
    query = workspace.load_json("query.json")
    query["variants"]["cifar10_onnx"]["accuracy"] = 0.99
    write_json(workspace.path("query.json"), query)  # by hand, not through save_json
    with pytest.raises(NoEvidence, match="was changed"):
        validate_report(report, workspace)
    rows = build_report(workspace)["variants"][:-1]  # without the pipeline: evidence of its own
    assert {entry["status"] for entry in rows} == {"not measured"}


def test_a_model_that_was_made_anew_is_not_measured_any_more(workspace: Workspace) -> None:
    workspace.path("model_int8.onnx").write_bytes(b"trained again")
    workspace.record("model_int8.onnx", made_by="04_quantize")
    rows = {entry["name"]: entry for entry in build_report(workspace)["variants"]}
    assert rows["cifar10_onnx_int8"]["status"] == "not measured"
    assert "model_int8.onnx was made anew" in rows["cifar10_onnx_int8"]["reason"]
    assert rows["cifar10_onnx"]["status"] == "measured"


def test_a_measured_claim_that_does_not_hold_gets_no_tick(workspace: Workspace) -> None:
    ticks = render(build_report(workspace), workspace).count('class="yes">✔</td>')
    configure = {**workspace.load_json("configure.json"), "findings": ["cifar10_onnx: error"]}
    workspace.save_json("configure.json", configure, made_by="05_configure")
    page = render(build_report(workspace), workspace)
    assert page.count('class="yes">✔</td>') == ticks - 1
    assert page.count('class="no">✘</td>') == 1


def test_the_environment_is_that_of_the_measurement(workspace: Workspace) -> None:
    assert build_report(workspace)["environment"]["cpu"] == "the CPU that served"


def test_the_page_is_self_contained_and_escapes_what_it_shows(workspace: Workspace) -> None:
    page = write_report(workspace, made_by="08_report")[1].read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "a &lt;b&gt;finding&lt;/b&gt;" in page
    assert "Fastest at batch 32: cifar10_onnx_int8, 1,800 images/s, 2.00× the original" in page
    assert "not measured here: no NVIDIA GPU here" in page


def test_the_page_shows_a_mark_per_measured_row_and_no_more(workspace: Workspace) -> None:
    report = build_report(workspace)
    marks = render(report, workspace).count('class="yes">✔</td>')
    rows = [*report["variants"], *report["claims"]]
    assert marks == sum(entry["status"] == "measured" for entry in rows) > len(MEASURED)


def test_the_report_is_recorded(workspace: Workspace) -> None:
    write_report(workspace, made_by="08_report")
    assert {"report.json", "report.html"} <= set(workspace.manifest())
    assert "report.json" not in workspace.load_json("report.json")["evidence"]
