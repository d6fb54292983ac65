"""Hidden cases for the exercises of notebooks 05 and 06: configurations, and a running server."""

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from labkit.data import CLASSES
from labkit.grading.exercises.case import Case, Oracle, array, close, equals, generator
from labkit.grading.exercises.models import (
    LOGIT_TOLERANCE,
    draw_images,
    linear_logits,
    linear_network,
)
from labkit.repository import VARIANTS, parse_config, to_config, to_text

MAX_TEXT = 65_536  # characters of a config.pbtxt; a real one has some 600


def repair_cases(seed: int) -> list[Case]:
    """`repair(text, shapes)`: dims and `max_batch_size` as the file has its axes, the rest kept."""
    rng = generator(seed, "ex-05-repair")
    spec = VARIANTS["cifar10_onnx"]
    shape, logits = [3, 32, 32], [len(CLASSES)]

    def case(
        label: str, right: pb.ModelConfig, shapes: dict[str, list[Any]], **mistakes: Any
    ) -> Case:
        """Spoil a right configuration: other dims, and other settings where they are given."""
        mistaken = pb.ModelConfig()
        mistaken.CopyFrom(right)
        mistaken.input[0].dims[:] = mistakes.get("inputs", [1, *shape])
        mistaken.output[0].dims[:] = mistakes.get("outputs", [1, *logits])
        if "max_batch_size" in mistakes:
            mistaken.max_batch_size = mistakes["max_batch_size"]
            mistaken.dynamic_batching.SetInParent()
        return Case(label, [to_text(mistaken), shapes], _same_config(right))

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


def _same_config(right: pb.ModelConfig) -> Oracle:
    def oracle(answer: Any) -> bool:
        if not isinstance(answer, str) or len(answer) > MAX_TEXT:
            return False
        try:
            return bool(parse_config(answer) == right)
        except Exception:  # untrusted text: whatever the parser meets in it, it is not right
            return False

    return oracle


def names_cases(seed: int) -> list[Case]:
    """`argument_positions(names, arguments)`: Triton's three rules for TorchScript's inputs."""
    rng = generator(seed, "ex-05-names")
    words = [str(word) for word in rng.permutation(["image", "mask", "scale", "text", "state"])]

    def shuffled(count: int) -> list[int]:
        order = list(range(count))
        while order == sorted(order):
            order = [int(place) for place in rng.permutation(count)]
        return order

    def case(label: str, names: list[str], positions: list[int]) -> Case:
        return Case(label, [names, words[: len(names)]], equals(positions))

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


def body_cases(seed: int) -> list[Case]:
    """`binary_body(batch)`: the request in KServe's binary tensor data extension, and its split."""
    rng = generator(seed, "ex-06-body")

    def case(label: str, count: int) -> Case:
        batch = draw_images(rng, count)
        return Case(label, [array(batch)], _same_request(batch))

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
        try:
            text, length = answer
            body = base64.b64decode(text, validate=True)
            head = json.loads(body[:length])
            [tensor] = head["inputs"]
            size = tensor["parameters"]["binary_data_size"]
            said = (tensor["name"], tensor["shape"], tensor["datatype"], size)
            binary = [output["parameters"]["binary_data"] for output in head["outputs"]
                      if output["name"] == "logits"]  # fmt: skip
        except Exception:  # untrusted: whatever is met in it, it is not right
            return False
        return said == described and binary == [True] and body[length:] == data

    return oracle


def served_network(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the network that the sandbox's server has as `cifar10_onnx`."""
    return linear_network(generator(seed, "served network"))


def split_cases(seed: int) -> list[Case]:
    """`infer_many(images, limit)`: all logits, in order, no request above the limit."""
    rng = generator(seed, "ex-06-split")
    weight, bias = served_network(seed)

    def case(label: str, count: int, limit: int) -> Case:
        images = draw_images(rng, count)
        logits = close(linear_logits(images, weight, bias), 0, LOGIT_TOLERANCE)
        return Case(label, [array(images), limit], _all_asked(logits, count, limit))

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
        if not isinstance(answer, dict) or not logits(answer.get("value")):
            return False
        sizes = answer.get("requests")  # images in each request
        if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
            return False
        return sum(sizes) >= count and max(sizes) <= limit

    return right
