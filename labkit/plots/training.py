"""Figures of the training: what the first layer sees, how learning went, what still goes wrong."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from labkit.data import CLASSES, Images
from labkit.plots.style import BLUE, GREEN, GREY, ORANGE, subplots
from labkit.train import EpochRecord


def first_filters(weights: NDArray[np.float32]) -> Figure:
    """Show the filters of the first convolution as small colour pictures.

    Args:
        weights: float32 `(filters, 3, height, width)`, sorted. Each filter is scaled on its own, so
            that grey stands for a weight of zero.
    """
    figure, axes = subplots(1, len(weights), figsize=(8, 1.3), squeeze=False)
    for number, (axis, weight) in enumerate(zip(axes.flat, weights, strict=True), start=1):
        axis.imshow(0.5 + 0.5 * (weight / np.abs(weight).max()).transpose(1, 2, 0))
        axis.set(xticks=[], yticks=[], xlabel=str(number))
    figure.suptitle("Whitening filters, from the most variance to the least", weight="bold")
    return figure


def augmented(pictures: Sequence[NDArray[np.float32]], titles: Sequence[str]) -> Figure:
    """Show training images as the network is given them.

    Args:
        pictures: float32 `(3, size, size)` in [0, 1].
        titles: One for each picture.
    """
    figure, axes = subplots(1, len(pictures), figsize=(9, 2.0), squeeze=False)
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=True):
        axis.imshow(picture.transpose(1, 2, 0))
        axis.set_title(title, loc="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
    size = pictures[0].shape[-1]
    figure.suptitle(f"Training images, moved and mirrored, {size} × {size} pixels", weight="bold")
    return figure


def schedule(factors: Sequence[float], steps_per_epoch: int) -> Figure:
    """Show the learning rate over the whole training.

    Args:
        factors: One per step, as a share of the peak.
        steps_per_epoch: Sets the horizontal axis.
    """
    figure, axis = subplots(figsize=(7.5, 2.3))
    axis.plot(np.arange(len(factors)) / steps_per_epoch, factors, color=BLUE)
    axis.set(xlabel="epochs done", ylabel="share of the peak", ylim=(0, 1.05))
    axis.set_title("The learning rate rises to its peak, then falls to zero")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def training_curves(history: Sequence[EpochRecord]) -> Figure:
    """Show loss, accuracy and, below them, the learning rate and the size of the images.

    Args:
        history: One record per epoch.
    """
    epochs = [record.epoch for record in history]
    figure, axes = subplots(2, 2, figsize=(9, 4.6), height_ratios=(2, 1), sharex=True)
    (loss, accuracy), (rate, size) = axes
    loss.plot(epochs, [record.loss for record in history], "o-", color=BLUE)
    loss.set(title="Training loss, labels smoothed", ylabel="cross-entropy (nats)")
    lines = [
        ("training, augmented images", [record.train_accuracy for record in history], BLUE),
        ("validation", [record.validation_accuracy for record in history], ORANGE),
    ]
    for name, values, colour in lines:
        accuracy.plot(epochs, 100 * np.array(values), "o-", color=colour)
        place = (0.97, 0.17 if colour == BLUE else 0.05)  # in shares of the axes, below the curves
        style = {"color": colour, "weight": "bold", "ha": "right"}
        accuracy.text(*place, name, transform=accuracy.transAxes, **style)
    accuracy.set(title="Accuracy", ylabel="%")
    rate.plot(epochs, [record.learning_rate for record in history], "o-", color=GREEN)
    rate.set(title="Learning rate at the epoch's end", xlabel="epoch", ylabel="of the filters")
    rate.set_ylim(bottom=0)
    size.step(epochs, [record.size for record in history], "o-", where="mid", color=GREY)
    size.set(title="Side of the training images", xlabel="epoch", ylabel="pixels", ylim=(16, 34))
    size.xaxis.get_major_locator().set_params(integer=True)
    return figure


def confusion_matrix(matrix: NDArray[np.int64]) -> Figure:
    """Show which class is taken for which.

    Args:
        matrix: int64 `(10, 10)`, images of the row's class that were given the column's class.
    """
    shares = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    figure, axis = subplots(figsize=(7.5, 6.2))
    mistakes = shares * (1 - np.eye(len(shares)))  # colour the mistakes: they are the news
    shown = axis.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1.0, mistakes.max()))
    for row, column in np.ndindex(*shares.shape):
        right = row == column
        share = shares[row, column]
        dark = not right and share > 0.6 * mistakes.max()
        axis.text(
            *(column, row, f"{share:.0f}" if share >= 0.5 else "·"),
            ha="center",
            va="center",
            color="white" if dark else "black",
            weight="bold" if right else "normal",
        )
    axis.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right")
    axis.set_yticks(range(len(CLASSES)), CLASSES)
    axis.set(xlabel="predicted", ylabel="true", title="Of 100 images of a row, how many went where")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    figure.colorbar(shown, label="mistakes, % of the row", shrink=0.7)
    return figure


def class_accuracy(recalls: NDArray[np.float64]) -> Figure:
    """Show the share of right answers of each class, the hardest class on top.

    Args:
        recalls: float64 `(10,)`, in [0, 1].
    """
    order = np.argsort(recalls)
    figure, axis = subplots(figsize=(7.5, 3.2))
    bars = axis.barh([CLASSES[label] for label in order], 100 * recalls[order], color=BLUE)
    axis.bar_label(bars, fmt="%.1f", padding=-30, color="white", weight="bold")
    axis.axvline(100 * recalls.mean(), color=GREY, linestyle=":")
    axis.set(xlabel="right answers (%), dotted: mean of the classes", xlim=(0, 100))
    axis.set_title("Right answers in each class, the hardest on top")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure


def worst_mistakes(images: Images, probabilities: NDArray[np.float32]) -> Figure:
    """Show the twelve wrong answers that the network was surest of.

    Args:
        images: The images and their true labels.
        probabilities: float32 `(N, 10)`.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != images.labels)
    worst = wrong[np.argsort(-confidence[wrong])][:12]
    columns = 6
    rows = max(1, -(-len(worst) // columns))
    figure, axes = subplots(rows, columns, figsize=(9, 2.05 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, worst, strict=False):
        axis.imshow(images.pixels[index].transpose(1, 2, 0), interpolation="bicubic")
        title = f"{CLASSES[predicted[index]]} {confidence[index]:.0%}"
        axis.set_title(title, color=ORANGE, fontsize=9, loc="center")
        axis.text(
            *(0.5, -0.04, f"is: {CLASSES[images.labels[index]]}"),
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=9,
        )
    figure.suptitle("Wrong answers with the highest confidence", weight="bold")
    return figure
