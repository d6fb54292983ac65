"""Figures of the model repository: which setting acts where."""

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from labkit.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, subplots

_BOXES = (  # x, title, what happens there, the fields that decide it
    (0.0, "HTTP / gRPC", "request arrives", "name\ninput  dims  data_type", GREY),
    (2.6, "scheduler", "joins requests", "max_batch_size\ndynamic_batching", BLUE),
    (5.2, "instance", "one of several copies", "instance_group", GREEN),
    (7.8, "backend", "computes", "backend  parameters\noptimization", ORANGE),
    (10.4, "response", "logits, or labels", "output\nlabel_filename", PURPLE),
)
_WIDTH, _HEIGHT = 2.0, 1.0


def request_path() -> Figure:
    """Show a request's path through the server, and the fields that matter at each step."""
    figure, axis = subplots(figsize=(10, 1.9))
    axis.set(xlim=(-0.2, 12.7), ylim=(-0.85, 1.15))
    axis.axis("off")
    for x, title, text, fields, colour in _BOXES:
        _box(axis, x, title, text, fields, colour)
    for left, right in pairwise(_BOXES):
        axis.annotate(
            "",
            xy=(right[0], 0.5),
            xytext=(left[0] + _WIDTH, 0.5),
            arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1.5},
        )
    return figure


def _box(axis: Axes, x: float, title: str, text: str, fields: str, colour: str) -> None:
    """Draw one step: a box with its name, below it the fields of `config.pbtxt`."""
    axis.add_patch(
        FancyBboxPatch(
            (x, 0),
            _WIDTH,
            _HEIGHT,
            boxstyle="round,pad=0.02,rounding_size=0.1",
            facecolor=colour,
            edgecolor="none",
            alpha=0.16,
        )
    )
    middle = x + _WIDTH / 2
    axis.text(middle, 0.66, title, ha="center", va="center", weight="bold", color=colour)
    axis.text(middle, 0.3, text, ha="center", va="center", fontsize=9)
    axis.text(middle, -0.2, fields, ha="center", va="top", family="monospace", fontsize=9)
