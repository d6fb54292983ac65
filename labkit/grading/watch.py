"""Watch everything that a confined program starts, and stop it at the first limit it exceeds.

The kernel offers no cap on the memory of a group of processes to a user without rights, and none
that says which of several limits was hit. So a loop looks at /proc several times a second, adds up
and kills. What it may overshoot is what can be used up between two looks; see `Watch`.
"""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil

from labkit.grading.limits import MIB, Limits
from labkit.grading.results import CPU, DISK, OOM, OUTPUT, PROCESSES, SHORTAGE, TIMEOUT

POLL_S = 0.1
SCAN_EVERY_S = 0.5  # a walk through all files costs more than a look at the processes
RESERVE_MIB = 512  # of the machine's memory and disk, never given to a submission
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
OF_MEMORY = ("/dev/shm/", "/dev/zero", "/memfd:", "/SYSV")  # counted otherwise
SLEPT, HAD_A_CORE = 0.05, 0.8  # CPU time over wall-clock time
MOST_FILES = 5_000  # open files of a process that are looked at
LOOK_CPU_S = 3.0  # of the grader, for a look at the files of one submission: it takes milliseconds
LOG_BLOCKS = 64 * MIB  # that a file system may give to a file that grows
PEER_LASTS_S = 5.0  # a watch on a machine that is short of memory is slow too
PEERS = Path(tempfile.gettempdir()) / f"labkit-watch-{os.getuid()}"  # what is used meanwhile


@dataclass(frozen=True)
class Usage:
    """What a group of processes uses at one moment.

    Attributes:
        processes: How many there are.
        cpu_s: CPU seconds, those of ended and reaped children included.
        memory_mib: Private pages and shared memory.
        shared_mib: The shared part of it.
    """

    processes: int
    cpu_s: float
    memory_mib: float
    shared_mib: float = 0.0


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


