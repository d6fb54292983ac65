"""The training recipe: every number that decides the weights, and the schedules made of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from labkit.errors import LabError
from labkit.profiles import Profile

FULL_SIZE = 32  # pixels, the side of a CIFAR-10 image


class RecipeError(LabError):
    """A training configuration that makes no sense, or that this version does not know."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the trained weights, apart from the images and the versions.

    Equal configurations, images, versions and CPU give equal weights, bit by bit.
    """

    epochs: int
    widths: tuple[int, ...] = (32, 128, 256)  # channels of the three stages
    train_images: int | None = None  # the first so many of the split; None: all
    batch_size: int = 500  # images per step
    filter_lr: float = 0.12  # peak, of Muon: the angle of one step, in radians, roughly
    filter_momentum: float = 0.6  # of Muon
    bias_lr: float = 5.0  # peak, of SGD on the mean loss: batch-norm biases
    head_lr: float = 0.2  # peak, of SGD on the mean loss: the last layer
    momentum: float = 0.85  # of SGD, Nesterov
    weight_decay: float = 1e-3  # share of a weight lost per step at the peak, SGD only
    warmup: float = 0.1  # share of the steps in which the learning rates rise
    label_smoothing: float = 0.2  # probability given to all classes alike
    shift: int = 2  # images move by up to so many pixels, each way
    first_size: int = 20  # pixels, side of the images in the first epoch
    growing: float = 0.6  # share of the epochs until the images have their full size
    precision: str = "fp32"  # or "bf16": convolutions in bfloat16, fast where the CPU has AMX
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise RecipeError(f"got precision {self.precision!r}, expected 'fp32' or 'bf16'")
        if min(self.epochs, self.batch_size, self.threads) < 1:
            raise RecipeError(
                f"got epochs {self.epochs}, batch_size {self.batch_size}, threads {self.threads}; "
                "each must be at least 1"
            )
        object.__setattr__(self, "widths", tuple(self.widths))  # a checkpoint holds a list

    @classmethod
    def from_profile(cls, profile: Profile) -> "TrainConfig":
        """Return the recipe of a profile.

        Raises:
            RecipeError: no recipe has the profile's name.
        """
        if profile.name not in RECIPES:
            raise RecipeError(
                f"there is no recipe for profile {profile.name!r}; known: {', '.join(RECIPES)}"
            )
        return replace(
            RECIPES[profile.name],
            train_images=profile.train_images,
            seed=profile.seed,
            threads=profile.threads,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Rebuild a configuration from a checkpoint.

        Raises:
            RecipeError: a field is unknown, as in a checkpoint of another version.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise RecipeError(f"the training configuration has unknown fields: {unknown}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for checkpoints and JSON."""
        return asdict(self) | {"widths": list(self.widths)}

    def image_size(self, epoch: int) -> int:
        """Return the side of the training images in an epoch, in pixels: a multiple of 4."""
        grown = min(1.0, epoch / max(1.0, self.growing * self.epochs))
        return self.first_size + int((FULL_SIZE - self.first_size) * grown) // 4 * 4


RECIPES: dict[str, TrainConfig] = {
    "smoke": TrainConfig(epochs=2, batch_size=200, growing=1.0),
    "standard": TrainConfig(epochs=9, growing=0.7),
    "full": TrainConfig(epochs=24, widths=(64, 256, 256), batch_size=1000),
}


def one_cycle(progress: float, warmup: float) -> float:
    """Return the learning rate's share of its peak: up in a straight line, then down to zero.

    Args:
        progress: Share of the training that is done, in [0, 1].
        warmup: Share of the training spent rising, in [0, 1).
    """
    if progress < warmup:
        return 0.2 + 0.8 * progress / warmup
    return (1 - progress) / (1 - warmup)
