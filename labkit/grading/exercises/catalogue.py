"""Which exercises there are, in which notebook, and how each is called."""

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from labkit.grading.exercises import models, serving
from labkit.grading.exercises import tuning_and_report as tuning
from labkit.grading.exercises.case import HiddenCase, generator

CALL_S = 10.0  # longest time of one call; a solution takes milliseconds
LONG_CALL_S = 20.0  # where an export or a server is part of it
SPLIT = "ex-06-split"
OWN_SERVER_S = 60.0  # where the call starts a server: a second or two, more on a busy machine


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: The nbgrader id of its solution cell.
        stage: The notebook.
        function: The function that the student writes.
        draw_cases: Random numbers → hidden cases.
        asks: What happens beside the call: `value`: nothing; `onnx`: a file is written and looked
            into; `requests`: the grader's server is asked, and counts its requests.
        limit_s: Longest time of one call.
    """

    id: str
    stage: str
    function: str
    draw_cases: Callable[[Generator], list[HiddenCase]]
    asks: str = "value"
    limit_s: float = CALL_S

    def cases(self, seed: int) -> list[HiddenCase]:
        """Return the hidden cases of a grading."""
        return self.draw_cases(generator(seed, self.id))


CATALOGUE = (
    Exercise("ex-01-leak", "01_data", "leaked", models.leak_cases),
    Exercise("ex-01-statistics", "01_data", "channel_statistics", models.statistics_cases),
    Exercise("ex-02-learning-rate", "02_train", "learning_rate", models.learning_rate_cases),
    Exercise("ex-02-calibration", "02_train", "calibration_error", models.calibration_cases),
    Exercise("ex-03-fold", "03_export", "fold", models.fold_cases),
    Exercise(
        "ex-03-batch", "03_export", "export_for_bytes", models.bytes_cases, "onnx", LONG_CALL_S
    ),
    Exercise("ex-04-conv", "04_quantize", "integer_conv", models.conv_cases),
    Exercise("ex-04-broken", "04_quantize", "broken_layer", models.broken_cases),
    Exercise("ex-05-repair", "05_configure", "repair", serving.repair_cases),
    Exercise("ex-05-names", "05_configure", "argument_positions", serving.names_cases),
    Exercise("ex-06-body", "06_serve", "binary_body", serving.body_cases),
    Exercise(SPLIT, "06_serve", "infer_many", serving.split_cases, "requests", LONG_CALL_S),
    Exercise("ex-07-stats", "07_tune", "bottleneck", tuning.stats_cases),
    Exercise("ex-07-open-loop", "07_tune", "open_loop", tuning.open_loop_cases),
    Exercise("ex-07-choose", "07_tune", "choose", tuning.choose_cases),
    Exercise(
        "ex-10-execute",
        "10_pipeline",
        "channel_means",
        serving.execute_cases,
        limit_s=OWN_SERVER_S,
    ),
    Exercise("ex-10-ensemble", "10_pipeline", "chain", serving.chain_cases),
    Exercise("ex-08-front", "08_report", "front", tuning.front_cases),
    Exercise("ex-08-paired", "08_report", "mcnemar", tuning.paired_cases),
)

EXERCISES: dict[str, str] = {exercise.id: exercise.stage for exercise in CATALOGUE}
