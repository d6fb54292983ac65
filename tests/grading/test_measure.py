"""Measurements: right, wrong, missing, hostile; whatever a stage leaves, it is measured."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from labkit.chain import STAGES
from labkit.data import CLASSES, SPLIT_SIZES
from labkit.environment import environment_facts
from labkit.grading.measure import (
    MEASURES,
    Case,
    StageMeasurements,
    measure_patiently,
    measure_stage,
    model_sandbox,
)
from labkit.grading.measure.base import Checks, entry, number, top1
from labkit.grading.measure.images import SERVED_HELD_OUT
from labkit.grading.measure.model_sandbox import ModelSandbox
from labkit.grading.measure.serving import CORES, MODELS, PIPELINE_NETWORK
from labkit.grading.measure.stages import MAX_DETAIL, split_indices
from labkit.grading.results import Measurement
from labkit.grading.sandbox import BUBBLEWRAP, NONE, Isolation, Sandbox
from labkit.grading.untrusted import UnfitFile
from labkit.grading.workdir import open_workdir, write_manifest
from labkit.profiles import preset
from labkit.report import build_report, marks, validate_report
from labkit.repository import PIPELINE, VARIANTS, write_config
from labkit.workspace import MADE_BY, OPTIONAL, Workspace, cache_dir, write_json

HELD_OUT, VALIDATION, TEST = 400, 300, 80
EXPORTED = ("model.pt", "model_optimized.pt", "model.onnx")
QUANTIZED = ("model_int8.pt", "model_int8.onnx", "model_int8.xml")
Logits = np.ndarray


# ---- a submission that has everything right


class FakeImages:
    """Labels of images that nobody needs to see."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.held_out_labels = draw.integers(0, 10, HELD_OUT)
        self.validation_labels = draw.integers(0, 10, VALIDATION)
        test = draw.integers(0, 10, TEST)
        self.served_labels = np.concatenate([self.held_out_labels[:SERVED_HELD_OUT], test])
        self.training_labels = np.arange(50_000) % 10

    def logits(self, right: float = 0.8) -> Logits:
        """Answers to held-out and validation images; the first `right` of each are right."""
        labels = [self.held_out_labels, self.validation_labels]
        return np.concatenate([answers(part, right) for part in labels])

    def served(self, right: float = 0.8) -> Logits:
        """The same model's answers to the images of the server."""
        held_out = answers(self.held_out_labels, right)[:SERVED_HELD_OUT]
        return np.concatenate([held_out, answers(self.served_labels[SERVED_HELD_OUT:], right)])


def answers(labels: np.ndarray, right: float) -> Logits:
    said = (labels + (np.arange(len(labels)) >= right * len(labels))) % 10
    return np.eye(10, dtype=np.float32)[said] * 4


@dataclass
class FakeSandbox:
    """Answers as a sandbox would, from arrays.

    Attributes:
        models: File → its logits, or why there are none.
        served: Model → its logits, or why it does not load.
        said: Request → what it answers, for those that ask for no logits.
    """

    models: dict[str, Logits | str]
    served: dict[str, Logits | str]
    said: dict[str, Any] = field(
        default_factory=lambda: {
            "batch_norms": 0, "check": [], "weights": {"int8": 99, "float": 1, "unknown": 0},
        }
    )  # fmt: skip
    asked: list[str] = field(default_factory=list)
    outbox: str = "/lab/out"
    weights: int = 10**6  # of FP32, in model.onnx
    starved: bool = False
    trouble: str = ""

    def forget_trouble(self) -> None:
        self.starved = False

    def logits(
        self, files: dict[str, Path], file: str, images: str, slices: list[list[int]]
    ) -> Logits:
        self.asked.append(file)
        found = self.models[file]
        if isinstance(found, str):
            raise UnfitFile(found)
        return np.concatenate([found[first:last] for first, last in slices])

    def put(self, source: Path, name: str) -> str:
        return f"/lab/in/{name}"

    def clear(self) -> None:
        pass

    def images(self, name: str) -> str:
        return f"/images/{name}"

    def ask(self, limit_s: float = 120.0, **request: Any) -> Any:
        self.asked.append(f"{request['do']} {request.get('config_name', '')}".strip())
        if request.get("file", "").endswith("/model.onnx") and request["do"] == "weights":
            return {"int8": 0, "float": self.weights, "unknown": 0}
        if request["do"] in self.said:
            answer = self.said[request["do"]]
            if isinstance(answer, Exception):
                raise answer
            return answer
        wanted = {name: self.served[name] for name in request["models"]}
        rates = dict.fromkeys(wanted, 700.0) if request.get("clients") else {}
        return {"failed": {n: why for n, why in wanted.items() if isinstance(why, str)},
                "rates": rates}  # fmt: skip

    def take(self, name: str, count: int) -> Logits:
        found = self.served[name.removesuffix(".f32")]
        if isinstance(found, str):
            raise UnfitFile("it gave no answer")
        return found[:count]


