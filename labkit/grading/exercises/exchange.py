"""Requests that go into the sandbox, and answers that come out of it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.grading.exercises.catalogue import CATALOGUE, exercise_inputs
from labkit.grading.exercises.serving import served_network
from labkit.grading.files import UnfitFile, parse_json, read_plain

MAX_ANSWER_MIB = 8  # of one file; the largest right one has some 100 kB


def make_request(seed: int, notebooks: Mapping[str, Path]) -> str:
    """Write down what is to be called in the sandbox.

    Args:
        seed: Chooses the inputs.
        notebooks: Stage → the student's notebook, as the sandbox sees it. Exercises of a stage
            that is missing here are not called.

    Returns:
        JSON, some megabytes, for the first argument of `call_exercises.py`. It holds inputs and no
        answers.
    """
    inputs = exercise_inputs(seed)
    exercises = [
        {
            "exercise": exercise.id,
            "notebook": str(notebooks[exercise.stage]),
            "function": exercise.function,
            "given": list(exercise.given),
            "asks": exercise.asks,
            "needs_server": exercise.needs_server,
            "limit_s": exercise.limit_s,
            "cases": inputs[exercise.id],
        }
        for exercise in CATALOGUE
        if exercise.stage in notebooks
    ]
    weight, bias = served_network(seed)
    server = {"weight": [float(value) for value in weight.ravel()], "bias": bias.tolist()}
    return json.dumps({"exercises": exercises, "server": server})


def read_answers(folder: Path) -> dict[str, Any]:
    """Read the answers that a sandbox left behind; nothing in the folder is trusted.

    Args:
        folder: The second argument of `call_exercises.py`.

    Returns:
        Exercise id → what its file says. A file that is missing, a link, no regular file, too
        large or not JSON is left out.
    """
    answers = {}
    for exercise in CATALOGUE:
        name = f"{folder.name}/{exercise.id}.json"  # the folder may have become a link, too
        with suppress(UnfitFile, OSError):
            answers[exercise.id] = parse_json(read_plain(folder.parent, name, MAX_ANSWER_MIB), name)
    return answers
