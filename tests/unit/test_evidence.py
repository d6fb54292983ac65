"""A mark without evidence cannot be produced: here it is tried, in every way we could think of."""

import dataclasses
from pathlib import Path

import pytest

from labkit.evidence import (
    EvidenceFolder,
    MeasuredValue,
    NoEvidence,
    Unmeasured,
    measured_or_reason,
)
from labkit.workspace import Workspace, sha256, write_json

QUERY = {"variants": {"cifar10_onnx": {"accuracy": 0.91, "p99": None, "list": [1, 2]}, "a/b": 7}}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.at(tmp_path / "run")
    workspace.save_json("query.json", QUERY, made_by="06_serve")
    return workspace


@pytest.fixture
def folder(workspace: Workspace) -> EvidenceFolder:
    return EvidenceFolder(workspace)


def test_a_mark_reads_its_value_from_the_file(workspace: Workspace, folder: EvidenceFolder) -> None:
    mark = MeasuredValue(folder, "query.json", "/variants/cifar10_onnx/accuracy")
    assert mark.value == 0.91
    assert mark.to_dict() == {
        "status": "measured",
        "value": 0.91,
        "evidence": {
            "file": "query.json",
            "pointer": "/variants/cifar10_onnx/accuracy",
            "sha256": sha256(workspace.path("query.json")),
        },
    }


def test_pointers_reach_into_lists_and_escaped_names(folder: EvidenceFolder) -> None:
    assert MeasuredValue(folder, "query.json", "/variants/cifar10_onnx/list/1").value == 2
    assert MeasuredValue(folder, "query.json", "/variants/a~1b").value == 7


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ("/variants/cifar10_onnx/recall", "nothing at"),
        ("/variants/cifar10_onnx/accuracy/deeper", "nothing at"),
        ("/variants/cifar10_onnx/list/9", "nothing at"),
        ("/variants/cifar10_onnx/p99", "null at"),
    ],
)
def test_no_value_no_mark(folder: EvidenceFolder, pointer: str, message: str) -> None:
    with pytest.raises(NoEvidence, match=message):
        MeasuredValue(folder, "query.json", pointer)


def test_no_file_no_mark(folder: EvidenceFolder) -> None:
    with pytest.raises(NoEvidence, match=r"tune\.json is no recorded artifact"):
        MeasuredValue(folder, "tune.json", "/recommendation")


def test_a_file_that_no_step_recorded_is_no_evidence(workspace: Workspace) -> None:
    write_json(workspace.path("tune.json"), {"recommendation": 1})
    with pytest.raises(NoEvidence, match="no recorded artifact"):
        MeasuredValue(EvidenceFolder(workspace), "tune.json", "/recommendation")


def test_an_edited_file_is_no_evidence(workspace: Workspace) -> None:
    better = workspace.path("query.json").read_text().replace("0.91", "0.99")
    workspace.path("query.json").write_text(better)
    with pytest.raises(NoEvidence, match="was changed after 06_serve had recorded it"):
        MeasuredValue(EvidenceFolder(workspace), "query.json", "/variants/cifar10_onnx/accuracy")


def test_a_value_cannot_be_given_nor_changed(folder: EvidenceFolder) -> None:
    with pytest.raises(TypeError):
        MeasuredValue(folder, "query.json", "/variants/cifar10_onnx/accuracy", 0.99)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        MeasuredValue(folder, "query.json", "/variants/cifar10_onnx/accuracy", value=0.99)  # type: ignore[call-arg]
    mark = MeasuredValue(folder, "query.json", "/variants/cifar10_onnx/accuracy")
    with pytest.raises(dataclasses.FrozenInstanceError):
        mark.value = 0.99  # type: ignore[misc]


def test_what_is_unmeasured_needs_a_reason(folder: EvidenceFolder) -> None:
    with pytest.raises(NoEvidence, match="needs a reason"):
        Unmeasured("  ")
    missing = measured_or_reason(folder, "query.json", "/variants/cifar10_onnx/recall")
    assert isinstance(missing, Unmeasured)
    assert missing.to_dict()["status"] == "not measured"
