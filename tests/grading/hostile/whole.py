"""Whole submissions: every notebook solved, as a student would hand it in."""

from __future__ import annotations

from copy import deepcopy

from nbformat import NotebookNode

from labkit.chain import STAGES
from labkit.grading.student_notebook import release_notebook, solve_notebook

from .claims import right_configuration, right_splits
from .fault import Bait, Fault, solved

RECIPE = "config = TrainConfig.from_profile(settings)"
NARROW = "replace(TrainConfig.from_profile(settings), widths=(16, 64, 128))"
LEAST = 96.0  # points: those of the INT8 models depend on the CPU, by a fraction


def whole_submissions(bait: Bait) -> list[Fault]:
    """Return the submissions; they need the limits of the lab's own rubric."""
    del bait
    notebooks = {stage: student_notebook(stage) for stage in STAGES}
    other = {
        "01_data": right_splits(),
        "02_train": narrower(notebooks["02_train"]),
        "03_export": notebooks["03_export"],
        "04_quantize": notebooks["04_quantize"],
        "05_configure": right_configuration(),
    }
    return [
        Fault(
            "correct", "solves every exercise of the student edition",
            {f"notebooks/{stage}.ipynb": notebook for stage, notebook in notebooks.items()},
            zipped=True, verdicts=dict.fromkeys(STAGES, ("ok",)), points=(LEAST, 100),
        ),
        Fault(
            "narrower", "trains another network, and hands in five notebooks",
            {f"notebooks/{stage}.ipynb": notebook for stage, notebook in other.items()},
            verdicts=dict.fromkeys(other, ("ok",)), points=(72, 76),
        ),
    ]  # fmt: skip


def student_notebook(stage: str) -> NotebookNode:
    """Return a notebook as it is released, with its exercises solved."""
    return solve_notebook(release_notebook(solved(stage), stage), solved(stage))


def narrower(notebook: NotebookNode) -> NotebookNode:
    """Return notebook 02 with fewer channels."""
    changed = deepcopy(notebook)
    cell = next(cell for cell in changed.cells if RECIPE in cell.source)
    cell.source = "from dataclasses import replace\n\n" + cell.source.replace(
        RECIPE, f"config = {NARROW}"
    )
    return changed
