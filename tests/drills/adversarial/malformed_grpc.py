"""Malformed gRPC requests from a seed: messages that do not fit the model, and mere bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from adversarial.malformed_http import DATATYPES, NO_NAMES, NO_TYPES, Subject, pick
from labkit.client import ModelCard

Rng = np.random.Generator
SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"


@dataclass(frozen=True)
class GrpcCase:
    """One malformed call.

    Attributes:
        kind: What is wrong with it, the same words for all of its kind.
        method: Full name of the remote method.
        message: The bytes to send as its request.
    """

    kind: str
    method: str
    message: bytes


def right(subject: Subject) -> pb.ModelInferRequest:
    """Return a request that fits the model; each kind spoils a copy of it."""
    first = subject.card.inputs[0]
    message = pb.ModelInferRequest(model_name=subject.card.name)
    message.inputs.add(name=first.name, datatype=first.datatype, shape=subject.shape)
    message.raw_input_contents.append(bytes(4 * subject.count))
    return message


def _raw_size(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message, size = right(subject), 4 * subject.count
    wrong = pick(rng, (0, size - int(rng.integers(1, size)), size + int(rng.integers(1, 50_000))))
    message.raw_input_contents[0] = rng.bytes(int(wrong))
    return message


def _raw_count(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    del message.raw_input_contents[
        :
    ]  # Triton ignores contents beyond the inputs, but not lacking ones
    for number in range(int(rng.integers(0, 5))):
        message.inputs.add(name=f"more_{number}", datatype="FP32", shape=[1])
    return message


def _both_contents(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    message.inputs[0].contents.fp32_contents.extend([0.0] * int(rng.integers(1, 5_000)))
    return message


def _typed_contents(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    del message.raw_input_contents[:]
    contents, n = message.inputs[0].contents, subject.count
    kind = int(rng.integers(4))
    if kind == 0:
        contents.int64_contents.extend([1] * n)
    elif kind == 1:
        contents.bytes_contents.extend([b"x"] * int(rng.integers(1, 100)))
    elif kind == 2:
        contents.fp32_contents.extend([0.0] * int(rng.integers(1, n)))
    else:
        contents.fp32_contents.extend([0.0] * (n + int(rng.integers(1, 500))))
    return message


def _datatype(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    message.inputs[0].datatype = pick(rng, (*DATATYPES, *NO_TYPES))
    return message


def _shape(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    shape = list(message.inputs[0].shape)
    axis = int(rng.integers(len(shape)))
    wrong = pick(
        rng,
        (
            [*shape[:axis], shape[axis] + int(rng.integers(1, 1_000)), *shape[axis + 1 :]],
            [*shape[:axis], -int(rng.integers(1, 2**40)), *shape[axis + 1 :]],
            [*shape[:axis], 0, *shape[axis + 1 :]],
            [*shape[:axis], int(pick(rng, (2**31, 2**62, 2**63 - 1))), *shape[axis + 1 :]],
            shape[:-1],
            [*shape, 1],
            [],
            [1] * int(rng.integers(10, 500)),
        ),
    )
    del message.inputs[0].shape[:]
    message.inputs[0].shape.extend(wrong)
    return message


def _too_many_rows(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    rows = max(subject.card.max_batch_size, 1) + int(rng.integers(1, 3))
    message = right(subject)
    message.inputs[0].shape[0] = rows
    message.raw_input_contents[0] = bytes(4 * rows * subject.count)
    return message


def _names(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    names = tuple(name for name in NO_NAMES if name)
    which = int(rng.integers(4))
    if which == 0:
        message.model_name = pick(rng, (*NO_NAMES, subject.card.name.upper()))
    elif which == 1:
        message.inputs[0].name = pick(rng, NO_NAMES)
    elif which == 2:
        message.outputs.add(name=pick(rng, names))
    else:
        message.model_version = pick(rng, ("99", "-1", "abc", "9" * 30))
    return message


def _twice(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    for _ in range(int(rng.integers(1, 20))):
        message.inputs.add().CopyFrom(message.inputs[0])
        message.raw_input_contents.append(message.raw_input_contents[0])
        message.inputs[-1].name += "again"
    return message


def _empty(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    return pick(
        rng,
        (
            pb.ModelInferRequest(),
            pb.ModelInferRequest(model_name=subject.card.name),
            pb.ModelInferRequest(model_name=subject.card.name, inputs=[{}]),
        ),
    )


def _shared_memory(subject: Subject, rng: Rng) -> pb.ModelInferRequest:
    message = right(subject)
    del message.raw_input_contents[:]
    parameters = message.inputs[0].parameters
    parameters["shared_memory_region"].string_param = pick(rng, ("nobody", "../x", "x" * 500))
    parameters["shared_memory_byte_size"].int64_param = int(rng.integers(-(2**40), 2**40))
    return message


Maker = Callable[[Subject, Rng], pb.ModelInferRequest]
KINDS: dict[str, Maker] = {
    "raw bytes: too few or too many": _raw_size,
    "raw contents: a wrong number of them": _raw_count,
    "raw and typed contents at once": _both_contents,
    "typed contents that do not fit": _typed_contents,
    "data type": _datatype,
    "shape": _shape,
    "more rows than max_batch_size": _too_many_rows,
    "names and versions": _names,
    "inputs that the model lacks": _twice,
    "nothing in it": _empty,
    "shared memory that nobody registered": _shared_memory,
}
NO_MESSAGE = "bytes that are no message"
NO_METHOD = "a method that does not exist"


def grpc_cases(card: ModelCard, count: int, seed: int = 0) -> Iterator[GrpcCase]:
    """Yield malformed calls, all kinds in turn, the same ones for the same seed."""
    rng, subject = np.random.default_rng(seed), Subject(card)
    kinds = [*KINDS, NO_MESSAGE, NO_METHOD]
    for index in range(count):
        kind = kinds[index % len(kinds)]
        if kind == NO_MESSAGE:
            # Field 1 is text of a length that goes beyond the end: no parser takes it.
            noise = b"\x0a\xff\x7f" + rng.bytes(int(rng.integers(0, 300)))
            yield GrpcCase(kind, INFER, noise)
        elif kind == NO_METHOD:
            method = pick(rng, ("ModelInferr", "Shutdown", "modelinfer", "x" * 200))
            yield GrpcCase(kind, SERVICE + method, right(subject).SerializeToString())
        else:
            yield GrpcCase(kind, INFER, KINDS[kind](subject, rng).SerializeToString())
