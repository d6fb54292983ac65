"""The exercises of notebook 10: a Python model behind a real Triton, an ensemble read as text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_exercises import code_cells, needs_triton, run, solution

from labkit.grading.exercises.case import HiddenCase
from labkit.grading.exercises.catalogue import CATALOGUE
from labkit.grading.results import Measurement

STAGE = "10_pipeline"
EXECUTE, CHAIN = "ex-10-execute", "ex-10-ensemble"


def cases_of(exercise: str, seed: int) -> list[HiddenCase]:
    """The hidden cases of an exercise."""
    return next(one for one in CATALOGUE if one.id == exercise).cases(seed)


def cells(**answers: str) -> list[str]:
    """Imports, the function that sends requests, and the solutions or what stands for them."""
    found = code_cells(STAGE)
    imports = next(source for _, source in found if source.startswith("import time"))
    sender = next(source for _, source in found if source.startswith("def ask_at_once"))
    own = [answers.get(name.replace("-", "_"), source) for name, source in found if "ex-" in name]
    return [imports, sender, *own]


def changed(exercise: str, old: str, new: str) -> str:
    source = solution(exercise)
    assert source.count(old) == 1
    return source.replace(old, new)


# -- the ensemble: judged by the way that a tensor takes -------------------------------------------


def chain_of(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["chain"]


def rights(chain: Any, seed: int = 11) -> list[bool]:
    cases = cases_of(CHAIN, seed)
    steps = [[tuple(step["$tuple"]) for step in case.arguments[0]] for case in cases]
    return [case.right(chain(given)) for case, given in zip(cases, steps, strict=True)]


def test_the_solution_is_right_for_any_seed() -> None:
    chain = chain_of(solution(CHAIN))
    assert all(all(rights(chain, seed)) for seed in range(25))


def test_other_names_another_order_and_comments_are_right_too() -> None:
    def chain(steps: list[tuple[str, str, str]]) -> str:
        names = ["x", *[f"t{len(steps) - n}" for n in range(1, len(steps))], "y"]
        head = "platform: 'ensemble' name: 'chain' # mine\n" + "".join(
            f'{kind} {{ name: "{name}" dims: -1 data_type: TYPE_FP32 }}\n'
            for kind, name in (("output", "y"), ("input", "x"))
        )
        parts = [
            f'step {{ model_version: -1 model_name: "{model}" output_map {{ value: "{target}" '
            f'key: "{gives}" }} input_map {{ key: "{takes}" value: "{source}" }} }}\n'
            for (model, takes, gives), source, target in zip(steps, names, names[1:], strict=False)
        ]
        return head + f"ensemble_scheduling {{ {''.join(reversed(parts))} }}"

    assert all(rights(chain))


@pytest.mark.parametrize(
    ("old", "new", "right"),
    [
        ('f"after_{number}"', 'f"after"', [True, True, False, True, False, False]),
        ('f"after_{number}"', "steps[number - 1][2]", [True, True, True, True, False, False]),
        ('key: "{takes}" value: "{source}"', 'key: "{source}" value: "{takes}"', [False] * 6),
        ('value: "{target}"', 'value: "y"', [True] + [False] * 5),
        ("{{{text}\\n}}", "{{}}", [False] * 6),
    ],
)
def test_a_plausible_mistake_is_found(old: str, new: str, right: list[bool]) -> None:
    assert rights(chain_of(changed(CHAIN, old, new))) == right


@pytest.mark.parametrize("answer", [None, 7, [], "", "x" * 70_000, "name: {", "step {}", "\0"])
def test_what_is_no_configuration_is_wrong_and_no_error(answer: Any) -> None:
    assert not any(case.right(answer) for case in cases_of(CHAIN, 3))


# -- the Python model: served ----------------------------------------------------------------------


def test_answers_of_the_wrong_kind_are_wrong() -> None:
    for case in cases_of(EXECUTE, 3):
        batches = case.arguments[0]
        for answer in (None, "400", [], ["400"] * len(batches), [[0.5] * 3] * len(batches)):
            assert not case.right(answer), case.label


class TestServed:
    pytestmark = needs_triton

    @pytest.fixture(scope="class")
    def careless(self, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
        """One bad request fails its whole list."""
        raising = changed(
            EXECUTE,
            "responses.append(pb_utils.InferenceResponse(error=error))",
            "raise ValueError(str(error))",
        )
        return run(tmp_path_factory.mktemp("careless"), {STAGE: cells(ex_10_execute=raising)})[
            EXECUTE
        ]

    def test_the_solutions_have_full_marks(self, tmp_path: Path) -> None:
        found = run(tmp_path, {STAGE: cells()})
        assert {name: found[name].value for name in (EXECUTE, CHAIN)} == {EXECUTE: 1, CHAIN: 1}

    def test_a_list_that_fails_as_a_whole_is_found(self, careless: Measurement) -> None:
        assert careless.value == pytest.approx(2 / 5)
        assert "wrong where a request in the middle is bad" in careless.detail

    def test_a_stub_has_no_marks(self, tmp_path: Path) -> None:
        from labkit.grading.student_notebook import with_stubs

        stubs = {
            name.replace("-", "_"): with_stubs(solution(name), name) for name in (EXECUTE, CHAIN)
        }
        found = run(tmp_path, {STAGE: cells(**stubs)})
        assert {name: found[name].value for name in (EXECUTE, CHAIN)} == {EXECUTE: 0, CHAIN: 0}


def test_hidden_inputs_can_be_written_as_json() -> None:
    for exercise in CATALOGUE:
        if exercise.stage == STAGE:
            assert json.dumps([case.arguments for case in exercise.cases(5)])
    one, other = (cases_of(EXECUTE, seed)[0].arguments[0][0]["$array"] for seed in (1, 2))
    assert not np.array_equal(one, other)
