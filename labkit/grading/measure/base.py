"""What every measurement is made from: the case at hand, its checks, and logits computed once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.data import SPLIT_SIZES
from labkit.grading.carry_forward import StageInputs, StageOutputs
from labkit.grading.measure.images import MODELS, TRAINING_IMAGES, ImageFiles
from labkit.grading.measure.model_sandbox import ModelSandbox
from labkit.grading.results import Measurement
from labkit.grading.untrusted import UnfitFile, load_json
from labkit.workspace import sha256

Floats = NDArray[np.float32]
PARITY_BATCHES = (1, 7, 64)

# A model's further files, beside the one that is loaded.
COMPANIONS = {"checkpoint.pt": ("network.py",), "model_int8.xml": ("model_int8.bin",)}

COPIES = ("model.pt", "model_optimized.pt")  # compared with the checkpoint, image by image
COPY_IMAGES = 300
# Whose accuracy on the validation images the student has written down.
CLAIMED = ("checkpoint.pt", "model_int8.pt", "model_int8.onnx", "model_int8.xml")


@dataclass
class StageMeasurements:
    """What was measured of one stage.

    Attributes:
        measurements: Rubric item → measurement.
        problems: Why later stages may not go on with its artifacts; empty where they may.
    """

    measurements: dict[str, Measurement] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether later stages may go on with its artifacts."""
        return not self.problems

    @property
    def why_not(self) -> str:
        """Where they may not, why."""
        return "; ".join(self.problems)

    @classmethod
    def one(cls, item: str, measurement: Measurement, accepted: bool) -> "StageMeasurements":
        """Return that of a stage with one item, which says why where it is not accepted."""
        return cls({item: measurement}, [] if accepted else [measurement.detail])

    def measure(self, item: str, measure: Callable[[], Measurement]) -> Measurement:
        """Add the measurement of an item; what cannot be measured is a problem, too."""
        try:
            self.measurements[item] = measure()
        except UnfitFile as error:
            self.measurements[item] = Measurement(None, str(error))
            self.problems.append(str(error))
        return self.measurements[item]

    def require(self, condition: object, otherwise: str) -> None:
        """Note a problem where something does not hold."""
        if not condition:
            self.problems.append(otherwise)


@dataclass(frozen=True)
class Logits:
    """A model's answers (N, 10) to the held-out and the validation images.

    Attributes:
        held_out: To the held-out images, many to a call; of `COPIES` to the first of them only.
        validation: To the images that the submission validates on; empty where none are needed.
        batches: Batch size → its answers to the first images, in a call of just that size.
    """

    held_out: Floats
    validation: Floats
    batches: Mapping[int, Floats]


