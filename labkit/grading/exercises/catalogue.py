"""Which exercises there are, in which notebook, and how each is called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.grading.exercises import data_and_training as data
from labkit.grading.exercises import models, serving
from labkit.grading.exercises import tuning_and_report as tuning
from labkit.grading.exercises.case import Case

CALL_S = 10.0  # longest time of one call; a solution takes milliseconds
LONG_CALL_S = 20.0  # where an export or a server is part of it


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: The nbgrader id of its solution cell.
        stage: The notebook.
        function: The function that the student writes.
        cases: Seed → hidden cases.
        given: Variables of the notebook that a solution may use beside imports and definitions.
        asks: What happens beside the call: `value`: nothing; `onnx`: a file is written and looked
            into; `requests`: the server counts its requests. Other than for `value`, each case is
            called in a process of its own.
        needs_server: Whether a running Triton is asked.
        limit_s: Longest time of one call.
    """

    id: str
    stage: str
    function: str
    cases: Callable[[int], list[Case]]
    given: tuple[str, ...] = ()
    asks: str = "value"
    needs_server: bool = False
    limit_s: float = CALL_S


CATALOGUE = (
    Exercise("ex-01-leak", "01_data", "leaked", data.leak_cases),
    Exercise("ex-01-statistics", "01_data", "channel_statistics", data.statistics_cases),
    Exercise("ex-02-learning-rate", "02_train", "learning_rate", data.learning_rate_cases),
    Exercise("ex-02-recalls", "02_train", "recalls", data.recalls_cases),
    Exercise("ex-03-fold", "03_export", "fold", models.fold_cases),
    Exercise(
        "ex-03-batch",
        "03_export",
        "export_any_batch",
        models.batch_cases,
        given=("example",),
        asks="onnx",
        limit_s=LONG_CALL_S,
    ),
    Exercise("ex-04-quantize", "04_quantize", "fake_quantize", data.quantize_cases),
    Exercise("ex-04-pairs", "04_quantize", "pair_sums", data.pairs_cases),
    Exercise("ex-05-repair", "05_configure", "repair", serving.repair_cases),
    Exercise("ex-05-split", "05_configure", "best_split", serving.cores_cases),
    Exercise(  # without `server`, whose attributes are the answers
        "ex-06-endpoint",
        "06_serve",
        "endpoint",
        serving.endpoint_cases,
        needs_server=True,
        limit_s=LONG_CALL_S,
    ),
    Exercise(
        "ex-06-split",
        "06_serve",
        "infer_many",
        serving.split_cases,
        given=("server", "client"),
        asks="requests",
        needs_server=True,
        limit_s=LONG_CALL_S,
    ),
    Exercise("ex-07-little", "07_tune", "little", tuning.little_cases),
    Exercise("ex-07-choose", "07_tune", "choose", tuning.choose_cases),
    Exercise("ex-08-front", "08_report", "front", tuning.front_cases),
    Exercise("ex-08-error", "08_report", "standard_error", tuning.error_cases),
)

EXERCISES: dict[str, str] = {exercise.id: exercise.stage for exercise in CATALOGUE}


def exercise_inputs(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the hidden inputs of every exercise, JSON-able, without anything of the answers.

    Args:
        seed: ≥ 0; equal seeds give equal inputs.

    Returns:
        Exercise id → a `{"arguments": …}` for each case; with `probe`, for an exercise that writes
        a file, what is asked of the file.
    """
    return {exercise.id: [_inputs(case) for case in exercise.cases(seed)] for exercise in CATALOGUE}


def _inputs(case: Case) -> dict[str, Any]:
    inputs = {"arguments": case.arguments}
    return inputs if case.probe is None else {**inputs, "probe": case.probe}
