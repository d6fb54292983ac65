"""Answers become measurements: the share of the hidden cases that are right."""

from collections.abc import Mapping
from typing import Any

from labkit.grading.exercises.case import Case
from labkit.grading.exercises.catalogue import CATALOGUE, Exercise
from labkit.grading.results import Measurement

MAX_ERROR_CHARACTERS = 160


def judge_exercises(seed: int, outputs: Mapping[str, Any]) -> dict[str, Measurement]:
    """Hold answers against the oracles.

    Args:
        seed: The one of the request.
        outputs: What `read_answers` returned; untrusted.

    Returns:
        One measurement per exercise: the share of right cases in [0, 1], and a sentence for the
        student about the first wrong one. None where the sandbox had no server to ask.
    """
    return {exercise.id: _judge(exercise, seed, outputs.get(exercise.id)) for exercise in CATALOGUE}


def _judge(exercise: Exercise, seed: int, output: Any) -> Measurement:
    """Judge one exercise."""
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
    return Measurement(sum(rights) / len(cases), f"{found}; {_wrong(cases[first], answers[first])}")


def _right(case: Case, answer: Any) -> bool:
    return isinstance(answer, dict) and "value" in answer and case.right(answer["value"])


def _constant(answers: list[Any]) -> bool:
    """Say whether every call returned the same: some case may be right by accident then."""
    values = [answer.get("value", ...) if isinstance(answer, dict) else ... for answer in answers]
    try:
        return ... not in values and all(value == values[0] for value in values)
    except RecursionError:  # lists in lists in lists, of a hostile answer
        return False


def _wrong(case: Case, answer: Any) -> str:
    """Say in a few words where an answer is wrong, without saying what is right."""
    if not isinstance(answer, dict) or "value" not in answer:
        error = answer.get("error") if isinstance(answer, dict) else None
        return f"no answer where {case.label}: {_line(error or 'the call did not end')}"
    return f"wrong where {case.label}"


def _line(text: Any) -> str:
    """Return untrusted text as one short printable line."""
    words = " ".join(text.split()) if isinstance(text, str) else "no reason given"
    shown = "".join(letter for letter in words if letter.isprintable())
    if len(shown) <= MAX_ERROR_CHARACTERS:
        return shown
    return f"{shown[:MAX_ERROR_CHARACTERS]}…"
