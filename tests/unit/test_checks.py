"""The checks must fail on work that is wrong: each stage is damaged and held against them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labkit import checks
from labkit.chain import PRACTICE, STAGES
from labkit.checks import CheckFailed, check_stage, expect
from labkit.data import SPLIT_SIZES
from labkit.profiles import preset
from labkit.repository import PIPELINE, VARIANTS, write_config
from labkit.workspace import Workspace, project_root

SMOKE = preset("smoke")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "run")


def failed(stage: str, workspace: Workspace) -> list[str]:
    return [result.name for result in check_stage(stage, workspace, SMOKE) if not result.passed]


def test_expect_prints_or_raises(capsys: pytest.CaptureFixture[str]) -> None:
    expect("two and two", 2 + 2 == 4, "count")
    assert capsys.readouterr().out == "ok: two and two\n"
    with pytest.raises(CheckFailed, match=r"two and two: not yet\. Hint: count again"):
        expect("two and two", 2 + 2 == 5, "count again")
    with pytest.raises(CheckFailed):
        expect("numpy's false", np.bool_(False), "a numpy truth is a truth")


def test_every_graded_notebook_has_checks() -> None:
    names = {path.stem for path in (project_root() / "notebooks").glob("*.ipynb")}
    assert set(STAGES) | set(PRACTICE) == names


@pytest.mark.parametrize("stage", STAGES)
def test_an_empty_workspace_passes_no_stage(stage: str, workspace: Workspace) -> None:
    results = check_stage(stage, workspace, SMOKE)
    assert results
    assert not all(result.passed for result in results)


def save_splits(workspace: Workspace, **changes: list[int]) -> None:
    ends = np.cumsum(list(SPLIT_SIZES.values()))[:-1]
    parts = np.split(np.arange(50_000), ends)
    splits = {name: part.tolist() for name, part in zip(SPLIT_SIZES, parts, strict=True)}
    workspace.save_json("splits.json", {"indices": {**splits, **changes}}, made_by="01_data")
    workspace.save_json("statistics.json", {"mean": [0.5] * 3, "std": [0.25] * 3}, "01_data")


def test_splits(workspace: Workspace) -> None:
    save_splits(workspace)
    assert failed("01_data", workspace) == []
    save_splits(workspace, calibration=list(range(SPLIT_SIZES["calibration"])))  # some trained on
    assert failed("01_data", workspace) == ["no image in two splits"]
    save_splits(workspace, calibration=[])
    assert failed("01_data", workspace) == ["split sizes"]


def test_a_damaged_file_is_a_failed_check_not_a_crash(workspace: Workspace) -> None:
    workspace.path("splits.json").write_text("{")
    results = check_stage("01_data", workspace, SMOKE)
    assert not any(result.passed for result in results)
    assert "not valid JSON" in results[-1].detail
    workspace.path("splits.json").write_text('{"indices": 7}')
    assert not any(result.passed for result in check_stage("01_data", workspace, SMOKE))


def fake_models(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts of every variant that a reader of their tensors is told to accept."""
    for spec in VARIANTS.values():
        if spec.backend != "tensorrt":
            for artifact in spec.artifacts:
                workspace.path(artifact).write_bytes(b"model")
            write_config(workspace.repository, spec)
    monkeypatch.setattr(checks, "check_repository", lambda repository, names: [])


def test_serving_needs_every_variant_and_every_image(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_models(workspace, monkeypatch)
    rows = {
        name: {"accuracy": 0.4, "n": SMOKE.test_images}
        for name in VARIANTS
        if name != "cifar10_tensorrt"
    }
    workspace.save_json("query.json", {"variants": rows}, made_by="06_serve")
    assert failed("06_serve", workspace) == []
    rows["cifar10_onnx"]["n"] -= 1
    del rows["cifar10_onnx_int8"]
    rows["cifar10_torchscript"]["accuracy"] = 0.1  # chance: pixels that were not preprocessed
    workspace.save_json("query.json", {"variants": rows}, made_by="06_serve")
    wrong = ("cifar10_torchscript", "cifar10_onnx", "cifar10_onnx_int8")
    assert failed("06_serve", workspace) == [f"{name} answered" for name in wrong]


def test_files_of_an_earlier_run_do_not_count(workspace: Workspace) -> None:
    save_splits(workspace)
    workspace.forget("01_data")  # as the chain does before the notebook runs again
    assert failed("01_data", workspace) == ["every file is made and recorded"]
    save_splits(workspace)
    assert failed("01_data", workspace) == []
    workspace.path("splits.json").write_text(workspace.path("splits.json").read_text() + " ")
    assert failed("01_data", workspace) == ["every file is made and recorded"]


def test_configuration_names_the_missing_variant(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_models(workspace, monkeypatch)
    workspace.save_json("configure.json", {}, made_by="05_configure")
    assert failed("05_configure", workspace) == []
    workspace.path("model_int8.pt").unlink()
    results = check_stage("05_configure", workspace, SMOKE)
    assert "cifar10_torchscript_int8" in results[1].detail
    assert not results[1].passed


def test_the_pipeline_needs_its_images_its_accuracy_and_its_steps(workspace: Workspace) -> None:
    row = {"accuracy": 0.4, "n": SMOKE.test_images}
    folder = workspace.repository / PIPELINE
    folder.mkdir()
    steps = "ensemble_scheduling { step { model_name: 'a' } step { model_name: 'b' } }"
    for config, changes, wrong in (
        (steps, {}, []),
        (steps, {"accuracy": 0.1}, [f"{PIPELINE} answered"]),
        (steps, {"n": 10}, [f"{PIPELINE} answered"]),
        ("platform: 'ensemble'", {}, [f"{PIPELINE} is configured"]),
    ):
        (folder / "config.pbtxt").write_text(config)
        document = {"variants": {PIPELINE: row | changes}}
        workspace.save_json("pipeline.json", document, made_by="10_pipeline")
        assert failed("10_pipeline", workspace) == wrong


def test_tuning_needs_the_written_config(workspace: Workspace) -> None:
    recommendation = {
        "recommendation": {"model": "cifar10_onnx", "instances": 2, "dynamic_batching": True}
    }
    workspace.save_json("tune.json", recommendation, made_by="07_tune")
    assert failed("07_tune", workspace) == ["the recommendation is written back"]
    spec = VARIANTS["cifar10_onnx"]
    write_config(workspace.repository, spec, name="tuned")  # of an earlier run: one instance
    assert failed("07_tune", workspace) == ["the recommendation is written back"]
    write_config(workspace.repository, replace(spec, instances=2), name="tuned")
    assert failed("07_tune", workspace) == []
