"""Watch everything that a confined program starts, and stop it at the first limit it exceeds.

The kernel offers no cap on the memory of a group of processes to a user without rights, and none
that says which of several limits was hit. So a loop looks at /proc several times a second, adds up
and kills. What it may overshoot is what can be used up between two looks; see `Watch`.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from labkit.grading.limits import MIB, Limits
from labkit.grading.results import CPU, DISK, OK, OOM, OUTPUT, PROCESSES, TIMEOUT

POLL_S = 0.1
SCAN_EVERY_S = 0.5  # a walk through all files costs more than a look at the processes
RESERVE_MIB = 512  # of the machine's memory and disk, never given to a submission
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """What a group of processes uses at one moment.

    Attributes:
        processes: How many there are.
        cpu_s: CPU seconds, those of ended and reaped children included.
        memory_mib: Private pages and shared memory.
    """

    processes: int
    cpu_s: float
    memory_mib: float


@dataclass(frozen=True)
class Outcome:
    """How a confined program ended.

    Attributes:
        verdict: `ok` when it ended by itself, else the limit that it exceeded.
        reason: One sentence; empty when it ended by itself.
        status: Exit status; negative for a signal.
        seconds: Wall-clock time.
        cpu_s: CPU time of everything that it started.
        peak_memory_mib: Highest memory seen.
    """

    verdict: str
    reason: str
    status: int
    seconds: float
    cpu_s: float
    peak_memory_mib: float


class Watch:
    """Holds one program against its limits; `breach` is asked several times a second.

    Overshoot: memory grows by a few GB a second at most, so by some hundred MB between two looks;
    disk likewise; `Limits.tasks` bounds a fork bomb that is faster than the loop.

    Args:
        pid: The program; all its descendants count.
        limits: What it may use.
        folder: Where it writes.
        log: Where its output goes.
    """

    def __init__(self, pid: int, limits: Limits, folder: Path, log: Path) -> None:
        self.pid, self.limits, self.folder, self.log = pid, limits, folder, log
        self.begin = time.monotonic()
        self.cpu_s, self.peak_memory_mib = 0.0, 0.0
        self._next_scan = self.begin + SCAN_EVERY_S

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the program began."""
        return time.monotonic() - self.begin

    def breach(self) -> tuple[str, str] | None:
        """Return (verdict, reason) for the first limit that is exceeded; None when none is."""
        limits = self.limits
        usage = measure(self.pid, limits.processes)
        self.cpu_s = max(self.cpu_s, usage.cpu_s)  # children that init reaped are not lost
        self.peak_memory_mib = max(self.peak_memory_mib, usage.memory_mib)
        if usage.processes > limits.processes:
            return PROCESSES, f"had more than {limits.processes} processes at once"
        if usage.memory_mib > limits.memory_mib:
            real = measure(self.pid, limits.processes, proportional=True)
            if real.processes > limits.processes:  # a fork bomb: its memory comes second
                return PROCESSES, f"had more than {limits.processes} processes at once"
            if real.memory_mib > limits.memory_mib:
                return OOM, f"used more than {limits.memory_mib:,} MiB of memory"
        if psutil.virtual_memory().available < RESERVE_MIB * MIB:
            return OOM, f"left less than {RESERVE_MIB} MiB of the machine's memory"
        if self.seconds > limits.wall_s:
            return TIMEOUT, f"was not done after {limits.wall_s:g} s"
        if self.cpu_s > limits.cpu_s:
            return CPU, f"used {self.cpu_s:.0f} s of CPU time, {limits.cpu_s:g} allowed"
        if self.log.stat().st_size > limits.output_mib * MIB:
            return OUTPUT, f"printed more than {limits.output_mib:g} MiB"
        return self._disk_breach()

    def _disk_breach(self) -> tuple[str, str] | None:
        if time.monotonic() < self._next_scan:
            return None
        limits = self.limits
        try:
            used_mib, files = disk_usage(self.folder, limits.disk_mib, limits.files)
        except TooDeep:
            return DISK, "made folders that lie too deep in each other to be counted"
        self._next_scan = time.monotonic() + SCAN_EVERY_S
        if used_mib > limits.disk_mib:
            return DISK, f"wrote more than {limits.disk_mib:,} MiB"
        if files > limits.files:
            return DISK, f"made more than {limits.files:,} files"
        if shutil.disk_usage(self.folder).free < RESERVE_MIB * MIB:
            return DISK, f"left less than {RESERVE_MIB} MiB of the machine's disk"
        return None


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and everything below it, as far as it still lives."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        yield current
        try:
            for thread in (PROC / str(current) / "task").iterdir():
                waiting.extend(map(int, (thread / "children").read_text().split()))
        except (OSError, ValueError):  # it has just ended
            continue


