"""The sixteen exercises: hidden inputs, oracles, and the exchange with the sandbox.

`make_request` writes what `labkit/grading/probes/call_exercises.py` is to call in the sandbox,
`read_answers` reads what it left behind, `judge_exercises` holds the answers against oracles that
never enter the sandbox and share no code with a solution.
"""

from labkit.grading.exercises.catalogue import EXERCISES, exercise_inputs
from labkit.grading.exercises.exchange import make_request, read_answers
from labkit.grading.exercises.judge import judge_exercises

__all__ = ["EXERCISES", "exercise_inputs", "judge_exercises", "make_request", "read_answers"]
