"""Images that a submission is measured on; the labels stay with the grader.

CIFAR-10 is public, so no image of it is unknown to a student, and a model file could carry a table
from images to labels. The held-out images are test images, chosen by the seed of the grading and
changed by it: mirrored, moved, lighter or darker. To a network that was trained with such changes
they are as good as others, to a table of images they are unknown. Who trains on the test images all
the same gains what a network remembers of them; see docs/grading.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labkit.data import Images, load_cifar10
from labkit.profiles import preset

MODELS, SERVED = "models.u8", "served.u8"  # files of uint8 (N, 3, 32, 32)
HELD_OUT_IMAGES = {"smoke": 1_000, "standard": 2_000, "full": 2_000}
SERVED_HELD_OUT = 200  # held-out images that are also sent through the server
MOST_SHIFT, MOST_LIGHT = 2, 12  # of held-out images, in pixels and of 255
TRAINING_IMAGES = 50_000
MAX_TEST_IMAGES = 2_000  # of those that notebook 06 asked the server about
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class GradingImages:
    """The images of a grading: chosen once, the same for every submission.

    Attributes:
        held_out: Test images, changed so that no table of them knows them.
        test: The first test images, those that notebook 06 uses.
        training: All training images; a submission's splits say which are for validation.
    """

    held_out: Images
    test: Images
    training: Images

    @classmethod
    def choose(cls, profile: str, seed: int) -> "GradingImages":
        """Choose the images of a grading.

        Args:
            profile: Decides how many.
            seed: Decides which.
        """
        cifar = load_cifar10()
        asked = min(preset(profile).test_images, MAX_TEST_IMAGES)
        held_out = hold_out(cifar.test, HELD_OUT_IMAGES[profile], seed)
        return cls(held_out, cifar.test.take(slice(asked)), cifar.train)


def hold_out(test: Images, count: int, seed: int) -> Images:
    """Return `count` test images, chosen by `seed`, as no student has seen them.

    Each is mirrored, moved by up to MOST_SHIFT pixels in both directions, and made lighter or
    darker by up to MOST_LIGHT of 255.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(test.labels), count, replace=False))
    images = test.take(chosen)
    mirrored = images.pixels[..., ::-1]
    around = ((0, 0), (0, 0), (MOST_SHIFT, MOST_SHIFT), (MOST_SHIFT, MOST_SHIFT))
    padded = np.pad(mirrored, around, mode="edge")
    height, width = mirrored.shape[2:]
    moves = rng.integers(0, 2 * MOST_SHIFT + 1, (count, 2))
    lights = rng.integers(-MOST_LIGHT, MOST_LIGHT + 1, count)
    pixels = np.stack(
        [
            np.clip(image[:, y : y + height, x : x + width].astype(np.int16) + light, 0, 255)
            for image, (y, x), light in zip(padded, moves, lights, strict=True)
        ]
    ).astype(np.uint8)
    return Images(pixels, images.labels)


class ImageFiles:
    """The images of one submission, written without their labels for the sandbox to read.

    `models.u8` holds the held-out images, then those that the submission validates on; `served.u8`
    the first held-out images, then the test images.

    Args:
        folder: Where the files go.
        images: Those of the grading.
        profile: Decides how many are for validation.
    """

    def __init__(self, folder: Path, images: GradingImages, profile: str) -> None:
        self.folder, self._images = folder, images
        self._validation_images = preset(profile).validation_images
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.served_labels = np.concatenate(
            [images.held_out.labels[:SERVED_HELD_OUT], images.test.labels]
        )
        _write(folder / SERVED, images.held_out.pixels[:SERVED_HELD_OUT], images.test.pixels)
        self.validation_labels: Labels = np.empty(0, np.int64)

    def use_splits(self, validation: list[int]) -> None:
        """Write the images again, with these training images as those for validation."""
        chosen = np.asarray(validation[: self._validation_images], dtype=np.int64)
        images = self._images.training.take(chosen)
        self.validation_labels = images.labels
        _write(self.folder / MODELS, self._images.held_out.pixels, images.pixels)

    @property
    def training_labels(self) -> Labels:
        """Labels (50000,) of the training images."""
        return self._images.training.labels

    @property
    def held_out_labels(self) -> Labels:
        """Labels (N,) of the held-out images."""
        return self._images.held_out.labels


def _write(path: Path, *pixels: NDArray[np.uint8]) -> None:
    with path.open("wb") as stream:
        for part in pixels:
            np.ascontiguousarray(part).tofile(stream)
    path.chmod(0o644)
