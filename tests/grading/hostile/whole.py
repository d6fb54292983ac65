"""Whole submissions: every notebook solved, as a student would hand it in."""

from __future__ import annotations

from copy import deepcopy

from nbformat import NotebookNode
from solve import solve_notebook

from labkit.chain import STAGES
from labkit.grading.student_notebook import release_notebook

from .claims import right_splits
from .fault import Bait, Fault, solved

STAGES_END = "        self.stages = nn.Sequential(stages)"  # in the class of notebook 02
ANOTHER_LAYER = '        stages["stage3c"] = conv_norm_relu(channels, channels, pool=False)'
LEAST = 96.0  # points: those of the INT8 models depend on the CPU, by a fraction


def whole_submissions(bait: Bait) -> list[Fault]:
    """Return the submissions; they need the limits of the lab's own rubric."""
    del bait
    notebooks = {stage: student_notebook(stage) for stage in STAGES}
    other = notebooks | {"01_data": right_splits(), "02_train": deeper(notebooks["02_train"])}
    return [
        Fault(
            "correct", "solves every exercise of the student edition",
            {f"notebooks/{stage}.ipynb": notebook for stage, notebook in notebooks.items()},
            zipped=True, verdicts=dict.fromkeys(STAGES, ("ok",)), points=(LEAST, 100),
        ),
        Fault(
            "deeper", "adds a layer to the network of notebook 02, and runs on",
            {f"notebooks/{stage}.ipynb": notebook for stage, notebook in other.items()},
            verdicts=dict.fromkeys(STAGES, ("ok",)), points=(LEAST, 100),
        ),
    ]  # fmt: skip


def student_notebook(stage: str) -> NotebookNode:
    """Return a notebook as it is released, with its exercises solved."""
    return solve_notebook(release_notebook(solved(stage), stage), solved(stage))


def deeper(notebook: NotebookNode) -> NotebookNode:
    """Return notebook 02 with one more layer in the network."""
    changed = deepcopy(notebook)
    [cell] = [cell for cell in changed.cells if cell.source.count(STAGES_END) == 1]
    cell.source = cell.source.replace(STAGES_END, f"{ANOTHER_LAYER}\n{STAGES_END}")
    return changed
