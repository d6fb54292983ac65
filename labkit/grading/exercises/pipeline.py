"""Hidden cases for the exercises of notebook 10: requests to a Python model, and an ensemble."""

from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from labkit.grading.exercises.case import (
    Case,
    Oracle,
    array,
    close,
    each,
    equals,
    generator,
    tuple_of,
)
from labkit.repository import parse_config

LEAST_SIDE = 8  # pixels; below, a request is refused
REFUSED = "400"  # what the notebook's client returns for INVALID_ARG
MAX_TEXT = 65_536  # characters of a config.pbtxt
Step = tuple[str, str, str]  # model, its input, its output


def execute_cases(seed: int) -> list[Case]:
    """`channel_means(batches)`: an answer or a status for each, however the server joins them."""
    rng = generator(seed, "ex-10-execute")

    def batch(count: int, height: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    def side() -> int:
        return int(rng.integers(LEAST_SIDE + 1, 48))

    def good(count: int = 1) -> np.ndarray:
        return batch(count, side(), side())

    def case(label: str, *batches: np.ndarray) -> Case:
        return Case(label, [[array(one) for one in batches]], each(*map(_means, batches)))

    return [
        case("one image is asked about", good()),
        case("batches have several images", good(3), good(), good(2)),
        case("a request in the middle is bad", good(), batch(1, side(), 5), good(2), good()),
        case("bad requests are first and last", batch(1, 7, 30), good(), good(), batch(2, 3, 3)),
        case("a side has the least size", batch(1, LEAST_SIDE, side()), batch(1, side(), 7)),
    ]


def _means(images: np.ndarray) -> Oracle:
    """Accept the answer to one request: its means (N, 3), or its status."""
    if min(images.shape[1:3]) < LEAST_SIDE:
        return equals(REFUSED)
    return close(images.mean(axis=(1, 2)) / 255, 1e-4, 1e-4)


def chain_cases(seed: int) -> list[Case]:
    """`chain(steps)`: the text of an ensemble in which each step takes what the last one gave."""
    rng = generator(seed, "ex-10-ensemble")
    names = iter(rng.permutation([f"{a}{b}" for a in "klmnpqrst" for b in "0123456789"]).tolist())

    def model() -> Step:
        return f"model_{next(names)}", f"in_{next(names)}", f"out_{next(names)}"

    def case(label: str, *steps: Step) -> Case:
        return Case(label, [[tuple_of(*step) for step in steps]], _leads_through(list(steps)))

    once, again = model(), model()
    same = f"tensor_{next(names)}"
    return [
        case("there is one step", model()),
        case("there are two steps", model(), model()),
        case("a model occurs twice", once, again, once),
        case("a model follows itself", again, again),
        case(
            "all models call their tensors the same", *((model()[0], same, same) for _ in range(4))
        ),
        case("a model calls its input y", (model()[0], "y", "x"), model(), (model()[0], "y", "x")),
    ]


def _leads_through(steps: list[Step]) -> Oracle:
    """Accept an ensemble by the way that a tensor takes through it."""

    def right(answer: Any) -> bool:
        if not isinstance(answer, str) or len(answer) > MAX_TEXT:
            return False
        try:
            config = parse_config(answer)
        except Exception:  # untrusted text: whatever the parser meets in it, it is not right
            return False
        return _head_is_right(config) and _way(config, len(steps)) == steps

    return right


def _head_is_right(config: pb.ModelConfig) -> bool:
    """Say whether name, platform, batching and the ensemble's own tensors are as given."""
    expected = pb.ModelConfig(name="chain", platform="ensemble")
    expected.input.add(name="x", data_type=pb.TYPE_FP32, dims=[-1])
    expected.output.add(name="y", data_type=pb.TYPE_FP32, dims=[-1])
    head = pb.ModelConfig()
    head.CopyFrom(config)
    head.ClearField("ensemble_scheduling")
    return bool(head == expected)


def _way(config: pb.ModelConfig, count: int) -> list[Step] | None:
    """Return the steps from `x` to `y`; None where a tensor has two makers, or the way ends."""
    maps = config.ensemble_scheduling.step
    made = [value for step in maps for value in step.output_map.values()]
    if len(maps) != count or len(made) != len(set(made)) or "x" in made:
        return None
    way: list[Step] = []
    tensor = "x"
    while tensor != "y":
        takers = [step for step in maps if tensor in step.input_map.values()]
        if len(way) == count or len(takers) != 1:
            return None
        (step,) = takers
        if len(step.input_map) != 1 or len(step.output_map) != 1:
            return None
        ((takes, _),), ((gives, tensor),) = step.input_map.items(), step.output_map.items()
        way.append((step.model_name, takes, gives))
    return way
