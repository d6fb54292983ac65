"""Failure drills: break a real deployment on purpose, and hold what happens against limits.

Each drill is a module with a function `run(lab) -> Outcome`. All traffic stays on this machine's
loopback address, bounded in number and time; the run whose model is served is read and not changed.
"""

from labkit.operate.drills.drill import Drill
from labkit.operate.drills.environment import DrillEnvironment, NoRun, find_model
from labkit.operate.drills.outcome import NotMeasured, Number, Outcome, Result
from labkit.operate.drills.registry import DRILLS, UnknownDrill, find_drills, perform

__all__ = [
    "DRILLS",
    "Drill",
    "DrillEnvironment",
    "NoRun",
    "NotMeasured",
    "Number",
    "Outcome",
    "Result",
    "UnknownDrill",
    "find_drills",
    "find_model",
    "perform",
]
