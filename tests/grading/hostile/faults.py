"""The table of all faults, in two classes: under tight limits, and under the lab's own."""

from __future__ import annotations

from .claims import artifact_faults
from .composed import composed_faults
from .curious import curious_faults
from .fault import Bait, Fault
from .machine import machine_faults
from .packages import package_faults
from .whole import whole_submissions

# Of one notebook: none of the small notebooks needs half of it.
LIMITS = {
    "wall_s": 40,
    "cpu_s": 30,
    "memory_mib": 1_500,
    "processes": 60,
    "disk_mib": 200,
    "files": 2_000,
    "output_mib": 2,
}


def small_class(bait: Bait) -> list[Fault]:
    """Return the submissions of small notebooks, to be graded under `LIMITS`."""
    return [
        *machine_faults(bait),
        *curious_faults(bait),
        *artifact_faults(bait),
        *package_faults(bait),
        *composed_faults(bait),
    ]


def whole_class(bait: Bait) -> list[Fault]:
    """Return the submissions that solve the lab, to be graded under the lab's own limits."""
    return whole_submissions(bait)
