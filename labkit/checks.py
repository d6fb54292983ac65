"""What a correct stage has produced, and a hint where it has not.

A stage is judged by the files it leaves, never by what its notebook says. The checks read small
numbers of images: they find a stage that went wrong; the notebooks measure how well it went.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.data import SPLIT_SIZES, load_split, preprocess
from labkit.errors import LabError
from labkit.profiles import Profile
from labkit.repository import PIPELINE, VARIANTS, available_variants, parse_config
from labkit.repository_check import ERROR, check_repository
from labkit.workspace import Workspace

PROBE_IMAGES = 256

# Lowest accepted validation accuracy. Chance is 0.1; a net that learned at all clears these.
MIN_ACCURACY = {"smoke": 0.25, "standard": 0.88, "full": 0.90}
MAX_LOSS_SERVED = 0.05  # below MIN_ACCURACY: INT8, and other images than those of validation
MIN_AGREEMENT_EXPORT = 0.99  # share of equal predictions, exported model against PyTorch
MIN_AGREEMENT_INT8 = {"smoke": 0.80, "standard": 0.93, "full": 0.93}


class CheckFailed(LabError):
    """An answer to an exercise, or the output of a stage, is not right."""


@dataclass(frozen=True)
class CheckResult:
    """One check of a stage.

    Attributes:
        name: What is checked.
        passed: Whether it holds.
        detail: What was found.
        hint: What to look at when it does not hold.
    """

    name: str
    passed: bool
    detail: str
    hint: str = ""


def expect(name: str, condition: bool, hint: str) -> None:
    """Check an exercise: say that it is right, or stop with a hint.

    Args:
        name: What is checked, as the student reads it.
        condition: Whether it holds.
        hint: What to look at when it does not.

    Raises:
        CheckFailed: it does not hold.
    """
    if not bool(condition):
        raise CheckFailed(f"{name}: not yet. Hint: {hint}")
    print(f"ok: {name}")


def check_stage(stage: str, workspace: Workspace, profile: Profile) -> list[CheckResult]:
    """Run every check of one stage.

    Args:
        stage: Name of the notebook, such as `03_export`.
        workspace: The run.
        profile: How much work the run did; thresholds depend on it.

    Returns:
        One result per check. An error inside a check is a failed check, with its message.
    """
    missing = workspace.unrecorded(stage)
    results = [
        CheckResult(
            "every file is made and recorded",
            not missing,
            f"not so: {', '.join(missing) or 'none'}",
            "run the notebook to its end; it enters each file into manifest.json",
        )
    ]
    try:
        results.extend(STAGE_CHECKS[stage](workspace, profile))
    except LabError as error:
        results.append(CheckResult(f"{stage} can be checked", False, str(error)))
    except Exception as error:  # a damaged artifact fails in the library that reads it
        detail = f"{type(error).__name__}: {error}"
        results.append(CheckResult(f"{stage} can be checked", False, detail))
    return results


def _check_data(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """The splits: right sizes, no image in two of them."""
    indices = workspace.load_json("splits.json")["indices"]
    sizes = {name: len(part) for name, part in indices.items()}
    yield CheckResult("split sizes", sizes == SPLIT_SIZES, f"{sizes}", f"expected {SPLIT_SIZES}")
    together = [index for part in indices.values() for index in part]
    distinct = len(set(together))
    yield CheckResult(
        "no image in two splits",
        distinct == len(together),
        f"{len(together) - distinct} repeated",
        "an image that is trained on tells nothing when it is tested on",
    )


def _check_training(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """The checkpoint: loads, and predicts better than a net that learned nothing."""
    from labkit.network import NetworkRunner
    from labkit.runtime import accuracy as measure

    workspace.load_json("history.json")
    runner = NetworkRunner(workspace.require("checkpoint.pt"))
    images = load_split(workspace, "validation", limit=4 * PROBE_IMAGES)
    accuracy = measure(runner, images.pixels, images.labels)
    least = MIN_ACCURACY[profile.name]
    yield CheckResult(
        "validation accuracy",
        accuracy >= least,
        f"{accuracy:.3f} on {len(images.labels)} images, at least {least} expected",
        "look at the curves: did the loss fall, was the learning rate right",
    )


def _agreement(
    workspace: Workspace, reference: str, names: list[str]
) -> Iterator[tuple[str, float]]:
    """Share of equal predictions of each model file with a reference, on validation images."""
    from labkit.network import NetworkRunner
    from labkit.runtime import load_runner

    images = load_split(workspace, "validation", limit=PROBE_IMAGES)
    inputs = preprocess(images.pixels)

    def predictions(name: str) -> NDArray[np.int64]:
        path = workspace.require(name)
        runner = NetworkRunner(path) if name == "checkpoint.pt" else load_runner(path)
        return runner(inputs).argmax(axis=1)

    expected = predictions(reference)
    for name in names:
        yield name, float((predictions(name) == expected).mean())


def _check_export(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """The exported models predict what the checkpoint predicts."""
    names = ["model.pt", "model_optimized.pt", "model.onnx"]
    for name, agreement in _agreement(workspace, "checkpoint.pt", names):
        yield CheckResult(
            f"{name} agrees with PyTorch",
            agreement >= MIN_AGREEMENT_EXPORT,
            f"{agreement:.3f} of {PROBE_IMAGES} predictions equal",
            "was the model in eval mode when it was exported?",
        )
    workspace.load_json("export.json")


def _check_quantization(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """The INT8 models predict nearly what the FP32 model predicts."""
    least = MIN_AGREEMENT_INT8[profile.name]
    names = ["model_int8.pt", "model_int8.onnx", "model_int8.xml"]
    for name, agreement in _agreement(workspace, "model.onnx", names):
        yield CheckResult(
            f"{name} agrees with FP32",
            agreement >= least,
            f"{agreement:.3f} of {PROBE_IMAGES} predictions equal, at least {least} expected",
            "calibrate on preprocessed images, and quantize weights per channel",
        )
    workspace.load_json("quantize.json")


def _check_repository(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """Every variant is configured, and its configuration fits its files."""
    names = [spec.name for spec in available_variants(workspace)]
    expected = [name for name in VARIANTS if name != "cifar10_tensorrt"]
    missing = sorted(set(expected) - set(names))
    yield CheckResult(
        "every variant has its files",
        not missing,
        f"missing: {', '.join(missing) or 'none'}",
        "run notebooks 03_export and 04_quantize to the end",
    )
    for name in names:
        errors = [
            finding
            for finding in check_repository(workspace.repository, [name])
            if finding.severity == ERROR
        ]
        detail = "; ".join(map(str, errors)) or "fits its files"
        yield CheckResult(f"{name} is configured", not errors, detail, "run `labkit check`")


def _check_query(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """Every variant answered, and its accuracy was measured through the server."""
    variants = workspace.load_json("query.json")["variants"]
    least = MIN_ACCURACY[profile.name] - MAX_LOSS_SERVED
    for name in (name for name in VARIANTS if name != "cifar10_tensorrt"):
        row = variants.get(name, {})
        accuracy, n = row.get("accuracy") or 0.0, row.get("n", 0)
        yield CheckResult(
            f"{name} answered",
            accuracy >= least and n >= profile.test_images,
            f"accuracy {accuracy:.3f} on {n} images, at least {least:.2f} on "
            f"{profile.test_images} expected",
            "preprocess as in training, and see the server's log for a model that did not load",
        )


def _check_tuning(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """Tuning left a measured recommendation, and the configuration that it recommends."""
    wanted = workspace.load_json("tune.json")["recommendation"]
    path = workspace.repository / wanted["model"] / "configs" / "tuned.pbtxt"
    written = parse_config(path.read_text(encoding="utf-8")) if path.is_file() else None
    found = written and {
        "instances": written.instance_group[0].count,
        "dynamic_batching": written.HasField("dynamic_batching"),
    }
    yield CheckResult(
        "the recommendation is written back",
        found == {key: wanted[key] for key in ("instances", "dynamic_batching")},
        f"configs/tuned.pbtxt of {wanted['model']} has {found or 'not been written'}",
        "write it with write_config(..., name='tuned')",
    )


def _check_pipeline(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """The pipeline is in the repository, and answers raw pixels as its network answers floats."""
    found = workspace.load_json("pipeline.json")
    row = found["variants"][PIPELINE]
    least = MIN_ACCURACY[profile.name] - MAX_LOSS_SERVED
    yield CheckResult(
        f"{PIPELINE} answered",
        row["accuracy"] >= least and row["n"] >= profile.test_images,
        f"accuracy {row['accuracy']:.3f} on {row['n']} images, at least {least:.2f} on "
        f"{profile.test_images} expected",
        "the step before the network has to give pixels in [0, 1], channels first",
    )
    path = workspace.repository / PIPELINE / "config.pbtxt"
    config = parse_config(path.read_text(encoding="utf-8")) if path.is_file() else None
    steps = [step.model_name for step in config.ensemble_scheduling.step] if config else []
    yield CheckResult(
        f"{PIPELINE} is configured",
        len(steps) >= 2,
        f"steps: {', '.join(steps) or 'none'}",
        "its config.pbtxt needs ensemble_scheduling with a step for each model",
    )


def _check_report(workspace: Workspace, profile: Profile) -> Iterator[CheckResult]:
    """The report fits its schema, has a row for every variant, and has a page."""
    from labkit.report import REPORTED, validate_report

    report = workspace.load_json("report.json")
    validate_report(report, workspace)
    rows = [row["name"] for row in report["variants"]]
    yield CheckResult("a row for every variant", rows == list(REPORTED), f"rows: {', '.join(rows)}")
    page = workspace.require("report.html")
    yield CheckResult(
        "the page is there", page.stat().st_size > 10_000, f"{page.stat().st_size:,} bytes"
    )


STAGE_CHECKS: dict[str, Callable[[Workspace, Profile], Iterator[CheckResult]]] = {
    "01_data": _check_data,
    "02_train": _check_training,
    "03_export": _check_export,
    "04_quantize": _check_quantization,
    "05_configure": _check_repository,
    "06_serve": _check_query,
    "07_tune": _check_tuning,
    "10_pipeline": _check_pipeline,
    "08_report": _check_report,  # after 10, which it reports
}