@dataclass
class Run:
    """A complete run in files, and a case for each of its stages."""

    folder: Path
    images: FakeImages
    sandbox: FakeSandbox

    @property
    def repository(self) -> Path:
        return self.folder / "model_repository"

    def path(self, name: str) -> Path:
        return self.folder / "artifacts" / name

    def document(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())

    def write(self, name: str, content: Any) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.path(name).write_bytes(text)

    def case(self, stage: str) -> Case:
        """The case of a stage, with what is there."""
        there = {name: self.path(name) for name in MADE_BY if self.path(name).is_file()}
        before = STAGES[: STAGES.index(stage)]
        given = {name: path for name, path in there.items() if MADE_BY[name] in before}
        made = {name: path for name, path in there.items() if MADE_BY[name] == stage}
        repository = self.repository if "05_configure" in (*before, stage) else None
        return Case(self.sandbox, self.images, "smoke", given, made, repository)  # type: ignore[arg-type]

    def measure_stage(self, stage: str) -> StageMeasurements:
        """Measure a stage; what holds for all measurements is checked here."""
        measured = measure_stage(stage, self.case(stage))
        assert set(measured.measurements) == set(MEASURES[stage])
        for measurement in measured.measurements.values():
            assert measurement.value is None or np.isfinite(measurement.value)
            assert measurement.detail, "the student is told something"
            assert len(measurement.detail) <= 1_000
            assert measurement.detail.isprintable()
        assert measured.accepted or measured.why_not
        assert measured.why_not.isprintable()
        return measured

    def measure(self, item: str) -> Measurement:
        stage = next(stage for stage, items in MEASURES.items() if item in items)
        return self.measure_stage(stage).measurements[item]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a complete run, written once."""
    return write_run(tmp_path_factory.mktemp("complete")).folder


@pytest.fixture
def run(tmp_path: Path, complete: Path) -> Run:
    shutil.copytree(complete, tmp_path, dirs_exist_ok=True)
    return new_run(tmp_path)


def new_run(folder: Path) -> Run:
    images = FakeImages()
    models: dict[str, Logits | str] = {
        name: images.logits() for name in ("checkpoint.pt", *EXPORTED)
    }
    models |= {name: images.logits(0.79) for name in QUANTIZED}
    artifact = {name: next(iter(VARIANTS[name].artifacts)) for name in MODELS}
    served: dict[str, Logits | str] = {
        name: images.served(0.79 if artifact[name] in QUANTIZED else 0.8) for name in MODELS
    }
    return Run(folder, images, FakeSandbox(models, served))


def write_run(folder: Path) -> Run:
    run = new_run(folder)
    (folder / "artifacts").mkdir()
    write_models(run)
    write_documents(run)
    for name in MODELS:
        write_config(run.repository, VARIANTS[name])
    tuned = VARIANTS["cifar10_onnx"]
    write_config(run.repository, tuned, name="tuned")
    write_manifest(folder, [name for name in MADE_BY if run.path(name).is_file()])
    run.write("report.json", build_report(Workspace(folder, run.repository)))
    run.write("report.html", b"<p>" * 5_000)
    return run


def write_models(run: Run) -> None:
    for name in MADE_BY:
        if name.startswith(("model", "checkpoint", "network")) and name not in OPTIONAL:
            size = 250 if "int8" in name else 1_000
            run.write(name, name.encode().ljust(size))


def write_documents(run: Run) -> None:
    order = np.random.default_rng(1).permutation(5_000)
    indices, start = {}, 0
    for name, size in SPLIT_SIZES.items():
        tens = order[start : start + size // 10]  # each stands for ten images, one of a class
        indices[name] = [int(10 * ten + label) for ten in tens for label in range(10)]
        start += size // 10
    fp32, int8 = 0.8, round(float(np.ceil(0.79 * VALIDATION)) / VALIDATION, 4)
    run.write("splits.json", {"seed": 0, "indices": indices})
    run.write("statistics.json", {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]})
    run.write("history.json", {"epochs": [{"loss": 1.0}], "validation_accuracy": fp32})
    run.write(
        "export.json",
        {
            "accuracy": dict.fromkeys(EXPORTED, fp32),
            "parity": {name: [{"batch": 1, "difference": 1e-6}] for name in EXPORTED},
        },
    )
    run.write("quantize.json", {"variants": {name: {"accuracy": int8} for name in QUANTIZED}})
    run.write("configure.json", {"findings": [], "diagnosed": ["a finding"]})
    labels = run.images.served_labels[SERVED_HELD_OUT:]
    rows = {}
    for name in MODELS:
        logits = run.sandbox.served[name]
        assert isinstance(logits, np.ndarray)
        rows[name] = {"accuracy": top1(logits[SERVED_HELD_OUT:], labels), "n": 500}
    run.write("query.json", {"variants": rows, "environment": environment_facts()})
    pipeline = {
        "variants": {PIPELINE: rows[PIPELINE_NETWORK]},
        "requests": {"tensor": {"bytes": 12_500}, "thumbnail": {"bytes": 3_300}},
    }
    run.write("pipeline.json", pipeline)
    point = {"latency_ms": {"n": 50, "p50": 1.0}, "images_per_s": {"median": 900.0}}
    best = {"model": "cifar10_onnx", "instances": 1, "dynamic_batching": True}
    settings = ("1 × 1", "1 × 1, batching", "2 × 1", "2 × 1, batching")
    run.write("tune.json", {"recommendation": best, "grid": {key: [point] for key in settings}})


FULL = {"02.accuracy": 0.8, "04.torchscript": 1.0, "04.onnx": 1.0, "04.openvino": 1.0}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_right_gets_everything_and_is_passed_on(run: Run, stage: str) -> None:
    measured = run.measure_stage(stage)
    for item, measurement in measured.measurements.items():
        expected = FULL.get(item, 1.0)
        assert measurement.value == pytest.approx(expected, abs=1e-6), measurement.detail
    assert measured.accepted
    assert measured.why_not == ""


@pytest.mark.parametrize("stage", STAGES)
def test_without_any_file_nothing_is_measured(run: Run, stage: str) -> None:
    for name in MADE_BY:
        run.path(name).unlink(missing_ok=True)
    for config in run.repository.rglob("*.pbtxt"):
        config.unlink()
    run.sandbox.said["check"] = ["holds no model"]
    measured = run.measure_stage(stage)
    assert not measured.accepted
    for measurement in measured.measurements.values():
        assert not measurement.value


# Stage → why it is not passed on where nothing is there that earlier stages make; empty: it is.
WITHOUT_INPUTS = {
    "02_train": "",
    "03_export": "checkpoint.pt was not made",
    "04_quantize": "model.onnx was not made",
    "05_configure": "cifar10_onnx answers 0% as its file does",
    "06_serve": "",
    "07_tune": "cifar10_onnx, tuned, answers 0% as its file does",
    "10_pipeline": "",
    "08_report": "",
}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_without_what_it_was_given_a_stage_is_measured_all_the_same(run: Run, stage: str) -> None:
    for name, maker in MADE_BY.items():
        if maker in STAGES[: STAGES.index(stage)]:
            run.path(name).unlink(missing_ok=True)
    measured = run.measure_stage(stage)
    no_better(measured)
    assert measured.accepted == (not WITHOUT_INPUTS[stage])
    assert WITHOUT_INPUTS[stage] in measured.why_not


@pytest.mark.parametrize(
    "name", [n for n in MADE_BY if n not in OPTIONAL and n not in ("report.html", "report.json")]
)
def test_a_missing_artifact_is_not_passed_on_and_costs_its_own_stage(run: Run, name: str) -> None:
    run.path(name).unlink()
    measured = run.measure_stage(MADE_BY[name])
    assert not measured.accepted
    assert name in measured.why_not
    lost = [m for i, m in measured.measurements.items() if (m.value or 0) < FULL.get(i, 1.0)]
    # What nothing is measured by is wanted all the same: the next notebook reads it.
    assert lost or name in ("configure.json", "statistics.json")
    assert all(name in measurement.detail for measurement in lost)


# ---- 01


def change_splits(run: Run, change: Any) -> StageMeasurements:
    document = run.document("splits.json")
    change(document["indices"])
    run.write("splits.json", document)
    return run.measure_stage("01_data")


def share(measured: StageMeasurements) -> float | None:
    [measurement] = measured.measurements.values()
    return measurement.value


def test_an_image_in_two_parts_is_found(run: Run) -> None:
    def leak(indices: dict[str, list[int]]) -> None:
        indices["train"][0] = indices["validation"][0]

    measured = change_splits(run, leak)
    assert share(measured) == pytest.approx(2 / 3, abs=1e-3)
    assert not measured.accepted
    assert "1 images are in more than one part" in measured.why_not


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "holds list, expected an object"),
        ({"mean": [0.5] * 3}, "std is no list of three numbers"),
        ({"mean": [0.5] * 2, "std": [0.2] * 3}, "mean is no list of three numbers"),
        ({"mean": [125.0] * 3, "std": [63.0] * 3}, "mean is no list of three numbers between"),
        ({"mean": [None, 0.5, "0.5"], "std": [0.2] * 3}, "mean is no list"),
    ],
)
def test_statistics_of_other_pixels_are_not_passed_on(run: Run, document: Any, why: str) -> None:
    """The splits keep their points."""
    run.write("statistics.json", document)
    measured = run.measure_stage("01_data")
    assert not measured.accepted
    assert why in measured.why_not
    assert share(measured) == 1


def test_indices_beyond_the_images_are_found(run: Run) -> None:
    for wrong in (50_000, -1, 2**31 - 1):
        measured = change_splits(run, lambda parts, wrong=wrong: parts["train"].insert(0, wrong))
        assert not measured.accepted
        assert "not among the 50,000" in measured.why_not


def test_parts_of_other_sizes_are_not_passed_on(run: Run) -> None:
    measured = change_splits(run, lambda indices: indices["train"].pop())
    assert not measured.accepted
    assert "43999" in measured.why_not


def test_unequal_classes_cost_points_and_are_passed_on(run: Run) -> None:
    def swap(indices: dict[str, list[int]]) -> None:
        zeros = [i for i, index in enumerate(indices["train"]) if index % 10 == 0]
        others = [i for i, index in enumerate(indices["calibration"]) if index % 10]
        for here, there in zip(zeros, others, strict=False):
            train, calibration = indices["train"], indices["calibration"]
            train[here], calibration[there] = calibration[there], train[here]

    measured = change_splits(run, swap)
    assert share(measured) == 0.75
    assert measured.accepted


@pytest.mark.parametrize(
    "part",
    [
        None, 3, "0123", {"0": 1}, [1.0] * 5_000, [True] * 5_000, ["1"] * 5_000, [[1]] * 5_000,
        [2**31] * 5_000, [-(2**40)] * 5_000, [10**200] * 5_000, [float("nan")] * 5_000,
        [0] * 50_001,
    ],
    ids=lambda part: str(part)[:9],
)  # fmt: skip
def test_indices_that_are_no_whole_numbers_are_refused(part: Any) -> None:
    good = {name: [0] for name in SPLIT_SIZES}
    with pytest.raises(UnfitFile, match=r"splits\.json: validation is no list"):
        split_indices({"indices": {**good, "validation": part}})


@pytest.mark.parametrize(
    "document",
    [None, [], "x", {}, {"indices": []}, {"indices": {}}, {"indices": {"train": [1]}},
     {"indices": {"train": [], "validation": [], "calibration": [], "test": []}}],
)  # fmt: skip
def test_splits_of_other_parts_are_refused(document: Any) -> None:
    with pytest.raises(UnfitFile, match="names no indices"):
        split_indices(document)


def test_empty_parts_are_measured(run: Run) -> None:
    measured = change_splits(run, lambda indices: [part.clear() for part in indices.values()])
    assert not measured.accepted


# ---- 02


def test_a_checkpoint_that_cannot_be_run_says_why(run: Run) -> None:
    run.sandbox.models["checkpoint.pt"] = "its logits hold NaN or infinities"
    measured = run.measure_stage("02_train")
    assert not measured.accepted
    for measurement in measured.measurements.values():
        assert measurement == Measurement(None, "checkpoint.pt: its logits hold NaN or infinities")


@pytest.mark.parametrize(("claimed", "value"), [(0.8, 1), (0.804, 1), (0.81, 0.5), (0.99, 0.5)])
def test_a_claim_is_held_against_the_checkpoint(run: Run, claimed: float, value: float) -> None:
    run.write("history.json", {"epochs": [{}], "validation_accuracy": claimed})
    found = run.measure("02.history")
    assert found.value == value
    assert ("80.0% on the same images" in found.detail) == (value < 1)


def test_a_wrong_claim_costs_its_points_and_no_more(run: Run) -> None:
    run.write("history.json", {"epochs": [], "validation_accuracy": 0.99})
    measured = run.measure_stage("02_train")
    assert measured.measurements["02.history"].value == 0
    assert measured.measurements["02.accuracy"].value == pytest.approx(0.8)
    assert measured.accepted


def test_accuracy_is_measured_on_held_out_images(run: Run) -> None:
    logits = run.images.logits(0.8)
    logits[:HELD_OUT] = answers(run.images.held_out_labels, 0.25)  # it learned the others by heart
    run.sandbox.models["checkpoint.pt"] = logits
    found = run.measure("02.accuracy")
    assert found.value == 0.25
    assert found.detail == "25.0% of 400 held-out images right"


# ---- 03


@pytest.mark.parametrize(("item", "name"), zip(MEASURES["03_export"], EXPORTED, strict=False))
def test_an_exported_file_is_held_against_the_checkpoint(run: Run, item: str, name: str) -> None:
    run.sandbox.models[name] = run.images.logits() + np.float32(0.01)  # another logit, same answers
    found = run.measure(item)
    checks = 5 if name == "model_optimized.pt" else 4
    assert found.value == pytest.approx((checks - 3) / checks, abs=1e-3)
    assert f"{name} at batch 1: logits up to 0.01 away" in found.detail


def test_differences_below_the_tolerance_do_not_count(run: Run) -> None:
    run.sandbox.models["model.onnx"] = run.images.logits() + np.float32(5e-4)
    assert run.measure("03.onnx").value == 1


def test_each_batch_size_is_compared_by_itself(run: Run) -> None:
    class OneBatch(FakeSandbox):
        def logits(self, files: Any, file: str, images: str, slices: Any) -> Logits:
            found = super().logits(files, file, images, slices)
            if file == "model.onnx":
                found[1:8] += 1  # of the call with seven images
            return found

    run.sandbox = OneBatch(run.sandbox.models, run.sandbox.served)
    found = run.measure("03.onnx")
    assert found.value == 0.75
    assert "at batch 7" in found.detail
    assert "at batch 1:" not in found.detail


def test_a_file_that_answers_otherwise_is_not_passed_on(run: Run) -> None:
    run.sandbox.models["model.pt"] = run.images.logits(0.5)
    measured = run.measure_stage("03_export")
    assert not measured.accepted
    assert measured.why_not == "model.pt answers 67% of the images as checkpoint.pt does"
    assert measured.measurements["03.onnx"].value == 1


def test_a_model_that_is_slightly_off_costs_points_and_is_passed_on(run: Run) -> None:
    run.sandbox.models["model.pt"] = run.images.logits(0.72)
    measured = run.measure_stage("03_export")
    assert measured.accepted
    value = measured.measurements["03.torchscript"].value
    assert value is not None
    assert value < 1


@pytest.mark.parametrize("left", [3, None, "0", [], {"a": 1}, UnfitFile("it was stopped"), -1])
def test_batch_norms_that_are_left_cost_a_check(run: Run, left: Any) -> None:
    run.sandbox.said["batch_norms"] = left
    found = run.measure("03.optimized")
    assert found.value == 0.8
    assert "batch norms are left" in found.detail


def test_infinite_differences_are_differences(run: Run) -> None:
    logits = run.images.logits()
    logits[:] = np.finfo(np.float32).max
    run.sandbox.models["checkpoint.pt"] = -logits
    run.sandbox.models["model.onnx"] = logits
    value = run.measure("03.onnx").value
    assert value is not None
    assert value < 0.5


@pytest.mark.parametrize("name", EXPORTED)
def test_every_claim_of_the_export_is_checked(run: Run, name: str) -> None:
    document = run.document("export.json")
    document["accuracy"][name] = 0.9
    document["parity"][name] = []
    run.write("export.json", document)
    found = run.measure("03.evidence")
    assert found.value == pytest.approx(4 / 6, abs=1e-3)
    assert f"90.0% for {name}, measured 80.0%" in found.detail


def test_claims_of_a_file_that_was_not_exported_are_not_confirmed(run: Run) -> None:
    run.path("model.pt").unlink()
    run.sandbox.models["model.onnx"] = run.images.logits(0.1)
    found = run.measure("03.evidence")
    assert found.value == pytest.approx(2 / 4, abs=1e-3)
    assert "model.pt was not made; model.onnx answers otherwise than checkpoint.pt" in found.detail


# ---- 04


def test_the_loss_is_counted_in_points_of_accuracy(run: Run) -> None:
    run.sandbox.models["model_int8.onnx"] = run.images.logits(0.7)
    run.sandbox.models["model_int8.pt"] = run.images.logits(0.9)
    measured = run.measure_stage("04_quantize")
    assert measured.measurements["04.onnx"].value == pytest.approx(10)
    assert measured.measurements["04.torchscript"].value == pytest.approx(-10)
    assert "loses 10.0 points against FP32's 80.0%, n = 400" in (
        measured.measurements["04.onnx"].detail
    )
    assert measured.accepted


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"int8": 0, "float": 100, "unknown": 0}, "by 0% weights of eight bits, expected 75%"),
        ({"int8": 70, "float": 30, "unknown": 0}, "by 70% weights of eight bits"),
        ({"int8": 10**6, "float": 60_000, "unknown": 0}, "with 60,000 numbers of more than eight"),
        ({"int8": 3 * 10**6, "float": 9, "unknown": 0}, "3,000,000 weights of eight bits, where"),
        ({"int8": 99, "float": 1, "unknown": 1}, "not quantized to INT8"),
        ({"int8": 0, "float": 0, "unknown": 0}, "not quantized to INT8"),
        ({"int8": True, "float": -1, "unknown": None}, "could not be counted"),
    ],
)  # fmt: skip
def test_int8_is_what_the_operators_multiply_by(
    run: Run, counts: dict[str, Any], words: str
) -> None:
    """Whatever the size of the files: that of model.onnx is the student's own to choose."""
    run.sandbox.said["weights"] = counts
    run.write("model.onnx", b"x" * 100_000)
    measured = run.measure_stage("04_quantize")
    for item in ("04.torchscript", "04.onnx", "04.openvino"):
        assert measured.measurements[item].value is None
        assert words in measured.measurements[item].detail
    assert measured.measurements["04.evidence"].value == 0, "true, but of files that are not INT8"
    assert not measured.accepted


