"""One look for every figure: colours that stay apart for colour-blind readers, quiet axes."""

from collections.abc import Sequence
from typing import Any, Final

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from labkit.compare import Spread

# Okabe & Ito's palette (https://jfly.uni-koeln.de/color/), dark enough for white paper.
BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
YELLOW: Final = "#E69F00"
SKY: Final = "#56B4E9"
BRIGHT_YELLOW: Final = "#F0E442"  # for areas, not for lines; under black text
GREY: Final = "#7A7A7A"
PALETTE: Final = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, GREY)

_SETTINGS: Any = {  # keys are checked by matplotlib when they are set
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
}


def subplots(*args: Any, **kwargs: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes, as `plt.subplots` does, in the lab's style."""
    use_style()
    return plt.subplots(*args, **kwargs)


def whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    """Return how far the smallest and the largest values are from the medians, for `xerr`."""
    return [
        [spread.median - spread.low for spread in spreads],
        [spread.high - spread.median for spread in spreads],
    ]


def use_style() -> None:
    """Set matplotlib's defaults for the lab; a figure that is not made by `subplots` needs it."""
    plt.rcParams.update(_SETTINGS)
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=PALETTE)
