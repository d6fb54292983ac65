"""One look for every figure: colours that stay apart for colour-blind readers, quiet axes."""

from typing import Any, Final

import matplotlib.pyplot as plt

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


def use_style() -> None:
    """Set matplotlib's defaults for the lab; every plotting function of the lab calls it."""
    plt.rcParams.update(_SETTINGS)
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=PALETTE)