def test_a_small_network_may_not_stay_as_it_was_either(run: Run) -> None:
    run.sandbox.weights = 20_000
    run.sandbox.said["weights"] = {"int8": 20_000, "float": 6_000, "unknown": 0}
    found = run.measure_stage("04_quantize").measurements["04.onnx"]
    assert found.value is None and "expected 5,000 at most" in found.detail
    run.sandbox.said["weights"]["float"] = 2_000  # of 20,000
    assert run.measure_stage("04_quantize").measurements["04.onnx"].value is not None


def test_both_openvino_files_are_needed(run: Run) -> None:
    run.path("model_int8.bin").unlink()
    found = run.measure("04.openvino")
    assert found == Measurement(None, "model_int8.bin was not made")


def test_the_same_file_is_run_once(run: Run) -> None:
    run.measure_stage("04_quantize")
    ran = [asked for asked in run.sandbox.asked if asked != "weights"]
    assert sorted(ran) == sorted(["model.onnx", *QUANTIZED])


def test_claims_of_a_file_that_cannot_be_run_are_not_confirmed(run: Run) -> None:
    run.sandbox.models["model_int8.pt"] = "it cannot be loaded"
    measured = run.measure_stage("04_quantize")
    assert measured.measurements["04.torchscript"].value is None
    assert measured.measurements["04.evidence"].value == pytest.approx(2 / 3, abs=1e-3)


