"""A released notebook with the solutions put back: what a student who solves it hands in."""

from copy import deepcopy

from nbformat import NotebookNode

from labkit.grading.student_notebook import ReleaseError, exercises_of


def solve_notebook(released: NotebookNode, solved: NotebookNode) -> NotebookNode:
    """Return the released notebook with the solutions of a solved one, matched by `grade_id`.

    Only the sources of the exercises' cells change; neither argument is.

    Raises:
        ReleaseError: the solved notebook lacks one of the exercises.
    """
    sources = {name: cell.source for name, cell in exercises_of(solved).items()}
    result = deepcopy(released)
    exercises = exercises_of(result)
    if missing := sorted(exercises.keys() - sources.keys()):
        raise ReleaseError(
            f"the solved notebook has no cell with the grade_id {', '.join(missing)}; "
            "take the notebook that the released one was made from"
        )
    for name, cell in exercises.items():
        cell.source = sources[name]
    return result
