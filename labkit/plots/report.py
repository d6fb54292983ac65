"""Figures of the report: every variant beside the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from labkit.plots.style import BLUE, GREEN, GREY, PURPLE, subplots

# Without orange, which means INT8 in the figures of serving.
BACKEND_COLOURS = {"pytorch": GREEN, "onnxruntime": BLUE, "openvino": PURPLE, "tensorrt": "black"}


@dataclass(frozen=True)
class VariantPoint:
    """What the comparison figure shows of one variant.

    Attributes:
        name: Model name.
        backend: Decides the colour.
        accuracy: Share of test images classified rightly, in [0, 1].
        accuracy_n: Test images it was measured on.
        throughput_images_s: Median, images per second.
        low, high: Smallest and largest repetition, images per second.
        p50_ms, p95_ms: Latency of a single image, milliseconds; NaN for too few samples.
        size_mb: Size of the model files, 10⁶ bytes.
    """

    name: str
    backend: str
    accuracy: float
    accuracy_n: int
    throughput_images_s: float
    low: float
    high: float
    p50_ms: float
    p95_ms: float
    size_mb: float


def variant_comparison(points: Sequence[VariantPoint]) -> Figure:
    """Show throughput, latency, accuracy and size of every variant, a row per variant."""
    figure, axes = subplots(1, 4, figsize=(11, 0.42 * len(points) + 1.5), sharey=True)
    names = [point.name.removeprefix("cifar10_") for point in points]
    colours = [BACKEND_COLOURS.get(point.backend, GREY) for point in points]
    throughput = [point.throughput_images_s for point in points]
    spread = [
        [point.throughput_images_s - point.low for point in points],
        [point.high - point.throughput_images_s for point in points],
    ]
    axes[0].barh(names, throughput, color=colours, xerr=spread, error_kw={"ecolor": GREY})
    axes[0].set(title="Throughput, batch 32", xlabel="images/s (median and range)")
    axes[1].hlines(
        names, [p.p50_ms for p in points], [p.p95_ms for p in points], color=colours, linewidth=2
    )
    axes[1].scatter([p.p50_ms for p in points], names, color=colours, zorder=3)
    axes[1].set(title="Latency, 1 image", xlabel="ms (dot p50, line to p95)", xlim=(0, None))
    # Two standard errors of a share, sqrt(p(1-p)/n): what chance alone does to n test images.
    error = [200 * (p.accuracy * (1 - p.accuracy) / p.accuracy_n) ** 0.5 for p in points]
    axes[2].errorbar(
        [100 * p.accuracy for p in points], names, xerr=error, fmt="none", ecolor=GREY, elinewidth=1
    )
    axes[2].scatter([100 * p.accuracy for p in points], names, color=colours, zorder=3)
    axes[2].set(title="Test accuracy", xlabel="% (line: ±2 standard errors)")
    axes[3].barh(names, [p.size_mb for p in points], color=colours)
    axes[3].set(title="Model files", xlabel="MB")
    axes[0].invert_yaxis()
    for axis in axes:
        axis.grid(axis="y", visible=False)
    shown = {point.backend: BACKEND_COLOURS.get(point.backend, GREY) for point in points}
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in shown.values()]
    figure.legend(handles, list(shown), loc="outside upper right", ncols=len(shown))
    return figure