def test_another_network_of_the_same_accuracy_is_no_quantized_one(run: Run) -> None:
    """Where FP32 guesses, garbage loses nothing against it."""
    logits = run.images.logits(0.1)
    run.sandbox.models["model.onnx"] = logits
    run.sandbox.models["model_int8.onnx"] = np.roll(logits, 1, axis=1)
    measured = run.measure_stage("04_quantize")
    assert measured.measurements["04.onnx"].value is None
    assert "of model.onnx's answers, expected 70%" in measured.measurements["04.onnx"].detail
    assert not measured.accepted


# ---- 05


def test_a_variant_that_does_not_load_is_named(run: Run) -> None:
    run.sandbox.served["cifar10_onnx_int8"] = "no such file: model.onnx"
    measured = run.measure_stage("05_configure")
    served = measured.measurements["05.served"]
    assert served.value == pytest.approx(6 / 7, abs=1e-3)
    assert served.detail == "cifar10_onnx_int8: no such file: model.onnx"
    assert not measured.accepted
    assert measured.why_not == served.detail


def test_a_variant_that_answers_otherwise_than_its_file_is_found(run: Run) -> None:
    run.sandbox.served["cifar10_onnx"] = run.images.served(0.1)
    served = run.measure("05.served")
    assert served.value == pytest.approx(6 / 7, abs=1e-3)
    assert "cifar10_onnx answers" in served.detail


