"""Figures of operation: what replicas did while something happened to them."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from labkit.plots.style import BLUE, GREEN, GREY, ORANGE, PALETTE, PURPLE, use_style

Lines = Mapping[str, tuple[ArrayLike, ArrayLike]]
MAX_LINES = 6  # more cannot be told apart; the rest is left out, and the title says so


class TimelineLike(Protocol):
    """Label → (times in seconds, values) for each part, as `labkit.operate.timeline.Timeline`."""

    @property
    def requests_per_s(self) -> Lines: ...  # noqa: D102

    @property
    def queue_us(self) -> Lines: ...  # noqa: D102

    @property
    def compute_us(self) -> Lines: ...  # noqa: D102

    @property
    def batch(self) -> Lines: ...  # noqa: D102

    @property
    def failures_per_s(self) -> Lines: ...  # noqa: D102


def over_time(
    timeline: TimelineLike,
    events: Sequence[tuple[float, str]] = (),
    start_s: float | None = None,
) -> Figure:
    """Draw four answers over one time axis: requests, queue against compute, batches, failures.

    Args:
        timeline: What Prometheus saw; times in seconds of any one clock.
        events: (time of the same clock, what happened), such as `(1764000000.0, "replica killed")`;
            drawn as marks through all four, numbered, and explained below them.
        start_s: Time of the same clock that is zero in the figure; None for the first point.
    """
    use_style()
    parts = [
        ("Who answers how much?", "requests/s", timeline.requests_per_s),
        ("Queue (solid) or compute (dashed)?", "ms per request", timeline.queue_us),
        ("What batch size is executed?", "images, mean", timeline.batch),
        ("What fails?", "requests/s", timeline.failures_per_s),
    ]
    start = _first(timeline, events) if start_s is None else start_s
    figure, axes = plt.subplots(len(parts), 1, figsize=(9, 8.4), sharex=True)
    for axis, (title, unit, lines) in zip(axes, parts, strict=True):
        scale = 1e-3 if lines is timeline.queue_us else 1.0
        _draw(axis, lines, start, scale)
        if lines is timeline.queue_us:
            _draw(axis, timeline.compute_us, start, scale, dashed=True)
        axis.set_title(title if len(lines) <= MAX_LINES else f"{title} ({MAX_LINES} shown)")
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        if not lines:
            empty = "nothing" if lines is timeline.failures_per_s else "no data"
            axis.text(0.5, 0.5, empty, transform=axis.transAxes, ha="center", color=GREY)
            axis.set_yticks([])
        _mark(axis, events, start, named=axis is axes[0])
    if not timeline.failures_per_s:
        axes[-1].set_ylim(0, 1)
    explained = ";  ".join(f"{i}: {what}" for i, (_, what) in enumerate(events, 1))
    axes[-1].set_xlabel(f"time (s)\n{explained}" if explained else "time (s)")
    return figure


def _first(timeline: TimelineLike, events: Sequence[tuple[float, str]]) -> float:
    """Return the earliest time of all lines, else of the events."""
    parts = (timeline.requests_per_s, timeline.queue_us, timeline.batch, timeline.failures_per_s)
    times = [np.asarray(at, dtype=float) for part in parts for at, _ in part.values()]
    return float(min([*(t[0] for t in times if t.size), *(at for at, _ in events)], default=0.0))


def _draw(axis: Axes, lines: Lines, start: float, scale: float, dashed: bool = False) -> None:
    """Draw up to MAX_LINES lines, each in a colour of its own; equal labels have equal colours."""
    colours = dict(zip(sorted(lines), cycle((BLUE, ORANGE, GREEN, PURPLE, *PALETTE)), strict=False))
    for label in sorted(lines)[:MAX_LINES]:
        at, values = lines[label]
        axis.plot(
            np.asarray(at, dtype=float) - start,
            scale * np.asarray(values, dtype=float),
            color=colours[label],
            linestyle="--" if dashed else "-",
            linewidth=1.2 if dashed else 1.8,
            label=None if dashed else label,
        )
    if lines and not dashed:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _mark(axis: Axes, events: Sequence[tuple[float, str]], start: float, named: bool) -> None:
    """Draw a line for each event, with its number in the topmost axes."""
    for number, (at, _) in enumerate(events, 1):
        axis.axvline(at - start, color=GREY, linestyle=":", linewidth=1.4, zorder=0)
        if named:
            axis.annotate(
                str(number),
                (at - start, 1.0),
                (4, -11),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=GREY,
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
