"""The exercises: hidden inputs, oracles, and the exchange with a student's kernel.

`ask_exercises` calls a notebook's functions where they were written, `measure_exercises` holds the
answers against oracles that never enter a sandbox and share no code with a solution.
"""

from labkit.grading.exercises.answers import (
    ask_exercises,
    keep_answers,
    measure_exercises,
    read_answers,
)
from labkit.grading.exercises.catalogue import EXERCISES

__all__ = [
    "EXERCISES",
    "ask_exercises",
    "keep_answers",
    "measure_exercises",
    "read_answers",
]