def test_a_server_that_was_stopped_leaves_nothing_to_measure(run: Run) -> None:
    run.sandbox.said["serve"] = UnfitFile("the program that measures it was stopped")
    measured = run.measure_stage("05_configure")
    assert measured.measurements["05.served"].value is None
    assert measured.measurements["05.configs"].value == 1
    assert not measured.accepted


def test_what_was_late_for_want_of_cpu_time_is_measured_once_more(run: Run) -> None:
    run.sandbox.models["model.onnx"] = "no answer after 120 s"
    turns: list[str] = []

    @contextmanager
    def alone() -> Iterator[None]:
        turns.append("alone")
        run.sandbox.models["model.onnx"] = run.images.logits()
        yield

    case = run.case("04_quantize")
    assert measure_patiently("04_quantize", case, alone)[0].measurements["04.onnx"].value is None
    assert not turns, "it had its core"
    case.forget_failures()
    run.sandbox.models["model.onnx"] = "no answer after 120 s"
    run.sandbox.forget_trouble = lambda: setattr(run.sandbox, "starved", not turns)  # type: ignore[method-assign]
    measured, trouble = measure_patiently("04_quantize", case, alone)
    assert measured.measurements["04.onnx"].value is not None
    assert (turns, trouble) == (["alone"], "")


def test_labels_are_not_mounted_where_models_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Sandbox] = []

    def pretend(sources: Any, isolation: Isolation, sandbox: Sandbox, *rest: Any) -> Any:
        given.append(sandbox)
        return MagicMock()

    monkeypatch.setattr(model_sandbox, "ConfinedProgram", pretend)
    isolation = Isolation(BUBBLEWRAP, "bwrap", "1")
    with ModelSandbox(isolation, "smoke", tmp_path / "work", tmp_path / "images") as sandbox:
        sandbox.start()
    images = "cifar-10-batches-bin"
    assert not [path for path in given[0].read_only if images in path]
    assert cache_dir() not in [*given[0].read_only.values(), *given[0].read_write.values()]
    with open_workdir(tmp_path / "work", isolation) as workdir:
        assert [path for path in workdir.sandbox("smoke").read_only if images in path]


def test_a_program_that_does_not_start_is_the_graders_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_sandbox, "START_S", 0.0)
    with ModelSandbox(Isolation(NONE), "smoke", tmp_path, tmp_path) as sandbox:
        with pytest.raises(UnfitFile, match="no answer after 0 s"):
            sandbox.ask(do="weights", file="x")
        assert sandbox.trouble


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("it raised ValueError when it was run", "it raised ValueError when it was run"),
        ("no answer after 120 s", "no answer after 120 s"),
        (
            "NetworkError: network.py does not run by itself (NameError: name 'x' is not defined):",
            "NetworkError: network.py does not run by itself (NameError: name 'x' is not defined)",
        ),
        (
            "NetworkError: network.py does not run by itself (ValueError: pixels 1, 2, 3)",
            "NetworkError: network.py does not run by itself (ValueError)",
        ),
        ("IMAGES 1, 2, 3", "it failed in words of its own"),
    ],
)
def test_what_is_told_of_a_network_is_the_graders_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    program = MagicMock(used=(0.0, 0.0), breach=None)
    program.__enter__.return_value, program.watch.cpu_s = program, 0.0
    program.hear.side_effect = [{"ready": True}, {"error": said}]
    monkeypatch.setattr(model_sandbox, "ConfinedProgram", lambda *given: program)
    with ModelSandbox(Isolation(NONE), "smoke", tmp_path / "work", tmp_path) as sandbox:
        with pytest.raises(UnfitFile) as failed:
            sandbox.ask(do="logits", file="/in/checkpoint.pt")
        assert str(failed.value) == told


