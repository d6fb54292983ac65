"""Figures of the quantization: what it costs, what it gains, and where the bits go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from labkit.compare import Comparison, Latency
from labkit.plots.export import ratio_bars, threads_text
from labkit.plots.style import BLUE, GREEN, GREY, ORANGE, subplots

INT16_MAX = 32_767


@dataclass(frozen=True)
class Judged:
    """What is known of one model file.

    Attributes:
        accuracy: On the validation images, in [0, 1].
        agreement: Share of images given the same class as by the FP32 model, in [0, 1].
        logit_error: See `labkit.runtime.logit_error`.
        mib: Size of the file, with its weights, in MiB.
    """

    accuracy: float
    agreement: float
    logit_error: float
    mib: float


def side_by_side(
    rows: Mapping[str, Judged],
    comparison: Comparison,
    latencies: Mapping[str, Latency],
    limit: float,
) -> Figure:
    """Show accuracy lost, agreement, size, latency and speed of every variant.

    Args:
        rows: Variant → what is known of it.
        comparison: Speeds of the same variants; its baseline is the FP32 variant.
        latencies: Times of single calls, all with the same batch.
        limit: Points of accuracy that a variant may lose; drawn as a line.
    """
    names, reference = list(rows)[::-1], comparison.baseline
    figure, axes = subplots(1, 5, figsize=(13, 1.4 + 0.42 * len(names)), sharey=True)
    colours = [GREY if name == reference else BLUE for name in names]
    best = rows[reference].accuracy
    panels = (
        ("Accuracy lost", "percentage points", [100 * (best - rows[n].accuracy) for n in names]),
        ("Disagreement", "% of images", [100 * (1 - rows[n].agreement) for n in names]),
        ("File size", "MiB", [rows[n].mib for n in names]),
        (
            f"Latency, batch {latencies[reference].batch}",
            f"ms (median, n = {latencies[reference].n})",
            [latencies[n].p50 for n in names],
        ),
    )
    for axis, (title, label, values) in zip(axes, panels, strict=False):
        axis.barh(names, values, color=colours, height=0.6)
        low, high = min(0.0, *values), max(0.0, *values)
        if title == "Accuracy lost":
            axis.axvline(limit, color=ORANGE, linestyle="--")
            axis.text(limit, len(names) - 0.45, " limit", color=ORANGE, fontsize=9)
            high = max(high, limit)
        axis.axvline(0, color="black", linewidth=0.8)
        room = 0.32 * (high - low)
        axis.set(title=title, xlabel=label, xlim=(low - (room if low < 0 else 0), high + room))
        axis.grid(axis="y", visible=False)
        for row, value in enumerate(values):
            side, shift = ("right", -3) if value < 0 else ("left", 3)
            axis.annotate(
                f"{value:.2f}", (value, row), (shift, 0), textcoords="offset points",
                va="center", ha=side, fontsize=9,
            )  # fmt: skip
    ratio_bars(axes[4], comparison, names)
    axes[4].set_xlabel(f"× FP32 (median, n = {comparison.ratio[reference].n})")
    axes[4].set_title(f"Speed, batch {comparison.batch}")
    figure.suptitle(threads_text(comparison.threads) + " each", x=0.01, ha="left", fontsize=9)
    return figure


def channel_ranges(weights: NDArray[np.float32]) -> Figure:
    """Show how far the weights of each output channel reach, against the widest one.

    Args:
        weights: (channels, …) float32, of one convolution with its batch norm folded in.
    """
    reach = np.sort(np.abs(weights.reshape(len(weights), -1)).max(axis=1))[::-1]
    share = 100 * reach / reach.max()
    figure, axis = subplots(figsize=(8, 3))
    axis.bar(np.arange(len(share)), share, width=1.0, color=BLUE)
    axis.axhline(100, color=ORANGE, linestyle="--")
    last = len(share) - 0.5
    axis.text(last, 102, "per channel: each has all of them ", color=ORANGE, ha="right")
    axis.set(
        xlabel="output channel, widest first",
        ylabel="levels used (%)",
        title="With one scale for all: the share of the levels that each channel uses",
        ylim=(0, 115),
        xlim=(-0.5, last),
    )
    return figure


def pair_sums(sums: Mapping[str, NDArray[np.int32]]) -> Figure:
    """Show how large the sums of two products become, against what 16 bits hold.

    Args:
        sums: What the weights were → the sums, before anything is cut off.
    """
    figure, axis = subplots(figsize=(8, 3.2))
    widest = max(INT16_MAX, *(int(np.abs(values).max()) for values in sums.values()))
    edges = np.linspace(-1.1 * widest, 1.1 * widest, 121)
    for (name, values), colour in zip(sums.items(), (BLUE, GREEN), strict=False):
        axis.hist(
            values.ravel(), bins=edges.tolist(), histtype="step", color=colour, label=name, lw=1.6
        )
    for limit in (-INT16_MAX, INT16_MAX):
        axis.axvline(limit, color=ORANGE, linestyle="--")
    axis.text(INT16_MAX, 0.97, "16 bits end here ", color=ORANGE, ha="right", va="top",
              transform=axis.get_xaxis_transform())  # fmt: skip
    axis.set_yscale("log")
    axis.set(
        xlabel="sum of two products",
        ylabel="how often",
        title="Real weights, real images: what vpmaddubsw has to hold",
    )
    axis.legend(loc="center left", bbox_to_anchor=(0.09, 0.7))
    return figure


def calibration_curve(errors: Mapping[int, Sequence[float]]) -> Figure:
    """Show how the error falls with the number of calibration images.

    Args:
        errors: Calibration images → logit errors, one for each set of that many images.
    """
    figure, axis = subplots(figsize=(8, 3))
    for count, values in errors.items():
        axis.plot([count] * len(values), [100 * value for value in values], "o", color=BLUE)
    means = [100 * float(np.mean(values)) for values in errors.values()]
    axis.plot(list(errors), means, color=GREY, zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(errors), [str(count) for count in errors])
    axis.minorticks_off()
    axis.set(
        xlabel="calibration images",
        ylabel="logit error (%)",
        ylim=(0, None),
        title="Each dot is one set of calibration images",
    )
    return figure
