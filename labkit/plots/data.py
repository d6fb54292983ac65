"""Figures of the data: what is in it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from labkit.data import CLASSES, Images
from labkit.plots.style import BLUE, GREEN, ORANGE, PALETTE, subplots


def image_grid(images: Images) -> Figure:
    """Show the first images of each class, a row per class.

    Args:
        images: Images with labels.
    """
    per_class = 8
    figure, axes = subplots(len(CLASSES), per_class, figsize=(per_class * 0.85, 8.5))
    for label, row in enumerate(axes):
        members = np.flatnonzero(images.labels == label)[:per_class]
        for axis, index in zip(row, members, strict=False):
            axis.imshow(images.pixels[index].transpose(1, 2, 0))  # (3, 32, 32) → (32, 32, 3)
        for axis in row:
            axis.axis("off")
        row[0].text(-8, 16, CLASSES[label], ha="right", va="center")
    return figure


def split_sizes(splits: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Show how many images of each class every split has.

    Args:
        splits: Name of a split → labels of its images, int64 `(N,)`.
    """
    figure, axis = subplots(figsize=(7.5, 3))
    left = np.zeros(len(CLASSES))
    for (name, labels), colour in zip(splits.items(), PALETTE, strict=False):
        counts = np.bincount(labels, minlength=len(CLASSES))
        axis.barh(CLASSES, counts, left=left, color=colour)
        # Those in the middle end with their bars, so that they leave the last one its place.
        where = "right" if name in list(splits)[1:-1] else "left"
        edge = left[0] + (0 if where == "left" else counts[0])
        label = f" {name}: {len(labels):,} "
        axis.text(edge, -0.75, label, color=colour, weight="bold", ha=where, va="bottom")
        left += counts
    axis.invert_yaxis()
    axis.set(xlabel="images", title="Each class has the same share of each part\n")
    axis.grid(axis="y", visible=False)
    return figure


def pixel_histogram(pixels: NDArray[np.float32], mean: Sequence[float]) -> Figure:
    """Show how pixel values are distributed, per channel.

    Args:
        pixels: float32 `(N, 3, 32, 32)`, in [0, 1].
        mean: Mean of each channel, marked in the figure.
    """
    figure, axis = subplots(figsize=(7.5, 2.8))
    bins = np.linspace(0, 1, 65)
    names, colours = ("red", "green", "blue"), (ORANGE, GREEN, BLUE)
    for channel, (name, colour) in enumerate(zip(names, colours, strict=True)):
        share, _ = np.histogram(pixels[:, channel], bins=bins)
        axis.stairs(100 * share / share.sum(), bins, color=colour, linewidth=1.5)
        axis.axvline(mean[channel], color=colour, linestyle=":", linewidth=1)
        place = (0.72, 0.9 - 0.11 * channel)  # in shares of the axes, above the curves' slope
        label = f"{name}: mean {mean[channel]:.3f}"
        axis.text(*place, label, color=colour, weight="bold", transform=axis.transAxes)
    axis.set(xlabel="pixel value, in [0, 1] (dotted: mean)", ylabel="share of pixels (%)")
    axis.set(title="How often each pixel value occurs", xlim=(0, 1), ylim=(0, None))
    return figure


def preprocess_strip(image: NDArray[np.uint8], prepared: NDArray[np.float32]) -> Figure:
    """Show one image as bytes and as the model receives it.

    Args:
        image: uint8 `(3, 32, 32)`.
        prepared: float32 `(3, 32, 32)`, in [0, 1].
    """
    figure, axes = subplots(1, 4, figsize=(8, 2.3))
    axes[0].imshow(image.transpose(1, 2, 0))
    axes[0].set_title("uint8, 0…255")
    for channel, name in enumerate(("red", "green", "blue")):
        shown = axes[channel + 1].imshow(prepared[channel], cmap="gray", vmin=0, vmax=1)
        axes[channel + 1].set_title(f"float32, {name}")
    for axis in axes:
        axis.axis("off")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    return figure