def measure(pid: int, most: int, proportional: bool = False) -> Usage:
    """Add up what a process and its descendants use.

    Args:
        pid: The process.
        most: Stop counting after so many and one more: a fork bomb grows faster than it is read.
        proportional: Count pages that several processes share once in all, which takes the kernel
            some time; else once for each of them.
    """
    count, cpu_s, memory_kib = 0, 0.0, 0.0
    for member in descendants(pid):
        if count > most:
            break
        try:
            # After the command in parentheses, fields 14 to 17 are the CPU times; proc(5).
            fields = (PROC / str(member) / "stat").read_text().rpartition(")")[2].split()
            status = (PROC / str(member) / "status").read_text()
        except OSError:
            continue
        count += 1
        cpu_s += sum(map(int, fields[11:15])) / TICKS_PER_S
        if proportional:
            memory_kib += _proportional_kib(member, status)
        else:
            memory_kib += _kib(status, "RssAnon:") + _kib(status, "RssShmem:")
    return Usage(count, cpu_s, memory_kib / 1024)


def _proportional_kib(pid: int, status: str) -> int:
    """Return a process's private memory and its share of what it shares; all where unreadable."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:  # it has ended, or hides from us
        return _kib(status, "RssAnon:") + _kib(status, "RssShmem:")
    return _kib(text, "Pss_Anon:") + _kib(text, "Pss_Shmem:")


def _kib(text: str, name: str) -> int:
    """Return the number behind a line's name in a file of /proc; 0 where there is none."""
    start = text.find(f"\n{name}")
    return int(text[start + len(name) + 1 :].split(maxsplit=1)[0]) if start >= 0 else 0


class TooDeep(Exception):
    """A folder's path is longer than the system takes."""


def disk_usage(folder: Path, limit_mib: float, limit_files: int) -> tuple[float, int]:
    """Return MiB and number of entries below a folder; counting ends soon after a limit.

    Links are not followed. What cannot be read, because its owner hid it, is counted as an entry.

    Raises:
        TooDeep: there may be more below a folder that no path leads to.
    """
    used, files, waiting = 0, 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    try:
                        used += entry.stat(follow_symlinks=False).st_blocks * 512
                    except OSError as error:
                        if error.errno == errno.ENAMETOOLONG:
                            raise TooDeep from error
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    if used > limit_mib * MIB or files > limit_files:
                        return used / MIB, files
        except OSError:
            continue
    return used / MIB, files


def wait(
    watch: Watch, poll: Callable[[], int | None], stop: Callable[[], int], tick: Callable[[], None]
) -> Outcome:
    """Wait for a program to end, or stop it at the first limit.

    Args:
        watch: The program and its limits.
        poll: Returns the exit status once it has ended.
        stop: Kills it and everything that it started; returns the exit status.
        tick: Called at every look; whatever it raises stops the program too.
    """
    verdict, reason = OK, ""
    try:
        while (status := poll()) is None:
            tick()
            if breach := watch.breach():
                verdict, reason = breach
                break
            time.sleep(POLL_S)
    finally:
        status = stop()
    return Outcome(verdict, reason, status, watch.seconds, watch.cpu_s, watch.peak_memory_mib)
