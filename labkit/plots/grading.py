"""Figures of a graded class: totals, checks, notebooks, time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from labkit.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, subplots

BINS: Final = 10
MAX_LABEL: Final = 44  # characters of a line of a label on an axis
MAX_LINES: Final = 3
INK: Final = "#1c1e21"
# Kinds of verdicts as in labkit.grading.pages, good ones first: kind → name in the legend, colour.
KINDS: Final = {
    "ran": ("ran", GREEN),
    "raised": ("error in a cell", YELLOW),
    "stopped": ("stopped early", PURPLE),
    "limit": ("hit a limit", ORANGE),
    "absent": ("missing or unreadable", "#B9BEC6"),
    "grader": ("grader failed", INK),
}


@dataclass(frozen=True)
class CheckShare:
    """How a class did on one check.

    Attributes:
        title: What is checked.
        some: Share of students with some of the points, in [0, 1].
        none: Share of students with no points, in [0, 1].
    """

    title: str
    some: float
    none: float


@dataclass(frozen=True)
class Duration:
    """How long one submission took.

    Attributes:
        student: Name of the submission.
        number: Its number in the table below; shown where the font cannot write the name.
        notebooks_s: Running the notebooks, seconds.
        measure_s: Measuring what they made, seconds.
    """

    student: str
    number: int
    notebooks_s: float
    measure_s: float


def totals_histogram(points: Sequence[float], maximum: float) -> Figure:
    """Show how the totals spread over ten equal ranges, with the median as a line."""
    figure, axis = subplots(figsize=(6, 3.8))
    bins = BINS if maximum > BINS or maximum != int(maximum) else max(1, int(maximum))
    edges = np.linspace(0, maximum, bins + 1)
    counts, _ = np.histogram(points, bins=edges)
    bars = axis.bar(
        edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white"
    )
    axis.bar_label(bars, labels=[str(count) if count else "" for count in counts], padding=1)
    median = float(np.median(points))
    axis.axvline(median, color=ORANGE, linewidth=2)
    side = "right" if median > maximum / 2 else "left"
    axis.annotate(
        f"median {median:.1f}",
        (median, 1.0),
        (-6 if side == "right" else 6, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=side,
        color=ORANGE,
        weight="bold",
    )
    axis.set(xlim=(0, maximum), xlabel="points", ylabel="students")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(ylim=(0, 1.18 * max(counts.max(), 1)))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="x", visible=False)
    return figure


def missed_checks(checks: Sequence[CheckShare]) -> Figure:
    """Show the checks that cost most, a bar each: who got some of the points, who got none."""
    figure, axis = subplots(figsize=(6, 0.38 * len(checks) + 1.1))
    rows = np.arange(len(checks))
    none = np.array([100 * check.none for check in checks])
    some = np.array([100 * check.some for check in checks])
    axis.barh(rows, none, color=ORANGE, label="no points")
    axis.barh(rows, some, left=none, color=YELLOW, label="some of the points")
    for row, share in enumerate(none + some):
        axis.text(share + 1, row, f"{share:.0f} %", va="center", fontsize=9)
    axis.set(xlim=(0, 112), xticks=range(0, 101, 25), xlabel="% of the students")
    _names(axis, [check.title for check in checks])
    _legend_above(figure, axis)
    return figure


def verdicts_by_notebook(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Show what became of every notebook, a stacked bar each.

    Args:
        counts: Notebook → kind of verdict, a key of `KINDS` → students.
    """
    figure, axis = subplots(figsize=(6, 0.34 * len(counts) + 1.1))
    rows = np.arange(len(counts))
    left = np.zeros(len(counts))
    for kind, (name, colour) in KINDS.items():
        width = np.array([row.get(kind, 0) for row in counts.values()])
        if width.any():
            bars = axis.barh(rows, width, left=left, color=colour, edgecolor="white", label=name)
            dark = kind in ("ran", "stopped", "limit", "grader")
            axis.bar_label(
                bars,
                labels=[str(n) if n > 0.03 * left.max() + 0.5 else "" for n in width],
                label_type="center",
                color="white" if dark else INK,
                fontsize=9,
            )
        left = left + width
    axis.set(xlim=(0, max(left.max(), 1)), xlabel="students")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _names(axis, list(counts))
    _legend_above(figure, axis)
    return figure


def slowest_submissions(durations: Sequence[Duration]) -> Figure:
    """Show where the time of the slowest submissions went, a bar each, in the order given."""
    figure, axis = subplots(figsize=(6, 0.3 * len(durations) + 1.1))
    rows = np.arange(len(durations))
    notebooks = np.array([duration.notebooks_s for duration in durations])
    measure = np.array([duration.measure_s for duration in durations])
    axis.barh(rows, notebooks, color=BLUE, label="notebooks")
    axis.barh(rows, measure, left=notebooks, color=SKY, label="measuring")
    total = notebooks + measure
    for row, seconds in enumerate(total):
        axis.text(seconds, row, f" {seconds:,.0f} s", va="center", fontsize=9)
    axis.set(xlim=(0, 1.15 * max(total.max(), 1e-3)), xlabel="seconds")
    _names(axis, [_writable(duration) for duration in durations])
    _legend_above(figure, axis)
    return figure


def _names(axis: Axes, names: Sequence[str]) -> None:
    """Label the rows, first on top; a `$` in a name is a dollar, not a formula."""
    short = ["\n".join(wrap(name, MAX_LABEL)[:MAX_LINES]) or name for name in names]
    axis.set_yticks(range(len(names)), short, parse_math=False, fontsize=9)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def _legend_above(figure: Figure, axis: Axes) -> None:
    """Put the legend above the axes, where it covers no bar."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=9, labelcolor=INK)


def _writable(duration: Duration) -> str:
    """Return the student's name, or the number in the table where the font lacks a letter."""
    known = get_font(findfont(FontProperties())).get_charmap()
    name = " ".join(duration.student.split())
    return name if name and all(ord(char) in known for char in name) else f"no. {duration.number}"
