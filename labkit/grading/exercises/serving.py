"""Hidden cases of notebooks 05, 06 and 10: configurations, requests, and an ensemble."""

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator
from tritonclient.grpc import model_config_pb2 as pb

from labkit.data import CLASSES
from labkit.grading.exercises.case import HiddenCase, Oracle, array, close, each, equals, tuple_of
from labkit.grading.exercises.models import (
    LOGIT_TOLERANCE,
    draw_images,
    linear_logits,
    linear_network,
)
from labkit.repository import VARIANTS, parse_config, to_config, to_text

MAX_TEXT = 65_536  # characters of a config.pbtxt; a real one has some 600
LEAST_SIDE = 8  # pixels; below, a request is refused
REFUSED = "400"  # what the notebook's client returns for INVALID_ARG
Step = tuple[str, str, str]  # model, its input, its output


def repair_cases(rng: Generator) -> list[HiddenCase]:
    """`repair(text, shapes)`: dims and `max_batch_size` as the file has its axes, the rest kept."""
    spec = VARIANTS["cifar10_onnx"]
    shape, logits = [3, 32, 32], [len(CLASSES)]

    def case(
        label: str, right: pb.ModelConfig, shapes: dict[str, list[Any]], **mistakes: Any
    ) -> HiddenCase:
        """Spoil a right configuration: other dims, and other settings where they are given."""
        mistaken = pb.ModelConfig()
        mistaken.CopyFrom(right)
        mistaken.input[0].dims[:] = mistakes.get("inputs", [1, *shape])
        mistaken.output[0].dims[:] = mistakes.get("outputs", [1, *logits])
        if "max_batch_size" in mistakes:
            mistaken.max_batch_size = mistakes["max_batch_size"]
            mistaken.dynamic_batching.SetInParent()
        return HiddenCase(
            label, [to_text(mistaken), shapes], lambda answer: _config(answer) == right
        )

    def sized(**settings: Any) -> pb.ModelConfig:
        return to_config(replace(spec, **settings))

    some, fixed = int(rng.integers(3, 9)), int(rng.integers(2, 17))
    free: dict[str, list[Any]] = {"input": ["batch", *shape], "logits": ["batch", *logits]}
    unbatched = sized(max_batch_size=0, dynamic_batching=False)
    alone, sizes = sized(max_batch_size=0, dynamic_batching=False), sized(instances=some)
    alone.input[0].dims[:], alone.output[0].dims[:] = [fixed, *shape], [fixed, *logits]
    half_free: dict[str, list[Any]] = {"input": ["N", *shape], "logits": [fixed, *logits]}
    half = sized(max_batch_size=0, dynamic_batching=False)
    half.output[0].dims[:] = [fixed, *logits]
    sizes.input[0].dims[:] = [3, -1, -1]
    any_size: dict[str, list[Any]] = {"input": ["n", 3, "h", "w"], "logits": ["n", *logits]}
    return [
        case("the batch is among the dims", sized(instances=some), free),
        case("the channels come last", sized(threads=some), free, inputs=[32, 32, 3]),
        case("max_batch_size is 0, and the dims lack an axis", unbatched, free, inputs=shape),
        case("the file's batch axis is fixed", alone,
             {"input": [fixed, *shape], "logits": [fixed, *logits]}, max_batch_size=8 * some),
        case("only one tensor's batch axis is fixed", half, half_free, max_batch_size=some),
        case("height and width are free", sizes, any_size, inputs=[1, 3, 224, 224]),
    ]  # fmt: skip


def _config(answer: Any) -> pb.ModelConfig:
    """Parse a config.pbtxt that a student's function has written.

    Raises:
        ValueError: it is far too long, which would take a parser long.
        RepositoryError: it is none.
    """
    if len(answer) > MAX_TEXT:
        raise ValueError(f"got {len(answer)} characters")
    return parse_config(answer)


