"""Hidden cases for the exercises of notebooks 05 and 06: configurations, and a running server."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from labkit.data import CLASSES
from labkit.grading.exercises.case import Case, Judge, array, close, equals, generator
from labkit.grading.exercises.models import (
    LOGIT_TOLERANCE,
    draw_images,
    linear_logits,
    linear_network,
)
from labkit.repository import VARIANTS, parse_config, to_config, to_text

MAX_TEXT = 65_536  # characters of a config.pbtxt; a real one has some 600


def repair_cases(seed: int) -> list[Case]:
    """`repair(text)`: right dims for `cifar10_onnx`, and every other setting as it was."""
    rng = generator(seed, "ex-05-repair")
    spec = VARIANTS["cifar10_onnx"]

    def case(label: str, inputs: Sequence[int], outputs: Sequence[int], **settings: Any) -> Case:
        right = to_config(replace(spec, **settings))
        mistaken = pb.ModelConfig()
        mistaken.CopyFrom(right)
        mistaken.input[0].dims[:] = inputs
        mistaken.output[0].dims[:] = outputs
        return Case(label, [to_text(mistaken)], _same_config(right))

    some = int(rng.integers(3, 9))
    delay = int(rng.integers(100, 900))
    return [
        case("the channels come last", [32, 32, 3], [1000], instances=some),
        case("the batch is among the dims", [1, 3, 32, 32], [1, len(CLASSES)]),
        case("the image has one channel", [1, 32, 32], [100], max_batch_size=8 * some),
        case("the image is large", [3, 224, 224], [1000], max_queue_delay_us=delay, threads=some),
        case("the image is flat", [3072], [1], dynamic_batching=False, instances=some),
    ]


def _same_config(right: pb.ModelConfig) -> Judge:
    def judge(answer: Any) -> bool:
        if not isinstance(answer, str) or len(answer) > MAX_TEXT:
            return False
        try:
            return bool(parse_config(answer) == right)
        except Exception:  # untrusted text: whatever the parser meets in it, it is not right
            return False

    return judge


def cores_cases(seed: int) -> list[Case]:
    """`best_split(cores)`: every (instances, threads) with instances × threads = cores."""
    rng = generator(seed, "ex-05-split")

    def case(label: str, cores: int) -> Case:
        pairs = [[n, cores // n] for n in range(1, cores + 1) if not cores % n]
        return Case(label, [cores], equals(pairs))

    return [
        case("there is one core", 1),
        case("the number of cores is prime", int(rng.choice([5, 7, 11, 13, 17, 19]))),
        case("the number of cores is even", int(rng.choice([6, 10, 14, 18, 20, 22]))),
        case("the number of cores is a square", int(rng.choice([9, 16, 25, 36, 49]))),
        case("there are many cores", int(rng.choice([48, 60, 72, 96, 120]))),
    ]


def endpoint_cases(seed: int) -> list[Case]:
    """`endpoint(address)`: which of the three ports it is; the order is part of the secret."""
    rng = generator(seed, "ex-06-endpoint")
    labels = {"http": "HTTP", "grpc": "gRPC", "metrics": "metrics"}
    kinds = [str(kind) for kind in rng.permutation(list(labels))]
    return [
        Case(f"the port is that of {labels[kind]}", [{"$address": kind}], equals(kind))
        for kind in kinds
    ]


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


def _all_asked(logits: Judge, count: int, limit: int) -> Judge:
    """Judge the logits, and by the server's own counters the requests that gave them."""

    def right(answer: Any) -> bool:
        if not isinstance(answer, dict) or not logits(answer.get("value")):
            return False
        sizes = answer.get("requests")  # images in each request
        if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
            return False
        return sum(sizes) >= count and max(sizes) <= limit

    return right