def starved(cpu_s: float, seconds: float) -> bool:
    """Say whether a program wanted to compute all the time, and did not get a core of its own.

    One that slept used next to no CPU time, and one that had its core used nearly all of it:
    neither would be faster on another day.

    Args:
        cpu_s: CPU time that it used, with all that it started.
        seconds: Wall-clock time meanwhile.
    """
    return SLEPT <= cpu_s / max(seconds, POLL_S) < HAD_A_CORE


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
        self._earlier_cpu_s = 0.0
        self.restart()
        self._next_scan = self.begin + SCAN_EVERY_S
        self._unowned_mib, self._shared_mib = 0.0, 0.0
        self._short_since: dict[str, float] = {}

    def restart(self) -> None:
        """Count from now on: what the program has used to get ready is nobody's."""
        self.begin = time.monotonic()
        self._earlier_cpu_s = measure(self.pid, self.limits.processes).cpu_s
        self.cpu_s, self.peak_memory_mib = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the program began, or was ready."""
        return time.monotonic() - self.begin

    def breach(self) -> tuple[str, str] | None:
        """Return (verdict, reason) for the first limit that is exceeded; None when none is."""
        limits = self.limits
        usage = measure(self.pid, limits.processes)
        # Children that init has reaped are not lost.
        self.cpu_s = max(self.cpu_s, usage.cpu_s - self._earlier_cpu_s)
        self._shared_mib = usage.shared_mib
        memory_mib = usage.memory_mib + self._unowned_mib
        self.peak_memory_mib = max(self.peak_memory_mib, memory_mib)
        if usage.processes > limits.processes:
            return PROCESSES, f"had more than {limits.processes} processes at once"
        if usage.memory_mib + self._unowned_mib > limits.memory_mib:
            real = measure(self.pid, limits.processes, proportional=True)
            if real.processes > limits.processes:  # a fork bomb: its memory comes second
                return PROCESSES, f"had more than {limits.processes} processes at once"
            if real.memory_mib + self._unowned_mib > limits.memory_mib:
                return OOM, f"used more than {limits.memory_mib:,} MiB of memory"
        short = psutil.virtual_memory().available < RESERVE_MIB * MIB
        if self._is_to_end(short, "memory", memory_mib):
            return SHORTAGE, f"ran while the machine had less than {RESERVE_MIB} MiB of memory left"
        if self.seconds > limits.wall_s:
            return TIMEOUT, f"was not done after {limits.wall_s:g} s"
        if self.cpu_s > limits.cpu_s:
            return CPU, f"used {self.cpu_s:.0f} s of CPU time, {limits.cpu_s:g} allowed"
        log = self.log.stat()  # to which more can be given than is written
        if max(log.st_size, log.st_blocks * 512 - LOG_BLOCKS) > limits.output_mib * MIB:
            return OUTPUT, f"printed more than {limits.output_mib:g} MiB"
        return self._disk_breach()

    def _disk_breach(self) -> tuple[str, str] | None:
        if time.monotonic() < self._next_scan:
            return None
        limits = self.limits
        try:
            memory_mib, disk_mib = unowned(self.pid, limits.processes)
            self._unowned_mib = max(0.0, memory_mib - self._shared_mib)
            used_mib, files = disk_usage(self.folder, limits.disk_mib, limits.files)
            used_mib += disk_mib
        except TooDeep:
            return DISK, "made folders that lie too deep in each other to be counted"
        except TooMany:
            return DISK, "had more open and mapped files than can be counted"
        self._next_scan = time.monotonic() + SCAN_EVERY_S
        if used_mib > limits.disk_mib:
            return DISK, f"wrote more than {limits.disk_mib:,} MiB"
        if files > limits.files:
            return DISK, f"made more than {limits.files:,} files"
        short = shutil.disk_usage(self.folder).free < RESERVE_MIB * MIB
        log_mib = self.log.stat().st_blocks * 512 / MIB
        if self._is_to_end(short, "disk", used_mib + log_mib):
            return SHORTAGE, f"ran while the machine had less than {RESERVE_MIB} MiB of disk left"
        return None

    def _is_to_end(self, short: bool, of: str, mib: float) -> bool:
        """Say whether this program ends for a shortage: of all that are watched it uses most.

        The machine's shortage is nobody's own fault; but somebody has to be stopped. Each watch
        that sees it writes down what it has, and only the largest stops its program.

        Args:
            short: Whether the machine is short.
            of: `memory` or `disk`.
            mib: What it has of it, in MiB.
        """
        if not short:
            self._short_since.pop(of, None)
            return False
        peers, mine = PEERS / of, (mib, self.pid)
        try:
            for folder in (PEERS, peers):
                folder.mkdir(mode=0o700, exist_ok=True)
            beside = peers / f"{self.pid}.new"  # renamed: nobody reads half a number
            beside.write_text(f"{mib}")
            beside.replace(peers / str(self.pid))
        except OSError:  # no room even for that
            return True
        first = self._short_since.setdefault(of, time.monotonic())
        if time.monotonic() < first + (3 * POLL_S if of == "memory" else SCAN_EVERY_S):
            return False  # the others have not yet had their turn
        others = []
        for path in peers.iterdir():
            with suppress(OSError, ValueError):
                if time.time() - path.stat().st_mtime < PEER_LASTS_S:
                    others.append((float(path.read_text()), int(path.name)))
                else:
                    path.unlink()
        return mine >= max(others, default=mine)


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
    count, cpu_s, memory_kib, shared_kib = 0, 0.0, 0.0, 0.0
    for member in descendants(pid):
        if count > most:
            break
        try:
            fields = _stat(member)  # 14 to 17 of all are the CPU times; proc(5)
            status = (PROC / str(member) / "status").read_text()
        except OSError:
            continue
        count += 1
        cpu_s += sum(map(int, fields[11:15])) / TICKS_PER_S
        if fields[0] == "Z" and (thread := _living_thread(member)):
            member = thread
            with suppress(OSError):
                status = (PROC / str(member) / "status").read_text()
        if proportional:
            memory_kib += _proportional_kib(member, status)
        else:
            memory_kib += _kib(status, "RssAnon:") + _kib(status, "RssShmem:")
        memory_kib += _kib(status, "VmPTE:")  # tables of pages that may all be the same one
        shared_kib += _kib(status, "RssShmem:")
    return Usage(count, cpu_s, memory_kib / 1024, shared_kib / 1024)


def _living_thread(pid: int) -> int:
    """Return a thread that goes on where the first one has ended, and shows nothing more; else 0.

    Under its number /proc shows what all threads share.
    """
    with suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            if int(thread.name) != pid and thread.is_dir():
                return int(thread.name)
    return 0


def unowned(pid: int, most: int) -> tuple[float, float]:
    """Return MiB of memory and of disk that a group holds and that belongs to no process or name.

    Files of memory (memfd, /dev/shm) count as memory, whether or not they are mapped; files that
    are open or mapped and have no name any more count as disk, mapped ones with what of them is
    mapped. What is in flight between two sockets, and
    belongs to nobody at that moment, is not seen.

    Raises:
        TooMany: looking at them takes more than `LOOK_CPU_S`.
    """
    begin = time.thread_time()
    memory, disk = 0, 0
    seen: set[tuple[int, int]] = set()
    mapped: dict[int, int] = {}
    shm, own = 0, Path("/dev/shm").stat().st_dev if Path("/dev/shm").is_dir() else -1
    for number, member in enumerate(descendants(pid)):
        if number > most:
            break
        if time.thread_time() - begin > LOOK_CPU_S:
            raise TooMany
        member = _living_thread(member) if _has_left(member) else member
        with suppress(OSError):
            place = PROC / str(member) / "root/dev/shm"
            if place.stat().st_dev != own:  # one of the sandbox, and not this machine's
                used = os.statvfs(place)
                own_kib = used.f_files - used.f_ffree  # a file without content takes memory, too
                shm = max(shm, (used.f_blocks - used.f_bfree) * used.f_frsize + own_kib * 1024)
        mapped |= nameless_mappings(member)
        try:
            entries = list(islice(os.scandir(PROC / str(member) / "fd"), MOST_FILES))
        except OSError:  # it has ended, or hides from us
            continue
        for entry in entries:
            with suppress(OSError):
                about, name = entry.stat(), str(Path(entry.path).readlink())
                if not stat.S_ISREG(about.st_mode) or (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
                if name.startswith("/memfd:"):
                    memory += about.st_blocks * 512
                elif about.st_nlink == 0 and not name.startswith("/dev/shm/"):
                    disk += about.st_blocks * 512
    opened = {inode for _, inode in seen}
    disk += sum(size for inode, size in mapped.items() if inode not in opened)
    return (memory + shm) / MIB, disk / MIB


def _has_left(pid: int) -> bool:
    """Say whether the first thread of a process has ended."""
    try:
        return _stat(pid)[0] == "Z"
    except (OSError, IndexError):
        return False


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's line of numbers, from its state on, after the command."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def nameless_mappings(pid: int) -> dict[int, int]:
    """Return inode → bytes of the files that a process maps and that have no name any more."""
    found: dict[int, int] = {}
    with suppress(OSError):  # it has ended, or hides from us
        for line in (PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
            if not line.endswith(" (deleted)"):
                continue
            addresses, _, offset, _, inode, path = line.split(maxsplit=5)
            if not path.startswith(OF_MEMORY):
                first, last = (int(address, 16) for address in addresses.split("-"))
                size = int(offset, 16) + last - first
                found[int(inode)] = max(size, found.get(int(inode), 0))
    return found


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


class TooMany(Exception):
    """More files are open and mapped than can be looked at."""


class TooDeep(Exception):
    """A folder's path is longer than the system takes."""


def disk_usage(folder: Path, limit_mib: float, limit_files: int) -> tuple[float, int]:
    """Return MiB and number of entries below a folder; counting ends soon after a limit.

    Links are not followed. A folder that its owner has hidden is made readable again.

    Raises:
        TooDeep: there may be more below a folder that no path leads to.
    """
    used, files, waiting = 0, 0, [folder]
    while waiting:
        try:
            with _entries(waiting.pop()) as entries:
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


@contextmanager
def _entries(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List a folder; what a program has made unreadable is made readable, no link followed."""
    try:
        listing = os.scandir(folder)
    except PermissionError:
        found = os.open(folder, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            Path(f"/proc/self/fd/{found}").chmod(0o700)
        finally:
            os.close(found)
        listing = os.scandir(folder)
    with listing:
        yield listing