@pytest.mark.parametrize(
    "answer", [None, [], "x", {}, {"failed": []}, {"failed": {"cifar10_onnx": ["x" * 9_000_000]}}]
)
def test_a_strange_answer_of_the_server_is_no_error(run: Run, answer: Any) -> None:
    run.sandbox.said["serve"] = answer
    run.sandbox.served["cifar10_onnx"] = "it does not load"
    assert run.measure("05.served").value == pytest.approx(6 / 7, abs=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('backend: "onnxruntime"', 'backend: "python"', "backend is 'python'"),
        ("max_batch_size: 64", "max_batch_size: 8", "max_batch_size is 8, expected 64"),
        ('name: "input"', 'name: "image"', "input is "),
        ("dims: [10]", "dims: [1000]", "output is "),
        ("TYPE_FP32", "TYPE_FP16", "input is "),
        ("dynamic_batching {\n}", "", "dynamic_batching is False, expected True"),
        ("count: 1", f"count: {2 * CORES + 1}", "5 instances, expected at least 1, at most 4"),
        ("max_batch_size: 64", "max_batch_size: 1e999", "does not fit Triton's schema"),
        ("max_batch_size: 64", "max_batch_size: 99999999999999999999", "does not fit"),
        ('backend: "onnxruntime"', 'backend: "\\377"', "cifar10_onnx: "),
        ('backend: "onnxruntime"', 'backend: "' + "x" * 100_000 + '"', "backend is "),
        ('backend: "onnxruntime"', "ensemble_scheduling { " * 500, "does not fit"),
        ('backend: "onnxruntime"', "no_such_field: 1", "does not fit"),
        ("", "\0", "cifar10_onnx: "),
    ],
    ids=lambda text: text[:24].strip(),
)  # fmt: skip
def test_a_wrong_configuration_is_found(run: Run, before: str, after: str, message: str) -> None:
    path = run.repository / "cifar10_onnx" / "config.pbtxt"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    found = run.measure("05.configs")
    assert found.value == pytest.approx(7 / 8, abs=1e-3)
    assert message in found.detail


def test_a_configuration_that_is_no_text_is_found(run: Run) -> None:
    (run.repository / "cifar10_onnx" / "config.pbtxt").write_bytes(b"\xff\xfe\x80")
    assert run.measure("05.configs").value == pytest.approx(7 / 8, abs=1e-3)


def test_more_instances_than_asked_for_are_fine(run: Run) -> None:
    path = run.repository / "cifar10_onnx" / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 2"))
    assert run.measure("05.configs").value == 1


@pytest.mark.parametrize(
    "found", [["no labels"], ["a\nb"] * 900, None, {"a": 1}, "", [["x"] * 99], UnfitFile("stopped")]
)
def test_what_labkit_check_finds_costs_a_check(run: Run, found: Any) -> None:
    run.sandbox.said["check"] = found
    measured = run.measure("05.configs")
    assert measured.value == pytest.approx(7 / 8, abs=1e-3)
    assert measured.detail.startswith("labkit check: ")


# ---- 06


def test_a_claim_is_held_against_the_server(run: Run) -> None:
    document = run.document("query.json")
    document["variants"]["cifar10_onnx"]["accuracy"] = 0.95
    document["variants"]["cifar10_onnx_int8"]["n"] = preset("smoke").test_images - 1
    run.write("query.json", document)
    measured = run.measure_stage("06_serve")
    assert share(measured) == pytest.approx(5 / 7, abs=1e-3)
    assert measured.accepted  # the others can go on with it


def test_a_variant_without_an_accuracy_is_not_complete(run: Run) -> None:
    document = run.document("query.json")
    del document["variants"]["cifar10_onnx"]
    run.write("query.json", document)
    measured = run.measure_stage("06_serve")
    assert share(measured) == pytest.approx(6 / 7, abs=1e-3)
    assert not measured.accepted
    assert "no accuracy of cifar10_onnx" in measured.why_not


def test_more_images_than_were_measured_again_widen_the_tolerance(run: Run) -> None:
    document = run.document("query.json")
    for row in document["variants"].values():
        row["accuracy"] += 0.05  # within three standard deviations of 80 images
    run.write("query.json", document)
    assert share(run.measure_stage("06_serve")) == 1
    for row in document["variants"].values():
        row["accuracy"] += 0.15
    run.write("query.json", document)
    assert share(run.measure_stage("06_serve")) == 0


def test_the_same_repository_is_served_once(run: Run) -> None:
    case = run.case("05_configure")
    measure_stage("05_configure", case)
    case.made = {"query.json": run.path("query.json")}
    measure_stage("06_serve", case)
    assert [asked for asked in run.sandbox.asked if asked.startswith("serve")] == ["serve None"]


def test_a_pipeline_is_measured_without_another_server(run: Run) -> None:
    """Its network has answered already; a tuned configuration beside it changes no answer."""
    case = run.case("05_configure")
    measure_stage("05_configure", case)
    tuned = run.repository / "cifar10_onnx" / "configs" / "tuned.pbtxt"
    tuned.parent.mkdir(exist_ok=True)
    tuned.write_text("another text")
    case.made = {"pipeline.json": run.path("pipeline.json")}
    [measurement] = measure_stage("10_pipeline", case).measurements.values()
    assert measurement.value == 1
    assert [asked for asked in run.sandbox.asked if asked.startswith("serve")] == ["serve None"]


