"""Measuring training, export and quantization: what the model files answer."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from labkit.grading.measure.base import (
    COMPANIONS,
    PARITY_BATCHES,
    Case,
    Checks,
    Floats,
    Logits,
    StageMeasurements,
    entry,
    top1,
)
from labkit.grading.results import Measurement
from labkit.grading.untrusted import UnfitFile

PARITY_TOLERANCE = 1e-3  # of a logit, as in notebook 03
SAME_ANSWERS = 0.99  # share of equal predictions of an exported model
USABLE_ANSWERS = 0.9  # less, and later notebooks go on with the reference's files
CLAIM_TOLERANCE = 0.005  # of an accuracy that is computed again from the same images
INT8_CLAIM_TOLERANCE = 0.01  # INT8 kernels may round otherwise on another machine
INT8_AGREEMENT = 0.7  # share of FP32's answers at least; in smoke 0.95 and more are measured
INT8_WEIGHTS = 0.75  # share of the numbers behind operators that have eight bits, at least
MOST_INT8 = 1.25  # of the numbers in model.onnx: of a quantizer it is the share that it changes
# Numbers of more bits, at most, and no larger share of those in model.onnx: eight bits can be added
# that change nothing. The lab's own files have 4,500 to 6,400, of 1.1 million.
MOST_FLOATS = 50_000

EXPORTED = {
    "03.torchscript": "model.pt",
    "03.optimized": "model_optimized.pt",
    "03.onnx": "model.onnx",
}
QUANTIZED = {
    "04.torchscript": "model_int8.pt",
    "04.onnx": "model_int8.onnx",
    "04.openvino": "model_int8.xml",
}


def measure_training(case: Case) -> StageMeasurements:
    """The checkpoint's accuracy on held-out images, and whether the history tells the truth."""
    case.own("checkpoint.pt")
    logits = case.logits("checkpoint.pt")
    labels = case.images.held_out_labels
    accuracy = top1(logits.held_out, labels)
    found = f"{accuracy:.1%} of {len(labels):,} held-out images right"
    measured = StageMeasurements({"02.accuracy": Measurement(accuracy, found)})
    measured.measure("02.history", lambda: _measure_history(case, logits))
    return measured


def _measure_history(case: Case, logits: Logits) -> Measurement:
    history = case.document("history.json")
    checks = Checks()
    epochs = history.get("epochs")
    checks.add(isinstance(epochs, list) and len(epochs) > 0, "no epoch is recorded")
    measured = top1(logits.validation, case.images.validation_labels)
    claimed = history.get("validation_accuracy")
    checks.claim("history.json", "checkpoint.pt", claimed, measured, CLAIM_TOLERANCE)
    return checks.measurement(f"the validation accuracy of {measured:.1%} is confirmed")


def measure_export(case: Case) -> StageMeasurements:
    """Every exported file answers what the checkpoint answers, at several batch sizes."""
    reference = case.logits("checkpoint.pt")
    measured = StageMeasurements()
    for item, name in EXPORTED.items():
        measured.measure(item, partial(_measure_parity, case, name, reference, measured))
    measured.measure("03.evidence", lambda: _measure_export_claims(case, reference))
    return measured


def _measure_parity(
    case: Case, name: str, reference: Logits, stage: StageMeasurements
) -> Measurement:
    """Compare one file with the checkpoint."""
    case.own(name)
    logits = case.logits(name)
    checks = Checks()
    for batch in PARITY_BATCHES:
        expected = reference.held_out[:batch].astype(np.float64)  # which has no overflow here
        difference = float(np.abs(logits.batches[batch] - expected).max())
        checks.add(
            difference <= PARITY_TOLERANCE,
            f"{name} at batch {batch}: logits up to {difference:.2g} away from checkpoint.pt's, "
            f"at most {PARITY_TOLERANCE:g} expected",
        )
    same = _agreement(logits.held_out, reference.held_out)
    checks.add(same >= SAME_ANSWERS, f"{name}: {same:.1%} of the predictions are checkpoint.pt's")
    if name == "model_optimized.pt":
        left = _batch_norms(case, name)
        checks.add(left == 0, f"{name}: {left} batch norms are left, 0 expected after freezing")
    stage.require(
        same >= USABLE_ANSWERS, f"{name} answers {same:.0%} of the images as checkpoint.pt does"
    )
    return checks.measurement(f"{name} answers as checkpoint.pt does, at every batch size")


def _batch_norms(case: Case, name: str) -> int | None:
    try:
        inside = case.sandbox.put(case.own(name), name)
        left = case.sandbox.ask(do="batch_norms", file=inside)
        return left if type(left) is int else None
    except UnfitFile:
        return None
    finally:
        case.sandbox.clear()


