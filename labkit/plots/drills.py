"""Figures of drills: what came back in each second, and what happened meanwhile."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from labkit.plots.style import BLUE, GREY, ORANGE, YELLOW, subplots

# Kind → its label and colour, in the order in which they are stacked.
KINDS = {
    "answered": ("answered", BLUE),
    "refused": ("refused (503)", YELLOW),
    "failed": ("failed", ORANGE),
}


def answers_over_time(
    seconds: Sequence[Mapping[str, Any]], moments: Sequence[Mapping[str, Any]], title: str
) -> Figure:
    """Draw the answers of each second as stacked bars, with what happened as marked lines.

    Args:
        seconds: As `outcome.seconds` in drills.json; the last one, which is not whole, is left out.
        moments: As `outcome.moments`.
        title: Of the figure.
    """
    whole = seconds[:-1] or seconds
    figure, axis = subplots(figsize=(7.2, 2.7))
    places = [row["second"] for row in whole]
    bottom = [0.0] * len(whole)
    for kind, (label, colour) in KINDS.items():
        heights = [row[kind] for row in whole]
        if not any(heights) and kind != "answered":
            continue
        axis.bar(
            places, heights, 1.0, bottom, color=colour, label=label, align="edge",
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    top = max([*bottom, 1.0])
    axis.set(xlabel="seconds", ylabel="requests per second", ylim=(0, 1.3 * top))
    axis.set_xlim(min(places), max(places) + 1)
    for index, moment in enumerate(moments):
        axis.axvline(moment["at_s"], color=GREY, linestyle="--", linewidth=1)
        axis.text(
            moment["at_s"], (1.27 - 0.1 * (index % 2)) * top, f" {moment['label']}",
            va="top", fontsize=9, color="black",
        )  # fmt: skip
    axis.set_title(title)
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper right", ncols=3, fontsize=9)
    return figure