def test_a_pipeline_whose_network_does_not_answer_is_not_confirmed(run: Run) -> None:
    run.sandbox.served[PIPELINE_NETWORK] = "it does not load"
    found = run.measure("10.answers")
    assert found.value == pytest.approx(2 / 3, abs=1e-3)
    assert found.detail == f"{PIPELINE_NETWORK}: it does not load"


def test_files_in_other_places_are_served_anew(run: Run) -> None:
    case = run.case("05_configure")
    measure_stage("05_configure", case)
    run.repository.joinpath("cifar10_onnx").rename(run.repository / "cifar10_onny")
    measure_stage("05_configure", case)
    assert len([asked for asked in run.sandbox.asked if asked.startswith("serve")]) == 2


# ---- 07


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "cifar10_tensorrt"}, "recommends none of the models"),
        ({"model": ["cifar10_onnx"]}, "recommends none of the models"),
        ({"model": "cifar10_onnx_int8"}, "tuned.pbtxt was not made"),
        ({"instances": 2}, "configs/tuned.pbtxt has {'instances': 1, 'dynamic_batching': True}"),
        ({"dynamic_batching": False}, "configs/tuned.pbtxt has"),
        ({"instances": "x" * 1_000_000}, "configs/tuned.pbtxt has"),
    ],
)
def test_a_recommendation_that_was_not_written_back_is_found(
    run: Run, change: dict[str, Any], message: str
) -> None:
    document = run.document("tune.json")
    document["recommendation"] |= change
    run.write("tune.json", document)
    measured = run.measure_stage("07_tune")
    [measurement] = measured.measurements.values()
    assert measurement.value is not None
    assert measurement.value < 1
    assert message in measurement.detail
    assert not measured.accepted


@pytest.mark.parametrize(
    "grid",
    [
        {}, None, [], "x", 7, {"1 × 1": [{}]}, {str(n): [] for n in range(9)},
        {str(n): [{"latency_ms": {"n": 0}, "images_per_s": {"median": 9}}] for n in range(9)},
        {str(n): [{"latency_ms": 7, "images_per_s": True}] for n in range(9)},
    ],
)  # fmt: skip
def test_a_tuning_needs_measurements(run: Run, grid: Any) -> None:
    document = run.document("tune.json")
    document["grid"] = grid
    run.write("tune.json", document)
    measured = run.measure_stage("07_tune")
    [measurement] = measured.measurements.values()
    assert measurement.value == pytest.approx(3 / 5, abs=1e-3)
    assert measured.accepted


@pytest.mark.parametrize(("factor", "share"), [(1.0, 1.0), (3.0, 1.0), (7.77, 0.6), (0.05, 0.6)])
def test_the_rates_of_a_tuning_are_measured_again(run: Run, factor: float, share: float) -> None:
    document = run.document("tune.json")
    for points in document["grid"].values():
        for point in points:
            point["images_per_s"]["median"] *= factor
    run.write("tune.json", document)
    found = run.measure("07.tuned")
    assert found.value == pytest.approx(share, abs=0.05)
    assert ("measured again with the tuned setting: 700" in found.detail) == (share < 1)


def test_a_tuned_model_that_answers_otherwise_is_found(run: Run) -> None:
    run.sandbox.served["cifar10_onnx"] = run.images.served(0.1)
    measured = run.measure_stage("07_tune")
    assert not measured.accepted
    assert "cifar10_onnx, tuned, answers" in measured.why_not


# ---- 08


def test_a_report_that_leaves_out_what_was_measured_is_found(run: Run) -> None:
    """With every mark taken out it still fits the schema, and says nothing that is wrong."""
    report = run.document("report.json")
    places = {(mark["evidence"]["file"], mark["evidence"]["pointer"]) for mark in marks(report)}

    def without_marks(node: Any) -> Any:
        if isinstance(node, dict):
            if "evidence" in node and "value" in node:
                kept = {key: what for key, what in node.items()
                        if key not in ("evidence", "value", "holds")}  # fmt: skip
                return kept | {"status": "not measured", "reason": "no time"}
            return {key: without_marks(what) for key, what in node.items()}
        return list(map(without_marks, node)) if isinstance(node, list) else node

    bare = without_marks(report)
    for row in bare["variants"]:
        row |= {"status": "not measured", "reason": "no time"}
    validate_report(bare)
    run.write("report.json", bare)
    [measurement] = run.measure_stage("08_report").measurements.values()
    assert measurement.value is not None
    assert measurement.value < 1
    assert f"leaves out {len(places)} values" in measurement.detail


def test_a_value_that_is_not_in_its_evidence_is_found(run: Run) -> None:
    report = run.document("report.json")
    measured = [claim for claim in report["claims"] if "value" in claim]
    assert measured
    measured[0]["value"] = "better"
    run.write("report.json", report)
    measured = run.measure_stage("08_report")
    assert share(measured) == pytest.approx(2 / 3, abs=1e-3)
    assert measured.accepted


@pytest.mark.parametrize(
    "file", ["../../secret.json", "/etc/hostname", "secret.json", "model.onnx", "", "splits.json"]
)
def test_evidence_is_looked_for_among_artifacts_only(run: Run, file: str) -> None:
    (run.folder / "secret.json").write_text('{"seed": 77123}')
    (run.folder / "artifacts" / "secret.json").write_text('{"seed": 77123}')
    report = run.document("report.json")
    claim = next(claim for claim in report["claims"] if "value" in claim)
    claim["evidence"] |= {"file": file, "pointer": "/seed"}
    run.write("report.json", report)
    [measurement] = run.measure_stage("08_report").measurements.values()
    assert measurement.value == pytest.approx(2 / 3, abs=1e-3)
    assert "77123" not in measurement.detail


def test_an_empty_page_and_rows_that_are_missing_cost_a_check_each(run: Run) -> None:
    report = run.document("report.json")
    report["variants"].reverse()
    run.write("report.json", report)
    run.write("report.html", b"<html></html>")
    assert share(run.measure_stage("08_report")) == pytest.approx(1 / 3, abs=1e-3)


