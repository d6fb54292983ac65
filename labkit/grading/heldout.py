"""Images that a submission is judged on; the labels stay with the grader.

CIFAR-10 is public, so no image of it is unknown to a student, and a model file could carry a table
from images to labels. The held-out images are test images seen in a mirror, chosen by the seed of
the grading: to a network that was trained with mirrored images they are as good as others, to a
table of checksums they are unknown.
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
MAX_TEST_IMAGES = 2_000  # of those that notebook 06 asked the server about
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class GradingImages:
    """The images of a grading: chosen once, the same for every submission.

    Attributes:
        held_out: Mirrored test images.
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
    """Return `count` mirrored test images, chosen by `seed`."""
    chosen = np.sort(np.random.default_rng(seed).choice(len(test.labels), count, replace=False))
    images = test.take(chosen)
    return Images(np.ascontiguousarray(images.pixels[..., ::-1]), images.labels)


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
