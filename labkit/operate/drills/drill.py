"""One drill: a name, what goes wrong in it, and the function that does it."""

from collections.abc import Callable
from dataclasses import dataclass

from labkit.operate.drills.environment import DrillEnvironment
from labkit.operate.drills.outcome import Outcome


@dataclass(frozen=True)
class Drill:
    """One drill.

    Attributes:
        name: On the command line.
        title: What goes wrong, one line.
        run: Does it; raises `NotMeasured` where this machine cannot.
    """

    name: str
    title: str
    run: Callable[[DrillEnvironment], Outcome]