def test_a_report_that_takes_long_to_read_is_not_read(run: Run) -> None:
    report = run.document("report.json")
    run.write("report.json", {**report, "claims": [{}] * 100_000})
    (measurement,) = run.measure_stage("08_report").measurements.values()
    assert "expected at most 300,000" in measurement.detail


@pytest.mark.parametrize("rows", [7, True, "rows", {"name": "cifar10_onnx"}, [None], [[]], None])
def test_rows_of_any_type_are_measured(run: Run, rows: Any) -> None:
    run.write("report.json", {**run.document("report.json"), "variants": rows})
    assert share(run.measure_stage("08_report")) == pytest.approx(1 / 3, abs=1e-3)


# ---- hostile JSON

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 3.7, 1e308, -1e308, 10**400, float("nan"), float("inf"), "", "0.8",
    "\ud800\x00\x1b[31m\n", "x" * 20_000, [], [[]], [None], {}, {"n": {}}, [{"value": "x"}] * 9,
)  # fmt: skip
BYTES = (
    b"", b"\xff\xfe", b"\x00" * 50, b"[" * 100_000, b'{"a":' * 90 + b"1" + b"}" * 90,
    b"7" * 10_000, b'{"validation_accuracy": 1e999}', b"null", b"[]", b'"text"', b"NaN",
    b'{"a": 1, "a": 2}', b"{]",
)  # fmt: skip
DOCUMENTS = [name for name in MADE_BY if name.endswith(".json") and name != "splits.json"]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a document."""
    yield path
    if isinstance(node, dict):
        for key, child in node.items():
            yield from places(child, (*path, key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from places(child, (*path, index))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def no_better(measured: StageMeasurements) -> None:
    """No lie and no nonsense is worth more than the truth; less is better of what INT8 loses."""
    for item, measurement in measured.measurements.items():
        if item not in FULL:
            assert measurement.value is None or 0 <= measurement.value <= 1
        elif measurement.value is not None:
            assert measurement.value == pytest.approx(FULL[item], abs=1e-6)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_value_of_any_type_is_an_error_or_worth_more(run: Run, name: str) -> None:
    document = run.document(name)
    top, *ways = places(document)
    most = 7 if name == "report.json" else 30  # its schema takes a while
    for path in (top, *random.Random(0).sample(ways, min(len(ways), most))):
        for junk in JUNK:
            run.write(name, with_value(document, path, junk))
            no_better(run.measure_stage(MADE_BY[name]))


@pytest.mark.parametrize("name", [*DOCUMENTS, "splits.json"])
def test_bytes_that_are_no_json_object_measure_nothing(run: Run, name: str) -> None:
    for content in BYTES:
        run.write(name, content)
        measured = run.measure_stage(MADE_BY[name])
        no_better(measured)
        if not content.startswith(b"{"):
            assert not measured.accepted or name == "report.json"


def test_splits_of_any_type_are_no_error(run: Run) -> None:
    document = run.document("splits.json")
    for junk in JUNK:
        for changed in (
            junk, {"indices": junk}, {"indices": {**document["indices"], "calibration": junk}},
        ):  # fmt: skip
            run.write("splits.json", changed)
            measured = run.measure_stage("01_data")
            assert not measured.accepted
            assert (share(measured) or 0) < 1


@pytest.mark.parametrize("answer", JUNK, ids=lambda junk: repr(junk)[:12])
def test_a_sandbox_that_was_taken_over_can_say_anything(run: Run, answer: Any) -> None:
    run.sandbox.said = dict.fromkeys(("batch_norms", "check", "serve", "weights"), answer)
    for stage in STAGES[2:]:
        no_better(run.measure_stage(stage))


def test_what_a_sandbox_says_of_a_failure_is_printable_and_short(run: Run) -> None:
    noise = "\ud800\x1b[2J<script>\n" * 50_000
    run.sandbox.models = dict.fromkeys(run.sandbox.models, noise)
    run.sandbox.served = dict.fromkeys(run.sandbox.served, noise)
    for stage in STAGES:
        measured = run.measure_stage(stage)
        told = [measurement.detail for measurement in measured.measurements.values()]
        for sentence in (measured.why_not, *told):
            assert sentence.isprintable()
            assert len(sentence) <= MAX_DETAIL
        write_json(run.folder / "result.json", measured.why_not)  # a lone surrogate is refused
        quoted = any("<script>" in sentence for sentence in told)
        assert quoted == (stage not in ("01_data", "08_report"))  # which run no files


# ---- parts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0), (0.5, 0.5), (-0.0, 0.0), (True, None), (None, None), ("1", None), ([1], None),
        (float("nan"), None), (float("inf"), None), (10**400, None), ({}, None),
    ],
)  # fmt: skip
def test_only_finite_numbers_are_numbers(value: Any, expected: float | None) -> None:
    assert number(value) == expected


def test_an_entry_is_found_or_none() -> None:
    document = {"a": {"b": [1]}, "c": 3}
    assert entry(document, "a", "b") == [1]
    assert entry(document, "a", "b", "0") is None
    assert entry(document, "c", "d") is None
    assert entry(None, "a") is None
    assert entry(document) is document


def test_checks_are_a_share_and_name_what_fails() -> None:
    assert Checks().measurement("fine") == Measurement(0.0, "fine")
    checks = Checks()
    assert checks.add(True, "first") is True
    assert checks.measurement("fine") == Measurement(1.0, "fine")
    assert checks.add(False, "second") is False
    checks.add(np.bool_(False), "third")  # type: ignore[arg-type]
    assert checks.measurement("fine") == Measurement(0.3333, "second; third")


def test_top1_counts_rows() -> None:
    labels = np.array([0, 1, 2, 9])
    assert top1(np.eye(10, dtype=np.float32)[[0, 1, 3, 9]], labels) == 0.75
    assert top1(np.empty((0, len(CLASSES)), np.float32), np.empty(0, np.int64)) == 0.0