def _measure_export_claims(case: Case, reference: Logits) -> Measurement:
    document = case.document("export.json")
    measured = top1(reference.validation, case.images.validation_labels)
    checks = Checks()
    for name in EXPORTED.values():
        if problem := _other_answers(case, name, reference):
            checks.add(False, problem)
            continue
        claimed = entry(document, "accuracy", name)
        checks.claim("export.json", name, claimed, measured, CLAIM_TOLERANCE)
        rows = entry(document, "parity", name)
        checks.add(isinstance(rows, list) and len(rows) > 0, f"no parity is recorded for {name}")
    return checks.measurement("accuracy of every file confirmed, parity recorded")


def _other_answers(case: Case, name: str, reference: Logits) -> str:
    """Say why the checkpoint's accuracy is not that of an exported file; empty where it is."""
    try:
        case.own(name)
        same = _agreement(case.logits(name).held_out, reference.held_out)
    except UnfitFile as error:
        return str(error)
    return "" if same >= SAME_ANSWERS else f"{name} answers otherwise than checkpoint.pt"


def measure_quantization(case: Case) -> StageMeasurements:
    """Every INT8 file against the FP32 model that it was made from: points of accuracy lost."""
    reference = case.logits("model.onnx")
    measured = StageMeasurements()
    for item, name in QUANTIZED.items():
        measured.measure(item, partial(_measure_loss, case, name, reference))
    losses = dict(measured.measurements)
    measured.measure("04.evidence", lambda: _measure_quantization_claims(case, losses))
    return measured


def _measure_loss(case: Case, name: str, reference: Logits) -> Measurement:
    """Return the points of accuracy that one file loses."""
    case.own(name)
    logits = case.logits(name)
    _require_int8(case, name)
    _require_same_network(_agreement(logits.held_out, reference.held_out), name)
    labels = case.images.held_out_labels
    before = top1(reference.held_out, labels)
    lost = 100 * (before - top1(logits.held_out, labels))
    change = f"loses {lost:.1f}" if lost >= 0 else f"gains {-lost:.1f}"
    found = f"{name} {change} points against FP32's {before:.1%}, n = {len(labels):,}"
    return Measurement(round(lost, 3), found)


def _require_int8(case: Case, name: str) -> None:
    """Refuse a file that does not compute with weights of eight bits.

    Raises:
        UnfitFile: they do not.
    """
    int8, others, unknown = _numbers(case, name)
    share = int8 / (int8 + others) if int8 + others else 0.0
    if unknown or share < INT8_WEIGHTS:
        raise UnfitFile(
            f"{name} multiplies by {share:.0%} weights of eight bits, expected "
            f"{INT8_WEIGHTS:.0%} or more: not quantized to INT8"
        )
    _, before, _ = _numbers(case, "model.onnx")
    if int8 > MOST_INT8 * before:  # bytes that are parts of numbers with more bits
        raise UnfitFile(
            f"{name} multiplies by {int8:,} weights of eight bits, where model.onnx has {before:,} "
            "numbers: not quantized to INT8"
        )
    most = min(MOST_FLOATS, int((1 - INT8_WEIGHTS) * before))
    if others > most:
        raise UnfitFile(
            f"{name} computes with {others:,} numbers of more than eight bits, expected "
            f"{most:,} at most: not quantized to INT8"
        )


def _numbers(case: Case, name: str) -> tuple[int, int, int]:
    """Count what a file computes with: numbers of eight bits, of more, and what is not clear.

    Raises:
        UnfitFile: they cannot be counted.
    """
    try:
        for other in COMPANIONS.get(name, ()):
            case.sandbox.put(case.file(other), other)
        inside = case.sandbox.put(case.file(name), name)
        found = case.sandbox.ask(do="weights", file=inside)
    finally:
        case.sandbox.clear()
    found = found if isinstance(found, dict) else {}
    int8, others, unknown = (
        count if type(count := found.get(kind)) is int and count >= 0 else -1
        for kind in ("int8", "float", "unknown")
    )
    if min(int8, others, unknown) < 0:
        raise UnfitFile(f"{name}: its weights could not be counted")
    return int8, others, unknown


def _require_same_network(agreement: float, name: str) -> None:
    """Refuse answers of another network: where FP32 guesses, any other guess loses no accuracy.

    Raises:
        UnfitFile: they are.
    """
    if agreement < INT8_AGREEMENT:
        raise UnfitFile(
            f"{name} gives {agreement:.0%} of model.onnx's answers, expected {INT8_AGREEMENT:.0%} "
            "or more: quantize that model"
        )


def _measure_quantization_claims(case: Case, losses: Mapping[str, Measurement]) -> Measurement:
    document = case.document("quantize.json")
    checks = Checks()
    for item, name in QUANTIZED.items():
        if losses[item].value is None:  # what is said of another file is not true of an INT8 one
            checks.add(False, losses[item].detail)
            continue
        measured = top1(case.logits(name).validation, case.images.validation_labels)
        claimed = entry(document, "variants", name, "accuracy")
        checks.claim("quantize.json", name, claimed, measured, INT8_CLAIM_TOLERANCE)
    return checks.measurement("the validation accuracy of every INT8 file is confirmed")


def _agreement(logits: Floats, reference: Floats) -> float:
    return top1(logits, reference[: len(logits)].argmax(1))
