"""What a server's processes use."""

import psutil

from labkit.operate.processes import family

STUB = "triton_python_backend_stub"
MIB = 2**20


def stubs(pid: int) -> list[psutil.Process]:
    """Return the processes in which a server's Python-based models run."""
    return [process for process in family(pid) if STUB in _command(process)]


def rss_mib(pid: int) -> float:
    """Return the resident memory of a server and all its processes together, in MiB."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""
