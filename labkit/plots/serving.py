"""Figures of serving: answers as pictures, what a format costs, load against latency."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from labkit.bench import Repeated, ServerSplit
from labkit.client import Guess
from labkit.plots.style import BLUE, GREEN, GREY, ORANGE, PALETTE, PURPLE, SKY, YELLOW, use_style


def answers(
    pixels: NDArray[np.uint8], truth: Sequence[str], guesses: Sequence[Sequence[Guess]]
) -> Figure:
    """Show images under what the server called them; a wrong answer names the truth.

    Args:
        pixels: uint8 (N, 3, 32, 32).
        truth: N labels.
        guesses: N answers of the classification extension, best first.
    """
    use_style()
    columns = min(len(pixels), 6)
    rows = -(-len(pixels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.95 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, guess in zip(axes.flat, pixels, truth, guesses, strict=False):
        axis.imshow(image.transpose(1, 2, 0), interpolation="bilinear")  # Shape: (32, 32, 3)
        right = guess[0].label == label
        said = guess[0].label if right else f"{guess[0].label}\n(is: {label})"
        axis.set_title(said, color=GREEN if right else ORANGE, fontsize=10, loc="center")
    return figure


def wire_formats(megabytes: Mapping[str, float], milliseconds: Mapping[str, float]) -> Figure:
    """Compare formats of the same request: size on the wire, and time until the answer."""
    use_style()
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.2 + 0.45 * len(megabytes)), sharey=True)
    for axis, values, unit in (
        (axes[0], megabytes, "request size (MB)"),
        (axes[1], milliseconds, "time until the answer (ms, median)"),
    ):
        bars = axis.barh(list(values), list(values.values()), color=[BLUE, GREEN, ORANGE])
        axis.bar_label(bars, fmt="{:,.2f}", padding=4)
        axis.set_xlabel(unit)
        axis.margins(x=0.2)
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    return figure


def variants(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Show accuracy and throughput of every variant that answered.

    Args:
        rows: Variant → its entry in `query.json`.
    """
    use_style()
    measured = {name: row for name, row in rows.items() if row.get("accuracy") is not None}
    names = [name.removeprefix("cifar10_") for name in measured]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.9 + 0.42 * len(names)), sharey=True)
    accuracy = [100 * row["accuracy"] for row in measured.values()]
    error = [
        196 * np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["n"])
        for row in measured.values()
    ]
    axes[0].errorbar(accuracy, names, xerr=error, fmt="o", color=BLUE, capsize=3)
    for name, value in zip(names, accuracy, strict=True):
        axes[0].annotate(
            f"{value:.2f}",
            (value, name),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes[0].set_xlabel("accuracy through the server (%), 95 % interval")
    spread = [row["throughput_images_s"] for row in measured.values()]
    median = np.array([s["median"] for s in spread])
    whiskers = [median - [s["low"] for s in spread], [s["high"] for s in spread] - median]
    colours = [ORANGE if "int8" in name else SKY for name in names]
    axes[1].barh(names, median, xerr=whiskers, color=colours, capsize=3, error_kw={"ecolor": GREY})
    for name, value, high in zip(names, median, [s["high"] for s in spread], strict=True):
        axes[1].annotate(
            f"{value:,.0f}",
            (max(value, high), name),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes[1].set_xlabel(f"images/s at batch {spread[0]['batch']} (orange: INT8), median and range")
    axes[1].margins(x=0.15)
    axes[0].invert_yaxis()
    axes[0].margins(y=0.12)
    return figure


def load_curves(curves: Mapping[str, Sequence[Repeated]]) -> Figure:
    """Draw throughput against latency, one line per setting, one point per number of clients.

    Args:
        curves: Setting → measurements with a growing number of clients.
    """
    use_style()
    figure, axis = plt.subplots(figsize=(8.5, 4.6))
    for (name, points), colour, marker in zip(curves.items(), _colours(), "osD^vP*X", strict=False):
        rate = [p.images_per_s.median for p in points]
        delay = [p.latency_ms.p95 or p.latency_ms.max for p in points]
        axis.plot(rate, delay, marker=marker, color=colour, label=name)
        for x, y, point in zip(rate, delay, points, strict=True):
            axis.annotate(
                str(point.runs[0].clients),
                (x, y),
                (4, 4),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    axis.set(
        xlabel="throughput (images/s)",
        ylabel="latency, 95th percentile (ms)",
        yscale="log",
        xlim=(0, None),
    )
    figure.legend(title="setting\n(numbers: clients)", loc="outside right upper", fontsize=9)
    plain_ticks(axis)
    return figure


def throughput_bars(results: Mapping[str, Repeated], unit: str = "throughput (images/s)") -> Figure:
    """Compare settings: median throughput, with the range over the rounds."""
    use_style()
    figure, axis = plt.subplots(figsize=(8.5, 0.9 + 0.36 * len(results)))
    spread = [r.images_per_s for r in results.values()]
    median = np.array([s.median for s in spread])
    whiskers = [median - [s.low for s in spread], [s.high for s in spread] - median]
    axis.barh(list(results), median, xerr=whiskers, color=SKY, capsize=3, error_kw={"ecolor": GREY})
    for name, s in zip(results, spread, strict=True):
        axis.annotate(
            f"{s.median:,.0f}", (s.high, name), (6, 0), textcoords="offset points", va="center"
        )
    axis.set_xlabel(f"{unit}, median and range of n = {spread[0].n}")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(axis="y", visible=False)
    return figure


def where_time_goes(results: Mapping[str, Repeated]) -> Figure:
    """Stack the mean time of a request: the server's own account, and the rest of the way."""
    use_style()
    figure, axis = plt.subplots(figsize=(8.5, 1.3 + 0.42 * len(results)))
    parts = {
        "queue": ([r.server.queue_ms for r in results.values()], ORANGE),
        "compute: in and out": ([_moving_ms(r.server) for r in results.values()], YELLOW),
        "compute: the model": ([r.server.compute_infer_ms for r in results.values()], GREEN),
        "network and client": ([_outside_ms(r) for r in results.values()], GREY),
    }
    left = np.zeros(len(results))
    for label, (values, colour) in parts.items():
        axis.barh(list(results), values, left=left, label=label, color=colour)
        left += np.array(values)
    axis.set_xlabel("mean time of a request (ms)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9
    )
    return figure


def _moving_ms(server: ServerSplit) -> float:
    return server.compute_input_ms + server.compute_output_ms


def _outside_ms(result: Repeated) -> float:
    """What the server does not account for; never below 0, where clocks and rounding disagree."""
    return max(0.0, result.latency_ms.mean - result.server.queue_ms - result.server.compute_ms)


def open_against_closed(
    closed: Sequence[Repeated], opened: Sequence[Repeated], capacity: float
) -> Figure:
    """Draw latency over load for both kinds of load generator.

    Args:
        closed: Closed-loop measurements; their load is what they achieved.
        opened: Open-loop measurements; their load is what was due.
        capacity: Greatest throughput seen, in images/s.
    """
    use_style()
    figure, axis = plt.subplots(figsize=(8.5, 4))
    for points, label, colour, loads in (
        (closed, "closed loop", BLUE, [p.images_per_s.median for p in closed]),
        (
            opened,
            "open loop",
            ORANGE,
            [(p.runs[0].rate_per_s or 0) * p.runs[0].batch for p in opened],
        ),
    ):
        share = [100 * load / capacity for load in loads]
        axis.plot(
            share,
            [p.latency_ms.p50 for p in points],
            "o--",
            color=colour,
            alpha=0.6,
            label=f"{label}, median",
        )
        tail = [p.latency_ms.p95 or p.latency_ms.max for p in points]
        axis.plot(share, tail, "s-", color=colour, label=f"{label}, 95th percentile")
    axis.axvline(100, color=GREY, linestyle=":")
    axis.set(xlabel="load (% of the capacity measured above)", ylabel="latency (ms)", yscale="log")
    axis.legend(fontsize=9)
    plain_ticks(axis)
    return figure


def batch_sizes(histograms: Mapping[str, Mapping[int, int]]) -> Figure:
    """Show which share of the images was computed in batches of which size, per setting."""
    use_style()
    figure, axes = plt.subplots(
        1, len(histograms), figsize=(2.9 * len(histograms), 2.7), sharey=True, squeeze=False
    )
    largest = max(max(h) for h in histograms.values())
    for axis, (name, histogram) in zip(axes.flat, histograms.items(), strict=True):
        images = {size: size * count for size, count in histogram.items()}
        total = sum(images.values())
        axis.bar(list(images), [100 * n / total for n in images.values()], color=PURPLE, width=0.8)
        mean = total / sum(histogram.values())
        axis.set_title(f"{name}\nmean {mean:.1f}", fontsize=9, weight="normal")
        axis.set(xlabel="images per execution", xlim=(0, largest + 1))
    axes[0, 0].set_ylabel("share of images (%)")
    return figure


def plain_ticks(axis: Axes) -> None:
    """Label a logarithmic axis 1, 2, 5, 10, 20 …, in plain numbers."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _colours() -> tuple[str, ...]:
    return (*PALETTE, "black")
