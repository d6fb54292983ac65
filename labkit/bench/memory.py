"""What an instance of a stand-in costs in memory."""

import re
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class InstanceMemory:
    """Memory of one stub process, which serves one instance of a stand-in.

    Attributes:
        rss_mib: Resident, shared libraries counted in full.
        own_mib: Resident and shared with no other process: what one more instance costs.
    """

    rss_mib: float
    own_mib: float


def instance_memory(pid: int) -> dict[str, list[InstanceMemory]]:
    """Return the memory of every Python stub below process `pid`, by model.

    Native backends run inside the server's own process and have no entry.
    """
    found: dict[str, list[InstanceMemory]] = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            command = process.cmdline()
            if not command or not command[0].endswith("triton_python_backend_stub"):
                continue
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        names = [match[1] for word in command if (match := re.fullmatch(r"(.+)_\d+_\d+", word))]
        entry = InstanceMemory(memory.rss / 2**20, memory.uss / 2**20)
        found.setdefault(names[-1] if names else "?", []).append(entry)
    return found
