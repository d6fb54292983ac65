"""Answers become measurements: the share of the hidden cases that are right."""

import builtins
from collections.abc import Mapping
from typing import Any

from labkit.grading.exercises.case import Case
from labkit.grading.exercises.catalogue import CATALOGUE, Exercise
from labkit.grading.results import Measurement

MAX_ERROR_CHARACTERS = 160
# What a call came to, told by its class: a message could carry the hidden inputs out.
TOLD = {
    "Undefined": "the notebook defines no function `{function}`",
    "NoFile": "the function wrote no file to its path",
    "TimeLimit": "it took too long",
    "KernelEnded": "the kernel ended",
    "Nested": "the answer has too many lists in each other",
    "TooLarge": "the answer is too large",
    "WrongKind": "the answer is neither numbers, text, a list nor an array",
    "NoOnnx": "the file that it wrote is no ONNX model that can be run",
}
LIBRARIES = frozenset({"AxisError", "LinAlgError", "ClientError", "InferenceServerException",
                       "RepositoryError", "ParseError", "LabError"})  # fmt: skip


def measure_exercises(seed: int, outputs: Mapping[str, Any]) -> dict[str, Measurement]:
    """Hold answers against the oracles.

    Args:
        seed: The one of the request.
        outputs: What `read_answers` returned; untrusted.

    Returns:
        One measurement per exercise: the share of right cases in [0, 1], and a sentence for the
        student about the first wrong one. None where the sandbox had no server to ask.
    """
    return {e.id: _measure(e, seed, outputs.get(e.id)) for e in CATALOGUE}


def _measure(exercise: Exercise, seed: int, output: Any) -> Measurement:
    """Measure one exercise."""
    if not isinstance(output, dict):
        return Measurement(0.0, f"nothing came back from calling `{exercise.function}`")
    if output.get("failure"):
        return Measurement(None, f"the grader had no server to ask: {_line(output['failure'])}")
    cases = exercise.cases(seed)
    answers = output.get("answers")
    answers = answers if isinstance(answers, list) else []
    answers = (answers + [None] * len(cases))[: len(cases)]
    rights = [_right(case, answer) for case, answer in zip(cases, answers, strict=True)]
    if all(rights):
        return Measurement(1.0, f"all {len(cases)} hidden cases right")
    if _constant(answers):
        return Measurement(0.0, f"`{exercise.function}` gives the same answer in every hidden case")
    first = rights.index(False)
    found = f"{sum(rights)} of {len(cases)} hidden cases right"
    return Measurement(
        sum(rights) / len(cases), f"{found}; {_wrong(exercise, cases[first], answers[first])}"
    )


def _right(case: Case, answer: Any) -> bool:
    return isinstance(answer, dict) and "value" in answer and case.right(answer["value"])


def _constant(answers: list[Any]) -> bool:
    """Say whether every call returned the same: some case may be right by accident then."""
    values = [answer.get("value", ...) if isinstance(answer, dict) else ... for answer in answers]
    try:
        return ... not in values and all(value == values[0] for value in values)
    except RecursionError:  # lists in lists in lists, of a hostile answer
        return False


def _wrong(exercise: Exercise, case: Case, answer: Any) -> str:
    """Say in a few words where an answer is wrong, without saying what is right."""
    if not isinstance(answer, dict) or "value" not in answer:
        return f"no answer where {case.label}: {_why(exercise, answer)}"
    return f"wrong where {case.label}"


def _why(exercise: Exercise, answer: Any) -> str:
    """Say why there is no answer, in the grader's own words."""
    error = str(answer.get("error", "")) if isinstance(answer, dict) else ""
    if error in TOLD:
        return TOLD[error].format(function=exercise.function)
    kind = getattr(builtins, error, None)
    if error in LIBRARIES or (isinstance(kind, type) and issubclass(kind, BaseException)):
        return error
    return "an error of a class of its own" if error else "the call did not end"


def _line(text: Any) -> str:
    """Return untrusted text as one short printable line."""
    words = " ".join(text.split()) if isinstance(text, str) else "no reason given"
    shown = "".join(letter for letter in words if letter.isprintable())
    if len(shown) <= MAX_ERROR_CHARACTERS:
        return shown
    return f"{shown[:MAX_ERROR_CHARACTERS]}…"
