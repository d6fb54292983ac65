"""CIFAR-10 as arrays: loading, the splits, and the one preprocess."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.download import BATCHES, FOLDER, TEST_BATCH, DataError, fetch
from labkit.workspace import Workspace, cache_dir

__all__ = [
    "CIFAR10",
    "CLASSES",
    "DataError",
    "Images",
    "fetch",
    "load_cifar10",
    "load_split",
    "preprocess",
]

CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes

SPLIT_SIZES = {"train": 44_000, "validation": 5_000, "calibration": 1_000}


class Images(NamedTuple):
    """Images with their labels.

    Attributes:
        pixels: uint8 `(N, 3, 32, 32)`, in 0…255.
        labels: int64 `(N,)`, in 0…9.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, selection: NDArray[np.int64] | slice) -> "Images":
        """Return the selected images, with their labels."""
        return Images(self.pixels[selection], self.labels[selection])


@dataclass(frozen=True)
class CIFAR10:
    """The data set as it is published: 50,000 training and 10,000 test images."""

    train: Images
    test: Images


def load_cifar10(folder: Path | None = None) -> CIFAR10:
    """Load all 60,000 images, fetching them first where they are missing.

    Every byte is held against the published checksums on each load; a damaged cache is repaired.

    Args:
        folder: Where the binary batches are; the user's cache when None.

    Raises:
        DataError: the data is neither in the cache nor to be had from any source.
    """
    folder = folder or cache_dir() / FOLDER
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing releases the GIL
        batches = list(pool.map(_load_batch, [folder / name for name in BATCHES]))
    if any(batch is None for batch in batches):
        fetch(folder)
        batches = [_load_batch(folder / name) for name in BATCHES]
    loaded = {name: batch for name, batch in zip(BATCHES, batches, strict=True) if batch}
    test = loaded.pop(TEST_BATCH)
    pixels, labels = zip(*loaded.values(), strict=True)
    return CIFAR10(Images(np.concatenate(pixels), np.concatenate(labels)), test)


def _load_batch(path: Path) -> Images | None:
    """Read one binary batch; None when it is missing or damaged."""
    raw = path.read_bytes() if path.is_file() else b""
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != BATCHES[path.name]:
        return None
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    pixels = records[:, 1:].reshape(-1, *IMAGE_SHAPE)  # (10000, 3, 32, 32)
    return Images(pixels, records[:, 0].astype(np.int64))


def load_split(workspace: Workspace, name: str, limit: int | None = None) -> Images:
    """Load one part of the data, as this run has split it.

    Args:
        workspace: The run; its `splits.json` says which image belongs where.
        name: `train`, `validation`, `calibration` or `test`.
        limit: At most so many images, the same ones each time, with the classes mixed.

    Raises:
        DataError: there is no such part.
        MissingInput: `splits.json` has not been made yet.
    """
    cifar = load_cifar10()
    if name == "test":
        images = cifar.test
    else:
        splits = workspace.load_json("splits.json")["indices"]
        if name not in splits:
            raise DataError(f"got split {name!r}, expected one of: {', '.join([*splits, 'test'])}")
        images = cifar.train.take(np.asarray(splits[name], dtype=np.int64))
    return images.take(slice(limit))


def preprocess(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn image bytes into what every model of this lab takes.

    The one preprocess of training, calibration and client. Normalization by the statistics of the
    training split is part of the model, so that nobody can forget it.

    Args:
        pixels: uint8 `(N, 3, 32, 32)`, or one image `(3, 32, 32)`.

    Returns:
        float32 `(N, 3, 32, 32)`, in [0, 1], contiguous.

    Raises:
        DataError: another dtype or shape.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.shape[-3:] != IMAGE_SHAPE or pixels.ndim not in (3, 4):
        raise DataError(
            f"got images of {pixels.dtype} {pixels.shape}, expected uint8 (N, 3, 32, 32): "
            "channels first, values 0…255"
        )
    batch = pixels.reshape(-1, *IMAGE_SHAPE)
    return np.ascontiguousarray(batch, dtype=np.float32) / np.float32(255)