@dataclass
class Case:
    """One submission while its stages are measured, in order.

    Attributes:
        sandbox: The sandbox that runs model files.
        images: Files of images, and their labels.
        profile: `smoke`, `standard` or `full`.
        given: Artifact → file, those of earlier stages that the stage at hand was given.
        made: Artifact → file, those that it made.
        repository: The model repository after the stage; None where there is none.
        missing: Artifact → why it is not among `made`.
        served: What servers answered, by the files that they served.
    """

    sandbox: ModelSandbox
    images: ImageFiles
    profile: str
    given: dict[str, Path] = field(default_factory=dict)
    made: dict[str, Path] = field(default_factory=dict)
    repository: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)
    _logits: dict[str, Logits | UnfitFile] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    _splits: Path | None = None

    def of(self, inputs: StageInputs, outputs: StageOutputs) -> "Case":
        """Go on to a stage that made this of that."""
        self.given, self.made, self.missing = inputs.artifacts, outputs.files, outputs.missing
        self.repository = outputs.repository or inputs.repository
        return self

    def use_splits(self, splits: Path) -> None:
        """Use these splits for the images that the submission validates on.

        With a stage that fails, those before it are replaced as well; then what files have answered
        to other validation images is of no use.
        """
        if splits != self._splits:
            self._splits = splits
            self.images.use_splits(split_indices(load_json(splits))["validation"])
            self._logits.clear()
            self.served.clear()

    def forget_failures(self) -> None:
        """Run what could not be run once more, the next time that it is asked for."""
        for key in [key for key, found in self._logits.items() if isinstance(found, UnfitFile)]:
            del self._logits[key]

    def file(self, name: str) -> Path:
        """Return an artifact, made by the stage or given to it.

        Raises:
            UnfitFile: there is none; the message says why.
        """
        return self.made.get(name) or self.given.get(name) or self.own(name)

    def own(self, name: str) -> Path:
        """Return an artifact that the stage itself must have made.

        Raises:
            UnfitFile: it has not; the message says why.
        """
        if name not in self.made:
            raise UnfitFile(self.missing.get(name, f"{name} was not made"))
        return self.made[name]

    def document(self, name: str) -> Any:
        """Return the content of a JSON artifact that the stage itself must have made.

        Raises:
            UnfitFile: it is missing or no JSON object.
        """
        content = load_json(self.own(name))
        if not isinstance(content, dict):
            raise UnfitFile(f"{name} holds {type(content).__name__}, expected an object")
        return content

    def logits(self, name: str) -> Logits:
        """Run a model file in the sandbox, once, on as many images as its measurements need.

        Raises:
            UnfitFile: it cannot be run; the message says why.
        """
        path = self.file(name)
        files = {name: path} | {other: self.file(other) for other in COMPANIONS.get(name, ())}
        key = " ".join([name, *map(sha256, files.values())])
        if key not in self._logits:
            try:
                self._logits[key] = self._measure(files, name)
            except UnfitFile as error:
                self._logits[key] = UnfitFile(f"{name}: {error}")
        found = self._logits[key]
        if isinstance(found, UnfitFile):
            raise found
        return found

    def _measure(self, files: dict[str, Path], name: str) -> Logits:
        held_out = len(self.images.held_out_labels)
        if name in COPIES:
            count = min(held_out, COPY_IMAGES)
        elif name in CLAIMED:
            count = held_out + len(self.images.validation_labels)
        else:
            count = held_out
        slices = [[0, batch] for batch in PARITY_BATCHES] + [[0, count]]
        answer = self.sandbox.logits(files, name, MODELS, slices)
        ends = np.cumsum([last for _, last in slices])
        *batches, whole = np.split(answer, ends[:-1])
        return Logits(
            whole[:held_out], whole[held_out:], dict(zip(PARITY_BATCHES, batches, strict=True))
        )


class Checks:
    """Sub-checks of one item: their share is its value, the first that fails its detail."""

    def __init__(self) -> None:
        self._results: list[bool] = []
        self._failed: list[str] = []

    def add(self, holds: bool, otherwise: str) -> bool:
        """Note whether something holds, and what to say where it does not."""
        self._results.append(bool(holds))
        if not holds:
            self._failed.append(otherwise)
        return bool(holds)

    def claim(self, file: str, of: str, claimed: Any, measured: float, tolerance: float) -> None:
        """Note whether an accuracy that a student has written down is the measured one.

        Args:
            file: Where it is written.
            of: The model that it is of.
            claimed: What is written, of any type.
            measured: On the same images.
            tolerance: How far they may differ.
        """
        value = number(claimed)
        shown = "nothing" if value is None else f"{value:.1%}"
        self.add(
            value is not None and abs(value - measured) <= tolerance,
            f"{file} says {shown} for {of}, measured {measured:.1%} on the same images",
        )

    def measurement(self, right: str) -> Measurement:
        """Return the share of what holds; `right` is the sentence for all of it."""
        share = sum(self._results) / len(self._results) if self._results else 0.0
        return Measurement(round(share, 4), "; ".join(self._failed[:4]) or right)


def top1(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Return the share of rows whose largest logit is at the label, in [0, 1]."""
    return float((logits.argmax(1) == labels).mean()) if len(labels) else 0.0


def number(value: Any) -> float | None:
    """Return a number of a stranger's JSON as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if np.isfinite(converted) else None


def entry(document: Any, *keys: str) -> Any:
    """Return what is at a place of a stranger's JSON; None where nothing is."""
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def split_indices(document: Any) -> dict[str, list[int]]:
    """Return the indices of a `splits.json`.

    Raises:
        UnfitFile: it has no such lists of whole numbers.
    """
    indices = document.get("indices") if isinstance(document, dict) else None
    if not isinstance(indices, dict) or set(indices) != set(SPLIT_SIZES):
        raise UnfitFile(f"splits.json names no indices of {', '.join(SPLIT_SIZES)}")
    for name, part in indices.items():
        whole = isinstance(part, list) and len(part) <= TRAINING_IMAGES
        if not whole or not all(type(i) is int and abs(i) < 2**31 for i in part):
            raise UnfitFile(f"splits.json: {name} is no list of at most 50,000 whole numbers")
    return indices
