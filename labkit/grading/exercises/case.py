"""A hidden case: what a student's function is given, and how its answer is held against the truth.

Answers come out of a sandbox as JSON that a student's code has had a hand in. Nothing here trusts
their type, shape or size: what is not the right answer is a wrong one, and never an error.
"""

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Oracle = Callable[[Any], bool]

MAX_MAGNITUDE = 1e12  # no exercise has an answer near it


@dataclass(frozen=True)
class HiddenCase:
    """One call of a student's function, and its oracle.

    Attributes:
        label: Completes "wrong where …" for the student, without the answer.
        arguments: JSON-able; `array` and `tuple_of` say how arrays and tuples are written.
        oracle: Whether an answer is right; may raise anything where it is none.
        probe: What is asked of a file that the call writes, JSON-able; None: the call's value is
            the answer.
    """

    label: str
    arguments: list[Any]
    oracle: Oracle
    probe: Any = None

    def right(self, answer: Any) -> bool:
        """Say whether an answer is right; what an oracle stumbles over is not."""
        try:
            return bool(self.oracle(answer))
        except Exception:
            return False


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the random numbers of one exercise: equal for equal seeds, unlike any other's."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def array(values: np.ndarray) -> dict[str, Any]:
    """Write an array into a request, exactly: dtype, shape and its bytes."""
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"$array": data, "dtype": str(values.dtype), "shape": list(values.shape)}


def tuple_of(*values: Any) -> dict[str, Any]:
    """Write a tuple into a request: JSON knows lists only."""
    return {"$tuple": list(values)}


def numbers(answer: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return an answer as float64 of the given shape; None where it is anything else.

    Text, truth values, gaps (NaN is sent as null), ragged lists and huge numbers are not numbers
    here. Checked before numpy sees it: numpy would pad a list of texts to the longest one.
    """
    values = [answer]
    for length in shape:
        if any(not isinstance(part, list) or len(part) != length for part in values):
            return None
        values = [entry for part in values for entry in part]
    if any(type(value) not in (int, float) or not abs(value) < MAX_MAGNITUDE for value in values):
        return None
    return np.array(values, dtype=np.float64).reshape(shape)


def close(expected: Any, relative: float = 1e-5, absolute: float = 1e-7) -> Oracle:
    """Accept numbers of the same shape that are near enough."""
    wanted = np.asarray(expected, dtype=np.float64)

    def right(answer: Any) -> bool:
        values = numbers(answer, wanted.shape)
        return values is not None and np.allclose(values, wanted, relative, absolute)

    return right


def each(*oracles: Oracle) -> Oracle:
    """Accept a list or tuple with one right answer for each oracle, in order."""

    def right(answer: Any) -> bool:
        if not isinstance(answer, list) or len(answer) != len(oracles):
            return False
        return all(oracle(part) for oracle, part in zip(oracles, answer, strict=True))

    return right


def equals(expected: Any) -> Oracle:
    """Accept what equals a text, None, or a list."""

    def right(answer: Any) -> bool:
        return type(answer) is type(expected) and bool(answer == expected)

    return right
