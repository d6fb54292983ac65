"""Training: a trainer that can be interrupted, evaluation, and checkpoints."""

import ctypes
import hashlib
import logging
import platform
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.data import Images, preprocess
from labkit.errors import LabError
from labkit.model import CifarNet, set_whitening
from labkit.muon import Muon
from labkit.recipe import FULL_SIZE, RECIPES, TrainConfig, one_cycle
from labkit.workspace import atomic_path

__all__ = [
    "RECIPES",
    "CheckpointError",
    "EpochRecord",
    "TrainConfig",
    "TrainError",
    "Trainer",
    "build_model",
    "evaluate",
    "load_checkpoint",
    "one_cycle",
    "predict",
    "save_checkpoint",
    "set_seed",
]

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


class TrainError(LabError):
    """Training was asked for something it cannot do."""


class CheckpointError(LabError):
    """A checkpoint is missing, damaged or of another format."""


def set_seed(seed: int, threads: int) -> None:
    """Seed every random generator in use and fix the number of threads.

    Both decide the weights: sums over threads are added in an order that depends on their number.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)


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


def build_model(config: TrainConfig, images: Images) -> CifarNet:
    """Seed, and return an untrained network whose first layer whitens these images."""
    set_seed(config.seed, config.threads)
    model = CifarNet(config.widths)
    set_whitening(model, images.pixels[:5_000])
    return model


def predict(model: nn.Module, pixels: NDArray[Any], batch_size: int = 500) -> NDArray[np.float32]:
    """Return the logits of images, in evaluation mode; the model's mode is left as it was.

    Args:
        model: Takes float32 `(N, 3, 32, 32)` in [0, 1].
        pixels: uint8 in 0…255, or float32 in [0, 1]; `(N, 3, 32, 32)`.
        batch_size: Images per forward pass.

    Returns:
        float32 `(N, 10)`.
    """
    training = model.training
    model.eval()
    logits = []
    try:
        with torch.inference_mode():
            for start in range(0, len(pixels), batch_size):
                part = pixels[start : start + batch_size]
                images = torch.from_numpy(preprocess(part) if part.dtype == np.uint8 else part)
                logits.append(model(images.contiguous(memory_format=torch.channels_last)).float())
    finally:
        model.train(training)
    return torch.cat(logits).numpy() if logits else np.empty((0, 10), np.float32)


def evaluate(model: nn.Module, images: Images, batch_size: int = 500) -> float:
    """Return the share of images whose highest logit is the right class, in [0, 1]."""
    return float((predict(model, images.pixels, batch_size).argmax(1) == images.labels).mean())


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


class Trainer:
    """The parts of a training loop, which stays in the hands of whoever writes it.

        for epoch in trainer.remaining_epochs():
            for images, labels in trainer.batches(epoch):
                logits = model(images)
                loss = trainer.loss(logits, labels)
                loss.backward()
                trainer.step(loss, logits)
            trainer.end_epoch(evaluate(model, validation))

    After each epoch the whole state is written beside `checkpoint`. A loop that is interrupted,
    by Ctrl-C or by the end of the process, continues from the last finished epoch and ends with
    the very weights of an uninterrupted one. `checkpoint` itself appears when training is done;
    a finished run is never continued: a new trainer trains anew.

    Args:
        model: The network; changed in place.
        images: The training images; the first `config.train_images` are used.
        config: The recipe.
        checkpoint: Where the trained network goes; None keeps everything in memory.
    """

    def __init__(
        self,
        model: CifarNet,
        images: Images,
        config: TrainConfig,
        checkpoint: Path | None = None,
    ) -> None:
        keep_freed_memory()
        images = images.take(slice(config.train_images))
        if len(images.labels) == 0:
            raise TrainError("got no training images, expected at least one")
        self.model = model.to(memory_format=torch.channels_last)
        self.config = config
        self.checkpoint = checkpoint
        self.history: list[EpochRecord] = []
        self.batch_size = min(config.batch_size, len(images.labels))
        self.steps_per_epoch = len(images.labels) // self.batch_size
        self._labels = torch.from_numpy(images.labels)
        padding = [(0, 0), (0, 0), *[(config.shift, config.shift)] * 2]
        self._padded = torch.from_numpy(np.pad(images.pixels, padding, mode="reflect"))
        self._optimizers = make_optimizers(model, config)
        self._identity = {
            "train_config": config.as_dict(),
            "model_config": model.config,
            "data": fingerprint(images),
            "versions": versions(),
        }
        self._begin_epoch()
        self._state = self._take_state()
        self._resume()

    @property
    def partial(self) -> Path | None:
        """Where the state of an unfinished training is kept; None without a checkpoint."""
        return self.checkpoint and self.checkpoint.with_suffix(f".partial{self.checkpoint.suffix}")

    def remaining_epochs(self) -> Iterator[int]:
        """Yield the numbers of the epochs still to do, from 0; drop a half-done one first."""
        self._restore_state(self._state)
        while len(self.history) < self.config.epochs:
            yield len(self.history)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches in random order, augmented; the incomplete last one is left.

        Flips alternate: who was mirrored in one epoch is not in the next, so that two epochs show
        both sides of every image (Jordan, "94 % on CIFAR-10 in 3.29 seconds", 2024). Everything
        random depends on the seed and the epoch alone, never on what ran before.

        Yields:
            float32 `(batch, 3, size, size)` in [0, 1], channels last; int64 `(batch,)`.
        """
        self._begin_epoch()
        self.model.train()
        started = time.perf_counter()
        random_bits = torch.Generator().manual_seed(self.config.seed)
        first_flips = torch.rand(len(self._labels), generator=random_bits) < 0.5
        generator = torch.Generator().manual_seed(self.config.seed * 10_000 + epoch + 1)
        order = torch.randperm(len(self._labels), generator=generator)
        offsets = torch.randint(2 * self.config.shift + 1, (2, len(order)), generator=generator)
        windows = self._padded.unfold(2, FULL_SIZE, 1).unfold(3, FULL_SIZE, 1)  # (N, 3, 5, 5, …)
        for start in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            down, right = offsets[:, start : start + self.batch_size]
            pixels = windows[chosen, :, down, right]  # uint8 (batch, 3, 32, 32)
            flipped = first_flips[chosen] ^ bool(epoch % 2)
            pixels = torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)
            self._batch_labels = self._labels[chosen]
            yield self._resize(pixels.numpy(), epoch), self._batch_labels
        self._seconds = time.perf_counter() - started

    def _resize(self, pixels: NDArray[np.uint8], epoch: int) -> Tensor:
        images = torch.from_numpy(preprocess(pixels)).to(memory_format=torch.channels_last)
        size = self.config.image_size(epoch)
        if size == FULL_SIZE:
            return images
        return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy against smoothed labels."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the forward pass runs: bfloat16 where the recipe says so."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16")

    def step(self, loss: Tensor, logits: Tensor) -> None:
        """Set the learning rates, move the weights along their gradients, clear the gradients."""
        done = len(self.history) * self.steps_per_epoch + self._steps
        factor = one_cycle(done / (self.config.epochs * self.steps_per_epoch), self.config.warmup)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self._steps += 1
        self._loss_sum += loss.item()
        self._correct += int((logits.argmax(1) == self._batch_labels).sum())

    def end_epoch(self, validation_accuracy: float) -> EpochRecord:
        """Write the state to disk and return what the epoch has done.

        Raises:
            TrainError: some batches have not been stepped on, or the loss is not a number.
        """
        epoch = len(self.history)
        if self._steps != self.steps_per_epoch:
            raise TrainError(
                f"epoch {epoch + 1} has done {self._steps} of {self.steps_per_epoch} steps: "
                "call trainer.step(loss, logits) once for every batch"
            )
        if not np.isfinite(self._loss_sum):
            raise TrainError("the loss is not a number any more: lower the learning rates")
        images = self._steps * self.batch_size
        record = EpochRecord(
            epoch=epoch + 1,
            size=self.config.image_size(epoch),
            learning_rate=self._optimizers[0].param_groups[0]["lr"],
            loss=self._loss_sum / self._steps,
            train_accuracy=self._correct / images,
            validation_accuracy=validation_accuracy,
            seconds=self._seconds,
            images_per_second=images / self._seconds,
        )
        self.history.append(record)
        self._state = self._take_state()
        self._save()
        return record

    def _begin_epoch(self) -> None:
        self._steps, self._correct, self._loss_sum, self._seconds = 0, 0, 0.0, 0.0

    def _take_state(self) -> dict[str, Any]:
        """Copy everything that the next epoch depends on."""
        return deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
                "history": [asdict(record) for record in self.history],
            }
        )

    def _restore_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(deepcopy(saved))
            optimizer.zero_grad()
        self.history = [EpochRecord(**record) for record in state["history"]]

    def _save(self) -> None:
        """Write the finished network, or else the state to continue from."""
        if self.checkpoint is None or self.partial is None:
            return
        if len(self.history) < self.config.epochs:
            _write(self.partial, self._identity | {"state": self._state})
        else:
            save_checkpoint(self.checkpoint, self.model, self.history, self._identity)
            self.partial.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Continue an interrupted training, when it is this very one."""
        if self.partial is None or not self.partial.is_file():
            return
        try:
            saved = _read(self.partial)
        except CheckpointError as error:
            log.warning("starting over: %s", error)
            return
        other = [key for key, value in self._identity.items() if saved.get(key) != value]
        if other:
            log.warning(
                "starting over: %s is of another %s", self.partial.name, " and ".join(other)
            )
            return
        self._state = saved["state"]
        self._restore_state(self._state)
        log.warning("resuming after epoch %d of %d", len(self.history), self.config.epochs)


def make_optimizers(model: CifarNet, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the convolutions' filters, and SGD for the biases and the last layer."""
    trained = [parameter for parameter in model.stages.parameters() if parameter.requires_grad]
    filters = [parameter for parameter in trained if parameter.ndim == 4]
    biases = [parameter for parameter in trained if parameter.ndim == 1]
    muon = Muon(filters, config.filter_lr, config.filter_momentum)
    groups = [
        # torch multiplies the decay by the learning rate: divide, so that they are independent
        {"params": parameters, "lr": lr, "weight_decay": config.weight_decay / lr}
        for parameters, lr in (
            (biases, config.bias_lr),
            (list(model.classifier.parameters()), config.head_lr),
        )
    ]
    sgd = torch.optim.SGD(groups, momentum=config.momentum, nesterov=True)
    for optimizer in (muon, sgd):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, sgd]


