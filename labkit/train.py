"""What training needs beside the loop of notebook 02: progress, and going on where it stopped."""

import ctypes
import hashlib
import logging
import platform
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch

from labkit.data import Images
from labkit.errors import LabError
from labkit.workspace import atomic_path

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


class TrainError(LabError):
    """A training that cannot go on."""


class Stateful(Protocol):
    """A network or an optimizer: something whose state can be taken and given back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state."""
        ...


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory instead of giving it back (Linux with glibc).

    A training step allocates and frees the same hundreds of megabytes again and again. Handed back
    and asked for anew, each page is zeroed and faulted in every time: at 32×32 pixels and batch
    500, keeping it gave 1.3 times the images per second (2 cores, medians of 10 steps).
    """
    if platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 28)):
            c_library.mallopt(option, value)


def fingerprint(images: Images) -> str:
    """Return a SHA-256 over the images and labels: equal only for equal data in equal order."""
    digest = hashlib.sha256(np.ascontiguousarray(images.pixels).data)
    digest.update(np.ascontiguousarray(images.labels).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch has done.

    Attributes:
        epoch: Counted from 1.
        size: Side of the training images, in pixels.
        learning_rate: Of the filters, at the epoch's last step.
        loss: Mean training loss, label smoothing included.
        train_accuracy: On the augmented images, while the weights were moving; in [0, 1].
        validation_accuracy: In [0, 1].
        seconds: Training time, without the validation.
        images_per_second: Training speed.
    """

    epoch: int
    size: int
    learning_rate: float
    loss: float
    train_accuracy: float
    validation_accuracy: float
    seconds: float
    images_per_second: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:2d}  {self.size} px  loss {self.loss:.3f}  "
            f"train {self.train_accuracy:6.2%}  validation {self.validation_accuracy:6.2%}"
        )


class Epochs:
    """The epochs of a training that may be interrupted and started again.

        epochs = Epochs(path, {"model": model, "sgd": optimizer}, {"recipe": …})
        for epoch in epochs.remaining(9):
            …
            epochs.finish(record)
        epochs.forget()

    After each epoch the state of all parts is written to `path`. A loop that is interrupted, by
    Ctrl-C or by the end of the process, continues after the last finished epoch; where everything
    random depends on the epoch's number alone, it ends with the very weights of an uninterrupted
    one. `forget`, when the network is saved, makes the next training a new one.

    Args:
        path: Where the state is kept.
        parts: What changes in training, by name.
        identity: What decides the weights. A state of another identity is not continued.
    """

    def __init__(
        self, path: Path, parts: Mapping[str, Stateful], identity: Mapping[str, Any]
    ) -> None:
        self.path, self.history = path, list[EpochRecord]()
        self._parts = parts
        self._identity = {**identity, "torch": str(torch.__version__), "numpy": np.__version__}
        self._state = self._take_state()
        self._resume()

    def remaining(self, count: int) -> Iterator[int]:
        """Yield the numbers of the epochs still to do of `count`, from 0; drop a half-done one."""
        self._restore_state()
        while len(self.history) < count:
            yield len(self.history)

    def finish(self, record: EpochRecord) -> None:
        """Keep the state at the end of an epoch, and print what the epoch has done.

        Raises:
            TrainError: the loss is not a number.
        """
        if not np.isfinite(record.loss):
            raise TrainError("the loss is not a number any more: lower the learning rates")
        self.history.append(record)
        self._state = self._take_state()
        with atomic_path(self.path) as temporary:
            torch.save({"identity": self._identity, "state": self._state}, temporary)
        print(record, flush=True)

    def forget(self) -> None:
        """Remove the file: the training is over, and its result is saved elsewhere."""
        self.path.unlink(missing_ok=True)

    def _take_state(self) -> dict[str, Any]:
        """Copy everything that the next epoch depends on."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return deepcopy({"parts": states, "history": [asdict(entry) for entry in self.history]})

    def _restore_state(self) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(deepcopy(self._state["parts"][name]))
        self.history = [EpochRecord(**record) for record in self._state["history"]]

    def _resume(self) -> None:
        """Continue an interrupted training, when it is this very one."""
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, weights_only=True)
            found, state = saved["identity"], saved["state"]
        except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, TypeError) as error:
            log.warning("starting over: %s is damaged (%s)", self.path.name, error)
            return
        if other := [key for key, value in self._identity.items() if found.get(key) != value]:
            log.warning("starting over: %s has another %s", self.path.name, " and ".join(other))
            return
        self._state = state
        self._restore_state()
        log.warning("resuming after epoch %d", len(self.history))