def names_cases(rng: Generator) -> list[HiddenCase]:
    """`argument_positions(names, arguments)`: Triton's three rules for TorchScript's inputs."""
    words = [str(word) for word in rng.permutation(["image", "mask", "scale", "text", "state"])]

    def shuffled(count: int) -> list[int]:
        order = list(range(count))
        while order == sorted(order):
            order = [int(place) for place in rng.permutation(count)]
        return order

    def case(label: str, names: list[str], positions: list[int]) -> HiddenCase:
        return HiddenCase(label, [names, words[: len(names)]], equals(positions))

    three, four, five = shuffled(3), shuffled(4), shuffled(5)
    mixed = [words[place] for place in three[:2]]
    return [
        case("all names are arguments", [words[place] for place in four], four),
        case("all names have an index", [f"INPUT__{place}" for place in five], five),
        case("the indices follow different words", [f"{words[p]}__{p}" for p in three], three),
        case("one name of three is no argument", [*mixed, "other__0"], [0, 1, 2]),
        case("no name says anything", ["a", "b", "c", "d"], [0, 1, 2, 3]),
        case("one underscore is no index", [f"x_{place}" for place in three], [0, 1, 2]),
    ]


def body_cases(rng: Generator) -> list[HiddenCase]:
    """`binary_body(batch)`: the request in KServe's binary tensor data extension, and its split."""

    def case(label: str, count: int) -> HiddenCase:
        batch = draw_images(rng, count)
        return HiddenCase(label, [array(batch)], _same_request(batch))

    few = int(rng.integers(2, 7))
    return [
        case("there is one image", 1),
        case("there are a few images", few),
        case("there are so many images that the lengths have more digits", few + 9),
    ]


def _same_request(batch: np.ndarray) -> Oracle:
    """Accept a body that says what `batch` is, asks for binary logits, and holds its bytes."""
    data = batch.tobytes()
    described = ("input", list(batch.shape), "FP32", len(data))

    def oracle(answer: Any) -> bool:
        text, length = answer
        body = base64.b64decode(text, validate=True)
        head = json.loads(body[:length])
        [tensor] = head["inputs"]
        size = tensor["parameters"]["binary_data_size"]
        said = (tensor["name"], tensor["shape"], tensor["datatype"], size)
        binary = [output["parameters"]["binary_data"] for output in head["outputs"]
                  if output["name"] == "logits"]  # fmt: skip
        return said == described and binary == [True] and body[length:] == data

    return oracle


def split_cases(rng: Generator) -> list[HiddenCase]:
    """`infer_many(images, limit)`: all logits, in order, no request above the limit."""
    weight, bias = linear_network(rng)  # the first that is drawn: the server's, see `answers`

    def case(label: str, count: int, limit: int) -> HiddenCase:
        images = draw_images(rng, count)
        logits = close(linear_logits(images, weight, bias), 0, LOGIT_TOLERANCE)
        return HiddenCase(label, [array(images), limit], _all_asked(logits, count, limit))

    small = int(rng.integers(7, 30))
    return [
        case("there is one image", 1, 64),
        case("there are as many images as the limit", 64, 64),
        case("there is one image more than the limit", 65, 64),
        case("the last part is shorter", 150, 64),
        case("the limit is small", 3, 2),
        case("the limit is not 64", 150, small),
    ]


def _all_asked(logits: Oracle, count: int, limit: int) -> Oracle:
    """Accept the logits, and by the server's own counters the requests that gave them."""

    def right(answer: Any) -> bool:
        sizes = answer["requests"]  # images in each request
        return logits(answer["value"]) and sum(sizes) >= count and max(sizes) <= limit

    return right


def execute_cases(rng: Generator) -> list[HiddenCase]:
    """`channel_means(batches)`: an answer or a status for each, however the server joins them."""

    def batch(count: int, height: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    def side() -> int:
        return int(rng.integers(LEAST_SIDE + 1, 48))

    def good(count: int = 1) -> np.ndarray:
        return batch(count, side(), side())

    def case(label: str, *batches: np.ndarray) -> HiddenCase:
        return HiddenCase(label, [[array(one) for one in batches]], each(*map(_means, batches)))

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


def chain_cases(rng: Generator) -> list[HiddenCase]:
    """`chain(steps)`: the text of an ensemble in which each step takes what the last one gave."""
    names = iter(rng.permutation([f"{a}{b}" for a in "klmnpqrst" for b in "0123456789"]).tolist())

    def model() -> Step:
        return f"model_{next(names)}", f"in_{next(names)}", f"out_{next(names)}"

    def case(label: str, *steps: Step) -> HiddenCase:
        return HiddenCase(label, [[tuple_of(*step) for step in steps]], _leads_through(list(steps)))

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
        config = _config(answer)
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
