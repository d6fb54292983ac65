"""Figures of serving: answers as pictures, what a format costs, load against latency."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from labkit.bench import Repeated, ServerSplit
from labkit.client import Prediction
from labkit.compare import Spread
from labkit.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    YELLOW,
    subplots,
    whiskers,
)

KIB = 1024
WIDE = 20  # times: beyond, sizes are drawn on a logarithmic axis


def answers(
    pixels: NDArray[np.uint8], truth: Sequence[str], predictions: Sequence[Sequence[Prediction]]
) -> Figure:
    """Show images under what the server called them; a wrong answer names the truth.

    Args:
        pixels: uint8 (N, 3, 32, 32).
        truth: N labels.
        predictions: N answers of the classification extension, best first.
    """
    columns = min(len(pixels), 6)
    rows = -(-len(pixels) // columns)
    figure, axes = subplots(rows, columns, figsize=(1.6 * columns, 1.95 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, prediction in zip(axes.flat, pixels, truth, predictions, strict=False):
        axis.imshow(image.transpose(1, 2, 0), interpolation="bilinear")  # Shape: (32, 32, 3)
        right = prediction[0].label == label
        said = prediction[0].label if right else f"{prediction[0].label}\n(is: {label})"
        axis.set_title(said, color=GREEN if right else ORANGE, fontsize=10, loc="center")
    hits = sum(p[0].label == label for p, label in zip(predictions, truth, strict=True))
    figure.suptitle(f"The server names {hits} of {len(truth)} images rightly", fontsize=11)
    return figure


def request_costs(
    sizes: Mapping[str, int], times_ms: Mapping[str, Sequence[float]], title: str
) -> Figure:
    """Compare ways to ask the same: bytes of a request, and time to the answer.

    Args:
        sizes: Way → bytes of a request.
        times_ms: The same ways → time of each request; the dot is the median, the line goes from
            the 5th to the 95th percentile.
        title: What was timed.
    """
    ways = list(sizes)
    figure, (left, right) = subplots(1, 2, figsize=(10, 1.3 + 0.5 * len(ways)), sharey=True)
    kib = [size / KIB for size in sizes.values()]
    bars = left.barh(ways, kib, color=BLUE, height=0.55)
    left.bar_label(bars, [f"{value:,.1f}" for value in kib], padding=4)
    left.set(title="Size of a request", xlabel="KiB")
    left.margins(x=0.2)
    if max(kib) > WIDE * min(kib):  # on a linear axis the small ones would not be seen
        left.set_xscale("log")
        left.set(xlabel="KiB (logarithmic)", xlim=(1, 8 * max(kib)))
        left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    for row, way in enumerate(ways):
        low, middle, high = np.percentile(times_ms[way], [5, 50, 95])
        right.plot([low, high], [row, row], color=ORANGE, linewidth=2)
        right.plot(middle, row, "o", color=ORANGE)
        above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        right.annotate(f"{middle:.2f}", (middle, row), **above)
    right.set(title=title, xlabel="ms (median, 5 % to 95 %)", xlim=(0, None))
    right.margins(y=0.25)
    left.grid(axis="y", visible=False)
    left.invert_yaxis()
    return figure


def variants(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Show accuracy and throughput of every variant that answered.

    Args:
        rows: Variant → its entry in `query.json`.
    """
    measured = {name: row for name, row in rows.items() if row.get("accuracy") is not None}
    names = [name.removeprefix("cifar10_") for name in measured]
    figure, axes = subplots(1, 2, figsize=(10, 0.9 + 0.42 * len(names)), sharey=True)
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
    axes[0].set(title="Accuracy through the server", xlabel="% of the test images, 95 % interval")
    rates = [row["throughput_images_s"] for row in measured.values()]
    spreads = [Spread(rate["median"], rate["low"], rate["high"], rate["n"]) for rate in rates]
    colours = [ORANGE if "int8" in name else SKY for name in names]
    _bars_with_range(axes[1], names, spreads, colours)
    axes[1].set(title="Throughput: INT8 in orange")
    axes[1].set_xlabel(f"images/s at batch {rates[0]['batch']}, median and range")
    axes[1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[1].margins(x=0.15)
    axes[0].margins(y=0.12)
    return figure


def _bars_with_range(
    axis: Axes,
    names: Sequence[str],
    spreads: Sequence[Spread],
    colours: str | Sequence[str],
    label: str = "{:,.0f}",
) -> None:
    """Draw medians as bars from above, with whiskers from the smallest to the largest value."""
    medians = [spread.median for spread in spreads]
    ends = whiskers(spreads)
    axis.barh(names, medians, xerr=ends, color=colours, capsize=3, error_kw={"ecolor": GREY})
    for name, spread in zip(names, spreads, strict=True):
        text, place = label.format(spread.median), (spread.high, name)
        axis.annotate(text, place, (6, 0), textcoords="offset points", va="center")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def load_curves(curves: Mapping[str, Sequence[Repeated]]) -> Figure:
    """Draw throughput against latency, one line per setting, one point per number of clients.

    The point of the most clients is the largest, and carries the name.

    Args:
        curves: Setting → measurements with a growing number of clients.
    """
    figure, axis = subplots(figsize=(8.5, 4.6))
    ends: list[tuple[str, float, float, str]] = []  # label, x, y, colour
    for (name, points), colour, marker in zip(curves.items(), _colours(), "osD^vP*X", strict=False):
        rate = [p.images_per_s.median for p in points]
        delay = [p.latency_ms.p95 or p.latency_ms.max for p in points]
        axis.plot(rate, delay, marker=marker, color=colour)
        axis.plot(rate[-1:], delay[-1:], marker=marker, color=colour, markersize=10)
        ends.append((name, rate[-1], delay[-1], colour))
    *fewer, most = [str(point.runs[0].clients) for point in next(iter(curves.values()))]
    counts = f"{', '.join(fewer)} and, large and named, {most} clients"
    axis.set(
        title="Where a curve turns upwards, more clients only wait longer",
        xlabel=f"throughput (images/s); points: {counts}",
        ylabel="latency, 95th percentile (ms, logarithmic)",
        yscale="log",
        xlim=(0, None),
    )
    axis.margins(y=0.1)
    plain_ticks(axis)
    _label_ends(axis, ends)
    return figure


def _label_ends(axis: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write the name of each curve to the right of the axis, with a line to its last point."""
    axis.figure.canvas.draw()  # settles the transformation from data to the axis
    inverse = axis.transAxes.inverted()
    places = [inverse.transform(axis.transData.transform((x, y))) for _, x, y, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: float(places[i][1]))
    low = -1.0
    heights: dict[int, float] = {}
    for i in order:  # from below, each at least a line above the one before
        low = max(float(places[i][1]), low + 0.065)
        heights[i] = low
    excess = max(0.0, low - 1.0)
    for i, (name, x, y, colour) in enumerate(ends):
        axis.annotate(
            name,
            (x, y),
            (1.03, heights[i] - excess),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5},
            annotation_clip=False,
        )


def throughput_bars(results: Mapping[str, Repeated], title: str) -> Figure:
    """Compare settings: median throughput, with the range over the rounds."""
    figure, axis = subplots(figsize=(8.5, 0.9 + 0.36 * len(results)))
    spreads = [result.images_per_s for result in results.values()]
    _bars_with_range(axis, list(results), spreads, SKY)
    axis.set_title(title)
    axis.set_xlabel(f"throughput (images/s), median and range of n = {spreads[0].n}")
    axis.margins(x=0.12)
    return figure


def where_time_goes(results: Mapping[str, Repeated]) -> Figure:
    """Stack the mean time of a request: the server's own account, and the rest of the way."""
    figure, axis = subplots(figsize=(8.5, 1.3 + 0.42 * len(results)))
    parts = {
        "queue": ([r.server.queue_ms for r in results.values()], ORANGE),
        "compute: in and out": ([_moving_ms(r.server) for r in results.values()], YELLOW),
        "compute: the model": ([r.server.compute_infer_ms for r in results.values()], GREEN),
        "HTTP and client": ([_outside_ms(r) for r in results.values()], GREY),
    }
    left = np.zeros(len(results))
    for label, (values, colour) in parts.items():
        bars = axis.barh(list(results), values, left=left, label=label, color=colour)
        left += np.array(values)
        wide = [f"{v:.1f}" if v > 0.04 * _longest(results) else "" for v in values]
        axis.bar_label(bars, wide, label_type="center", fontsize=8)
    axis.set_xlabel("mean time of a request (ms)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_title("Where a request spends its time")
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    return figure


def _longest(results: Mapping[str, Repeated]) -> float:
    return max(result.latency_ms.mean for result in results.values())


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
    figure, axis = subplots(figsize=(8.5, 4))
    due = [(point.runs[0].rate_per_s or 0) * point.runs[0].batch for point in opened]
    answered = [point.images_per_s.median for point in closed]
    ends: list[tuple[str, float, float, str]] = []
    for points, label, colour, loads in (
        (closed, "closed loop", BLUE, answered),
        (opened, "open loop", ORANGE, due),
    ):
        share = [100 * load / capacity for load in loads]
        tail = [p.latency_ms.p95 or p.latency_ms.max for p in points]
        middle = [p.latency_ms.p50 for p in points]
        axis.plot(share, middle, "o--", color=colour, alpha=0.6)
        axis.plot(share, tail, "s-", color=colour)
        ends.append((f"{label}, median", share[-1], middle[-1], colour))
        ends.append((f"{label}, p95", share[-1], tail[-1], colour))
    axis.axvline(100, color=GREY, linestyle=":")
    axis.set(
        title="Latency under load, in a closed and in an open loop",
        xlabel="load (% of the capacity measured above)",
        ylabel="latency (ms)",
        yscale="log",
    )
    plain_ticks(axis)
    _label_ends(axis, ends)
    return figure


def arrives(ratios: Mapping[tuple[str, str, str], Spread]) -> Figure:
    """Show which share of the engine's own throughput arrives at the clients.

    Args:
        ratios: (runtime, weights, load) → served images/s over those of the engine in process.
    """
    figure, axis = subplots(figsize=(8.5, 1.2 + 0.36 * len(ratios)))
    names = [f"{weights}, {load}, {runtime}" for runtime, weights, load in ratios]
    colours = [ORANGE if weights == "INT8" else SKY for _, weights, _ in ratios]
    spreads = list(ratios.values())
    _bars_with_range(axis, names, spreads, colours, "{:.0%}")
    axis.axvline(1, color=GREY, linestyle=":")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.set(
        title="How much of the engine's throughput arrives (orange: INT8)",
        xlabel="of ONNX Runtime in process, batch 32, one thread; median and range of n = "
        f"{spreads[0].n}",
    )
    axis.margins(x=0.1)
    return figure


def batch_sizes(histograms: Mapping[str, Mapping[int, int]]) -> Figure:
    """Show which share of the images was computed in batches of which size, per setting."""
    figure, axes = subplots(
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
    figure.suptitle(
        "Which batches the server formed", fontsize=11, weight="bold", x=0.01, ha="left"
    )
    return figure


def plain_ticks(axis: Axes) -> None:
    """Label a logarithmic axis 1, 2, 5, 10, 20 …, in plain numbers."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _colours() -> tuple[str, ...]:
    return (*PALETTE, "black")
