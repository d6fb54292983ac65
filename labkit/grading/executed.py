"""An executed notebook, judged by what its cells show."""

from dataclasses import replace

from nbformat import NotebookNode

from labkit import chain
from labkit.chain import CellFinding
from labkit.grading.notebook_file import INJECTED, tags
from labkit.grading.printable import MAX_CLASS, short_line
from labkit.grading.results import ERROR, OK, OOM, STOPPED

# What the kernel says when there was no memory left: Python, numpy, torch, the C library.
MEMORY_ERRORS = frozenset({"MemoryError", "_ArrayMemoryError", "OutOfMemoryError"})
MEMORY_MESSAGES = (
    "can't allocate memory",
    "Unable to allocate",
    "Cannot allocate memory",
    "std::bad_alloc",
)


def cell_findings(executed: NotebookNode) -> list[CellFinding]:
    """Return what an executed notebook shows, one finding per code cell that is not blank.

    The cell that papermill adds is not counted, so that the numbers are those of the student's
    notebook. Messages are shortened to a line.

    Args:
        executed: As `read_notebook` returns it.
    """
    cells = [cell for cell in executed.cells if INJECTED not in tags(cell)]
    return [
        replace(
            finding,
            first_line=short_line(finding.first_line),
            ename=short_line(finding.ename, MAX_CLASS),
            evalue=short_line(finding.evalue),
        )
        for finding in chain.cell_findings(cells)
    ]


def verdict_of(executed: NotebookNode, required: int) -> tuple[str, str]:
    """Judge an executed notebook by what its cells show.

    Args:
        executed: As `read_notebook` returns it.
        required: How many code cells were to run, see `prepare.Prepared`.

    Returns:
        `OK`, `ERROR`, `STOPPED` or `OOM`, and one sentence; it is empty with `OK`.
    """
    findings = cell_findings(executed)
    raised = [finding for finding in findings if finding.ename]
    if exhausted := [finding for finding in raised if _out_of_memory(finding)]:
        return OOM, _told(exhausted[0])
    if len(findings) < max(required, 1):
        return STOPPED, f"the executed notebook shows {len(findings)} of {required} code cells"
    if silent := [finding for finding in findings if not finding.ran]:
        rest = f", nor did {len(silent) - 1} others" if len(silent) > 1 else ""
        earlier = f"; before that, {_told(raised[0])}" if raised else ""
        return STOPPED, (
            f"{silent[0].where} did not run{rest}: the kernel had ended, there or in the cell "
            f"before, by exit(), a signal or a crash{earlier}"
        )
    if raised:
        more = f"; {len(raised) - 1} more raised as well" if len(raised) > 1 else ""
        return ERROR, _told(raised[0]) + more
    return OK, ""


def _told(finding: CellFinding) -> str:
    """Return where which error was raised."""
    return f"{finding.where}: {finding.ename}" + (f": {finding.evalue}" if finding.evalue else "")


def _out_of_memory(finding: CellFinding) -> bool:
    """Return whether a cell's error says that there was no memory left."""
    return finding.ename in MEMORY_ERRORS or any(
        message in finding.evalue for message in MEMORY_MESSAGES
    )
