"""Which exercises there are, in which notebook, and how each is called."""

from collections.abc import Callable
from dataclasses import dataclass

from labkit.grading.exercises import data_and_training as data
from labkit.grading.exercises import models, pipeline, serving
from labkit.grading.exercises import tuning_and_report as tuning
from labkit.grading.exercises.case import Case

CALL_S = 10.0  # longest time of one call; a solution takes milliseconds
LONG_CALL_S = 20.0  # where an export or a server is part of it
OWN_SERVER_S = 60.0  # where the call starts a server: a second or two, more on a busy machine


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: The nbgrader id of its solution cell.
        stage: The notebook.
        function: The function that the student writes.
        cases: Seed → hidden cases.
        given: Variables of the notebook that are set anew: they lead to the grader's server.
        asks: What happens beside the call: `value`: nothing; `onnx`: a file is written and looked
            into; `requests`: the server counts its requests.
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
    Exercise("ex-02-calibration", "02_train", "calibration_error", data.calibration_cases),
    Exercise("ex-03-fold", "03_export", "fold", models.fold_cases),
    Exercise(
        "ex-03-batch",
        "03_export",
        "export_for_bytes",
        models.bytes_cases,
        asks="onnx",
        limit_s=LONG_CALL_S,
    ),
    Exercise("ex-04-conv", "04_quantize", "integer_conv", data.conv_cases),
    Exercise("ex-04-broken", "04_quantize", "broken_layer", data.broken_cases),
    Exercise("ex-05-repair", "05_configure", "repair", serving.repair_cases),
    Exercise("ex-05-names", "05_configure", "argument_positions", serving.names_cases),
    Exercise("ex-06-body", "06_serve", "binary_body", serving.body_cases),
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
    Exercise("ex-07-stats", "07_tune", "bottleneck", tuning.stats_cases),
    Exercise("ex-07-open-loop", "07_tune", "open_loop", tuning.open_loop_cases),
    Exercise("ex-07-choose", "07_tune", "choose", tuning.choose_cases),
    Exercise(
        "ex-10-execute",
        "10_pipeline",
        "channel_means",
        pipeline.execute_cases,
        limit_s=OWN_SERVER_S,
    ),
    Exercise("ex-10-ensemble", "10_pipeline", "chain", pipeline.chain_cases),
    Exercise("ex-08-front", "08_report", "front", tuning.front_cases),
    Exercise("ex-08-paired", "08_report", "mcnemar", tuning.paired_cases),
)

EXERCISES: dict[str, str] = {exercise.id: exercise.stage for exercise in CATALOGUE}
