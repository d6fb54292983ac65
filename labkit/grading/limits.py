"""How much a submission may use before it is stopped; the cgroup that holds it to that."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import psutil
from pydantic import ConfigDict, Field, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from labkit.errors import UsageError
from labkit.profiles import available_cores

MIB = 2**20
CELL_SHARE = 0.6  # of what is left, that one cell may use
LEAST_SHARE = 0.02  # of a limit, for another cell to be run at all
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class UnknownLimit(UsageError):
    """A limit that does not exist, or a value that is none."""


@dataclass(frozen=True, config=ConfigDict(strict=True))
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

    wall_s: Seconds
    cpu_s: Seconds
    memory_mib: PositiveInt = 6_000
    processes: PositiveInt = 150
    disk_mib: PositiveInt = 2_000
    files: PositiveInt = 20_000
    output_mib: PositiveInt = 10

    def changed(self, changes: dict[str, Any]) -> "Limits":
        """Return these limits with some of them changed.

        Raises:
            UnknownLimit: there is no limit of that name, or the value is not above 0, infinite, or
                not whole where things are counted.
        """
        if unknown := sorted(set(changes) - set(vars(self))):
            known = ", ".join(vars(self))
            raise UnknownLimit(f"got limit {', '.join(unknown)}, expected one of: {known}")
        try:
            return replace(self, **changes)
        except ValidationError as error:
            wrong = {str(entry["loc"][0]): entry["input"] for entry in error.errors()}
            raise UnknownLimit(f"got limits {wrong}: {error.errors()[0]['msg']}") from None

    def of_cell(self, seconds: float, cpu_s: float) -> tuple[float, float] | None:
        """Return after how many seconds, and CPU seconds, the next cell is interrupted.

        However many cells hang, something is left for the others, and for the exercises.

        Args:
            seconds: What the cells before it have used.
            cpu_s: CPU time that they have used.

        Returns:
            None where there is next to nothing left: then no other cell runs.
        """
        left_s, left_cpu_s = self.wall_s - seconds, self.cpu_s - cpu_s
        if left_s < LEAST_SHARE * self.wall_s or left_cpu_s < LEAST_SHARE * self.cpu_s:
            return None
        return CELL_SHARE * left_s, CELL_SHARE * left_cpu_s

    @property
    def tasks(self) -> int:
        """Processes and threads that the kernel itself refuses to exceed, behind `processes`."""
        return 8 * self.processes + 32 * available_cores()  # libraries start a thread a core


# Several times what the lab's own notebooks need on two slow cores. CPU time says how much work
# it was; wall-clock time, which a busy machine stretches, only that somebody waits for nothing.
LIMITS = {
    "smoke": Limits(wall_s=900, cpu_s=500),
    "standard": Limits(wall_s=2 * 3_600, cpu_s=7_200),
    "full": Limits(wall_s=12 * 3_600, cpu_s=12 * 3_600),
}


def memory_for(workers: int) -> int:
    """Return the memory cap in MiB that lets `workers` submissions run at once on this machine."""
    total_mib = psutil.virtual_memory().total // MIB
    return max(1_000, min(LIMITS["smoke"].memory_mib, int(0.75 * total_mib / workers)))


ROOT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("memory", "pids", "cpu")
GRADER: Final = "grader"  # the cgroup of the grader's own processes, beside the scopes
WEIGHT: Final = 50  # of the processor, against 100 of everything else
MARGIN: Final = 1.1  # above the watch's own limits: it notices first, and gives the verdict


class Scope:
    """A cgroup; nothing happens where none could be made.

    Args:
        limits: What the kernel is to hold.
        root: Where cgroup v2 is mounted.
        own: Of this process, as /proc/self/cgroup says it; asked when None.
    """

    def __init__(self, limits: Limits, root: Path = ROOT, own: str | None = None) -> None:
        self.path: Path | None = None
        parent = _delegated(root, own)
        if parent is None:
            return
        path = parent / f"labkit-{os.getpid()}-{id(self):x}"
        try:
            path.mkdir()
            (path / "memory.max").write_text(str(int(MARGIN * limits.memory_mib * MIB)))
            (path / "memory.oom.group").write_text("1")
            (path / "pids.max").write_text(str(limits.tasks))
            (path / "cpu.weight").write_text(str(WEIGHT))
            self.path = path
        except OSError:
            with contextlib.suppress(OSError):
                path.rmdir()

    def enter(self) -> None:
        """In a child before it becomes the program: move this process in."""
        if self.path is not None:
            (self.path / "cgroup.procs").write_text("0")

    def close(self) -> None:
        """Kill what is still in it, and remove it."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self.path / "cgroup.kill").write_text("1")
            with contextlib.suppress(OSError):
                self.path.rmdir()
            self.path = None


def enter_grader(root: Path = ROOT, own: str | None = None) -> None:
    """Make room for scopes: move this process into a cgroup of its own below the delegated one.

    To be called once, before it starts workers: they begin where it is. The kernel allows no scope
    beside a process. Nothing happens where nothing is delegated, or where others share the cgroup.

    Args:
        root: Where cgroup v2 is mounted.
        own: Of this process, as /proc/self/cgroup says it; asked when None.
    """
    here = _cgroup(root, own)
    if here is None or here.name == GRADER:
        return
    try:
        (here / GRADER).mkdir(exist_ok=True)
        (here / GRADER / "cgroup.procs").write_text("0")
        wanted = " ".join(f"+{name}" for name in CONTROLLERS)
        (here / "cgroup.subtree_control").write_text(wanted)
    except OSError:
        with contextlib.suppress(OSError):
            (here / "cgroup.procs").write_text("0")
            (here / GRADER).rmdir()


def _delegated(root: Path, own: str | None) -> Path | None:
    """Return the cgroup in which scopes with all controllers can be made; None without one."""
    here = _cgroup(root, own)
    if here is None or here.name != GRADER:
        return None
    try:
        enabled = (here.parent / "cgroup.subtree_control").read_text().replace("+", "").split()
    except OSError:
        return None
    return here.parent if set(CONTROLLERS) <= set(enabled) else None


def _cgroup(root: Path, own: str | None) -> Path | None:
    """Return the cgroup of this process; None where it is not its own to divide."""
    try:
        text = Path("/proc/self/cgroup").read_text() if own is None else own
        inside = next(line[3:] for line in text.splitlines() if line.startswith("0::"))
        here = root / inside.strip("/")
        known = (here / "cgroup.controllers").read_text().split()
        return here if set(CONTROLLERS) <= set(known) and os.access(here, os.W_OK) else None
    except (OSError, StopIteration):
        return None
