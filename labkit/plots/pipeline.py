"""A figure of the pipeline: from a photo to a label."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from labkit.plots.style import BLUE, GREY, subplots


def photo_to_label(
    photo: NDArray[np.uint8], seen: NDArray[np.float32], shares: Mapping[str, float]
) -> Figure:
    """Show a photo, what the network gets of it, and how it divides its belief over the classes.

    Args:
        photo: uint8 (height, width, 3).
        seen: float32 (3, 32, 32) in [0, 1].
        shares: Class → softmax of the logits, in [0, 1].
    """
    figure, (left, middle, right) = subplots(1, 3, figsize=(10, 3.1), width_ratios=(1.35, 1, 1.35))
    height, width = photo.shape[:2]
    left.imshow(photo)
    left.set_title(f"sent: {height} × {width} pixels")
    middle.imshow(seen.transpose(1, 2, 0))  # (3, 32, 32) → (32, 32, 3)
    middle.set_title("the network gets: 32 × 32")
    for axis in (left, middle):
        axis.axis("off")
    best = max(shares, key=lambda name: shares[name])
    colours = [BLUE if name == best else GREY for name in shares]
    bars = right.barh(list(shares), list(shares.values()), color=colours)
    right.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=3)
    right.set_title(f"answer: {best}")
    right.set_xlabel("softmax of the logits")
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.set_xlim(0, 1.15)
    right.set_xticks([0, 0.5, 1])
    right.grid(axis="y", visible=False)
    right.invert_yaxis()
    return figure
