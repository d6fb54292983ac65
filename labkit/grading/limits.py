"""How much a submission may use before it is stopped."""

import math
from dataclasses import dataclass, fields, replace

import psutil

from labkit.errors import UsageError
from labkit.profiles import available_cores

MIB = 2**20


class UnknownLimit(UsageError):
    """A limit that does not exist, or a value that is none."""


@dataclass(frozen=True)
class Limits:
    """Caps on one notebook, counted over everything that it starts.

    Attributes:
        wall_s: Wall-clock seconds.
        cpu_s: CPU seconds, of all processes together.
        memory_mib: Memory that nothing else shares: private pages and shared memory.
        processes: Processes that live at the same time.
        disk_mib: Everything that was written and not deleted, /tmp included.
        files: Files and folders that were made.
        output_mib: Everything that was printed.
    """

    wall_s: float
    cpu_s: float
    memory_mib: int = 6_000
    processes: int = 150
    disk_mib: int = 2_000
    files: int = 20_000
    output_mib: int = 10

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in vars(self).items() if not value > 0}
        if wrong:
            raise UnknownLimit(f"got limits {wrong}, expected numbers above 0")

    def changed(self, changes: dict[str, float]) -> "Limits":
        """Return these limits with some of them changed.

        Raises:
            UnknownLimit: there is no limit of that name, or the value is not above 0, infinite, or
                not whole where things are counted.
        """
        unknown = sorted(set(changes) - set(vars(self)))
        if unknown:
            known = ", ".join(vars(self))
            raise UnknownLimit(f"got limit {', '.join(unknown)}, expected one of: {known}")
        if wrong := {name: value for name, value in changes.items() if not _is_number(value)}:
            raise UnknownLimit(f"got limits {wrong}, expected numbers above 0")
        counted = {field.name for field in fields(self) if field.type is int}
        broken = {k: v for k, v in changes.items() if k in counted and not isinstance(v, int)}
        if broken:  # the kernel takes nothing else
            raise UnknownLimit(f"got limits {broken}, expected whole numbers")
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def tasks(self) -> int:
        """Processes and threads that the kernel itself refuses to exceed, behind `processes`."""
        return 8 * self.processes + 32 * available_cores()  # libraries start a thread a core


def _is_number(value: object) -> bool:
    """Return whether a value of a rubric file is a number that can be compared with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < math.inf  # NaN is not below it, either


# Several times what the lab's own notebooks need on two slow cores.
LIMITS = {
    "smoke": Limits(wall_s=300, cpu_s=500),
    "standard": Limits(wall_s=3_600, cpu_s=7_200),
    "full": Limits(wall_s=6 * 3_600, cpu_s=12 * 3_600),
}


def memory_for(workers: int) -> int:
    """Return the memory cap in MiB that lets `workers` submissions run at once on this machine."""
    total_mib = psutil.virtual_memory().total // MIB
    return max(1_000, min(LIMITS["smoke"].memory_mib, int(0.75 * total_mib / workers)))
