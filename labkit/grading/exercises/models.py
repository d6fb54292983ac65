"""Hidden cases for the exercises of notebook 03: layers and exported files."""

import math
from typing import Any

import numpy as np

from labkit.grading.exercises.case import Case, Oracle, array, close, each, generator

CLASSES = 10
SHAPE = (3, 32, 32)
PIXELS = math.prod(SHAPE)
LOGIT_TOLERANCE = 1e-3  # float32 sums over 3,072 pixels, in another order


def linear_network(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the weight (10, 3072) and the bias (10,) of a network that is one matrix product."""
    weight = rng.standard_normal((CLASSES, PIXELS)).astype(np.float32) * np.float32(0.05)
    return weight, rng.standard_normal(CLASSES).astype(np.float32)


def linear_logits(images: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Compute the logits (N, 10) of images (N, 3, 32, 32), in float64."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return flat @ weight.astype(np.float64).T + bias


def draw_images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw images (count, 3, 32, 32), float32 in [0, 1]."""
    return rng.random((count, 3, 32, 32), dtype=np.float32)


def fold_cases(seed: int) -> list[Case]:
    """`fold(conv, norm)`: weight (O, I, h, w) and bias (O,) of one convolution for both."""
    rng = generator(seed, "ex-03-fold")

    def case(label: str, shape: tuple[int, ...], eps: float, **ranges: tuple[float, float]) -> Case:
        filters = rng.standard_normal(shape).astype(np.float32)
        usual = {"weight": (0.4, 1.8), "bias": (-1, 1), "running_mean": (-2, 2)}
        usual |= {"running_var": (0.3, 3), **ranges}
        norm = {
            name: rng.uniform(*ends, shape[0]).astype(np.float32) for name, ends in usual.items()
        }
        exact = {name: values.astype(np.float64) for name, values in norm.items()}
        scale = exact["weight"] / np.sqrt(exact["running_var"] + eps)
        oracle = each(
            close(filters * scale[:, None, None, None], 1e-3, 1e-4),
            close(exact["bias"] - exact["running_mean"] * scale, 1e-3, 1e-4),
        )
        arrays = {name: array(values) for name, values in norm.items()}
        return Case(label, [{"$conv": array(filters)}, {"$norm": arrays, "eps": eps}], oracle)

    return [
        case("the layers are ordinary", (6, 4, 3, 3), 1e-5),
        case("some scales of the norm are negative", (5, 3, 3, 3), 1e-5, weight=(-2, 2)),
        case("eps is not small against the variance", (4, 3, 3, 3), 0.5),
        case("the filters are 1 × 1", (7, 5, 1, 1), 1e-3),
        case("the variances are tiny", (4, 2, 2, 2), 1e-3, running_var=(1e-4, 1e-2)),
    ]


def bytes_cases(seed: int) -> list[Case]:
    """`export_for_bytes(model, path)`: an ONNX file from bytes to probabilities, of any batch."""
    rng = generator(seed, "ex-03-batch")

    def case(label: str, images: int, expect: str) -> Case:
        weight, bias = linear_network(rng)
        probe = rng.integers(0, 256, (images, *SHAPE), dtype=np.uint8)
        network = {"$linear": array(weight), "bias": array(bias)}
        logits = linear_logits(probe / 255, weight, bias)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        answers = _field("logits", close(raised / raised.sum(axis=1, keepdims=True), 0, 1e-4))
        oracle = {"names": _right_names, "axes": _right_axes}
        # A file that says the right names must also compute: text alone is not an export.
        right = _both(oracle[expect], answers) if expect in oracle else answers
        return Case(label, [network, {"$path": "model.onnx"}], right, array(probe))

    return [
        case("the names of the two tensors are read", 2, "names"),
        case("the name of axis 0 is read", 2, "axes"),
        case("one image is sent", 1, "answers"),
        case("7 images are sent", 7, "answers"),
        case("64 images are sent", 64, "answers"),
    ]


def _field(name: str, oracle: Oracle) -> Oracle:
    return lambda answer: isinstance(answer, dict) and oracle(answer.get(name))


def _both(first: Oracle, second: Oracle) -> Oracle:
    return lambda answer: first(answer) and second(answer)


def _right_names(answer: Any) -> bool:
    """Accept the right names of a file's tensors."""
    if not isinstance(answer, dict):
        return False
    return bool(answer.get("inputs") == ["pixels"] and answer.get("outputs") == ["probabilities"])


def _right_axes(answer: Any) -> bool:
    """Accept the right names of axis 0 of a file's tensors."""
    return isinstance(answer, dict) and bool(answer.get("axes") == ["batch", "batch"])