def fingerprint(images: Images) -> str:
    """Return a SHA-256 over the images and labels: equal only for equal data in equal order."""
    digest = hashlib.sha256(np.ascontiguousarray(images.pixels).data)
    digest.update(np.ascontiguousarray(images.labels).data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that the weights depend on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
    }


def save_checkpoint(
    path: Path, model: CifarNet, history: list[EpochRecord], meta: dict[str, Any]
) -> None:
    """Write a trained network with all that is needed to rebuild and to judge it, atomically.

    Args:
        path: Usually `checkpoint.pt`.
        model: The network.
        history: One record per epoch.
        meta: `train_config`, and whatever else should be found again by `load_checkpoint`.
    """
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    records = [asdict(record) for record in history]
    _write(path, {**meta, "model_config": model.config, "model": state, "history": records})


def load_checkpoint(path: Path) -> tuple[CifarNet, dict[str, Any]]:
    """Rebuild a trained network.

    No code from the file is run: it is read with `weights_only=True`.

    Returns:
        The network in evaluation mode, and `train_config`, `model_config`, `history`, `data`
        (SHA-256 of the training images) and `versions` in a dictionary.

    Raises:
        CheckpointError: the file is missing, damaged, or was written by another version.
    """
    content = _read(Path(path))
    try:
        model = CifarNet(**content["model_config"])
        model.load_state_dict(content.pop("model"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{Path(path).name} does not fit this version's CifarNet ({error}): "
            "run notebook 02_train again"
        ) from error
    return model.eval(), content


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **content}, temporary)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path.name}: run notebook 02_train first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or not a checkpoint: run notebook 02_train again"
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path.name} has format {found}, expected {CHECKPOINT_FORMAT}: "
            "run notebook 02_train again"
        )
    return content
