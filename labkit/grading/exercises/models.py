"""Hidden cases of notebooks 01 to 04: arrays, training, layers and exported files."""

import math
from typing import Any

import numpy as np
from numpy.random import Generator

from labkit.grading.exercises.case import HiddenCase, array, close, each

CLASSES = 10
SHAPE = (3, 32, 32)
PIXELS = math.prod(SHAPE)
LOGIT_TOLERANCE = 1e-3  # float32 sums over 3,072 pixels, in another order
STATISTICS_TOLERANCE = 2e-3  # as in the notebook; both definitions of a deviation lie within it


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


def leak_cases(rng: Generator) -> list[HiddenCase]:
    """`leaked(first, second)`: how many indices are in both."""
    pool = [int(index) for index in rng.permutation(50_000)]
    same, twice = pool[:12], pool[20:24]

    def case(label: str, first: list[int], second: list[int]) -> HiddenCase:
        return HiddenCase(label, [first, second], close(len({*first}.intersection(second))))

    shuffled = [int(index) for index in rng.permutation(same)]
    start = int(rng.integers(1_000, 1_900))
    return [
        case("two short lists share some indices", pool[:9], pool[4:14]),
        case("the lists are long", pool[:2_000], pool[start : start + 1_500]),
        case("both lists hold the same indices in another order", same, shuffled),
        case("a list has repeated indices", twice * 2 + pool[30:35], pool[33:40] + twice[:2] * 3),
        case("the lists share nothing", pool[100:120], pool[200:230]),
        case("a list is empty", pool[100:120], []),
    ]


def statistics_cases(rng: Generator) -> list[HiddenCase]:
    """`channel_statistics(pixels)`: mean and standard deviation per channel, both (3,)."""

    def pixels(count: int, low: float, high: float) -> np.ndarray:
        """Images whose channels and brightness differ, (count, 3, 32, 32)."""
        centre = (
            rng.uniform(low, high, (count, 1, 1, 1)) + np.array([0.0, 0.06, -0.08])[:, None, None]
        )
        noise = (
            rng.uniform(-0.1, 0.1, (count, 3, 32, 32)) * np.array([1.0, 0.6, 0.3])[:, None, None]
        )
        return np.clip(centre + noise, 0, 1).astype(np.float32)

    flat = pixels(6, 0.2, 0.8)
    flat[:, 1] = np.float32(0.25)
    sloped = pixels(8, 0.4, 0.6) * np.linspace(0, 1, 32, dtype=np.float32)  # dark on the left
    inputs = {
        "the images differ in brightness": pixels(16, 0.1, 0.9),
        "there is one image only": pixels(1, 0.3, 0.7),
        "one channel is the same everywhere": flat,
        "the images are darker on one side": sloped,
    }
    cases = []
    for label, images in inputs.items():
        exact = images.astype(np.float64)
        mean, deviation = exact.mean(axis=(0, 2, 3)), exact.std(axis=(0, 2, 3))
        oracle = each(*(close(v, 0, STATISTICS_TOLERANCE) for v in (mean, deviation)))
        cases.append(HiddenCase(label, [array(images)], oracle))
    return cases


def learning_rate_cases(rng: Generator) -> list[HiddenCase]:
    """`learning_rate(progress, warmup)`: from 0.2 up to 1, then down to 0."""
    short, long = float(rng.uniform(0.05, 0.2)), float(rng.uniform(0.4, 0.7))
    early, late = float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))

    def case(label: str, progress: float, warmup: float) -> HiddenCase:
        up = 0.2 + 0.8 * progress / warmup if warmup else 1.0
        down = (1 - progress) / (1 - warmup)
        return HiddenCase(
            label, [progress, warmup], close(up if progress < warmup else down, 0, 1e-6)
        )

    return [
        case("the training begins", 0.0, long),
        case("a short warm-up is under way", early * short, short),
        case("a long warm-up is under way", early * long, long),
        case("the warm-up has just ended", long, long),
        case("the rate goes down after a short warm-up", short + late * (1 - short), short),
        case("the rate goes down after a long warm-up", long + late * (1 - long), long),
        case("the training ends", 1.0, short),
        case("there is no warm-up (warmup is 0)", late, 0.0),
        case("the warm-up lasts nearly to the end", early, 0.99),
    ]


def calibration_cases(rng: Generator) -> list[HiddenCase]:
    """`calibration_error(confidence, right)`: the expected calibration error, ten bins."""

    def case(label: str, bins: list[int], chance: float) -> HiddenCase:
        """Confidences inside these bins, right as often as `chance` times the confidence."""
        places = rng.choice(bins, 60)
        confidence = (places + rng.uniform(0.1, 0.9, 60)) / 10
        return exact(label, confidence, rng.random(60) < chance * confidence)

    def exact(label: str, confidence: np.ndarray, right: np.ndarray) -> HiddenCase:
        error = 0.0
        for number in range(10):
            inside = np.minimum(np.floor(10 * confidence), 9) == number
            if inside.any():
                distance = abs(right[inside].mean() - confidence[inside].mean())
                error += inside.sum() / len(inside) * distance
        return HiddenCase(label, [array(confidence), array(right)], close(error, 0, 1e-6))

    certain = np.concatenate([np.ones(12), rng.uniform(0.91, 0.97, 12), rng.uniform(0.41, 0.47, 9)])
    opposite = np.repeat(rng.uniform([0.31, 0.81], [0.39, 0.89]), 20)
    return [
        case("every bin has answers", list(range(10)), 0.7),
        case("some bins are empty", [3, 6, 8], 0.7),
        case("the network is surer of itself than it is right", [7, 8, 9], 0.5),
        case("the network is right more often than it believes", [2, 3], 1.9),
        exact("the errors of two bins point in opposite directions", opposite, np.arange(40) < 20),
        exact("some confidences are 1", certain, rng.random(33) < 0.6),
    ]


def fold_cases(rng: Generator) -> list[HiddenCase]:
    """`fold(conv, norm)`: weight (O, I, h, w) and bias (O,) of one convolution for both."""

    def case(
        label: str, shape: tuple[int, ...], eps: float, **ranges: tuple[float, float]
    ) -> HiddenCase:
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
        return HiddenCase(label, [{"$conv": array(filters)}, {"$norm": arrays, "eps": eps}], oracle)

    return [
        case("the layers are ordinary", (6, 4, 3, 3), 1e-5),
        case("some scales of the norm are negative", (5, 3, 3, 3), 1e-5, weight=(-2, 2)),
        case("eps is not small against the variance", (4, 3, 3, 3), 0.5),
        case("the filters are 1 × 1", (7, 5, 1, 1), 1e-3),
        case("the variances are tiny", (4, 2, 2, 2), 1e-3, running_var=(1e-4, 1e-2)),
    ]


def bytes_cases(rng: Generator) -> list[HiddenCase]:
    """`export_for_bytes(model, path)`: an ONNX file from bytes to probabilities, of any batch."""

    def case(label: str, images: int, **told: list[str]) -> HiddenCase:
        """One call; a file that says the right names must also compute: text is no export."""
        weight, bias = linear_network(rng)
        probe = rng.integers(0, 256, (images, *SHAPE), dtype=np.uint8)
        network = {"$linear": array(weight), "bias": array(bias)}
        logits = linear_logits(probe / 255, weight, bias)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        near = close(raised / raised.sum(axis=1, keepdims=True), 0, 1e-4)

        def right(answer: Any) -> bool:
            names = {key: answer[key] for key in told}
            return names == told and near(answer["logits"])

        return HiddenCase(label, [network, {"$path": "model.onnx"}], right, array(probe))

    return [
        case("the names of the two tensors are read", 2,
             inputs=["pixels"], outputs=["probabilities"]),
        case("the name of axis 0 is read", 2, axes=["batch", "batch"]),
        case("one image is sent", 1),
        case("7 images are sent", 7),
        case("64 images are sent", 64),
    ]  # fmt: skip


def conv_cases(rng: Generator) -> list[HiddenCase]:
    """`integer_conv(x, weight, bias, …)`: the bytes of a quantized convolution."""

    def case(
        label: str,
        shape: tuple[int, ...] = (2, 3, 7, 6),
        kernel: tuple[int, ...] = (4, 3, 3, 3),
        y_scale: float = 0.08,
        zeros: tuple[int, int] = (120, 110),
        near: int = 120,  # how far x and the weights reach from their zeros
    ) -> HiddenCase:
        x_zero, y_zero = zeros
        low, high = max(0, x_zero - near), min(255, x_zero + near)
        x = rng.integers(low, high + 1, shape).astype(np.uint8)
        reach = min(near, 63)
        weight = rng.integers(-reach, reach + 1, kernel).astype(np.int8)
        bias = rng.integers(-20 * near, 20 * near, kernel[0]).astype(np.int32)
        # Powers of two: a multiplier in float32 and one in float64 then round the same.
        w_scale = 2.0 ** rng.integers(-8, -4, kernel[0])
        sums = _sums(x.astype(np.int64) - x_zero, weight.astype(np.int64)) + bias[:, None, None]
        exact = sums * (0.25 * w_scale / np.float32(y_scale))[:, None, None]
        wanted = np.clip(np.rint(exact) + y_zero, 0, 255)
        scales = array(w_scale.astype(np.float32))
        given = [array(x), array(weight), array(bias), 0.25, x_zero, scales, y_scale, y_zero]
        return HiddenCase(label, given, close(wanted, 0, 0.1))

    return [
        case("the layer is ordinary", y_scale=4.0),
        case("the kernel is 1 × 1", kernel=(5, 3, 1, 1), y_scale=1.0),
        case("the kernel is wider than high", kernel=(3, 3, 2, 4), y_scale=4.0),
        case("the zero points are far from the middle", zeros=(7, 250), y_scale=8.0),
        case("many values lie half-way", y_scale=2.0**-5, near=2),
        case("values lie beyond both ends", y_scale=2.0**-6),
    ]


def _sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolve (N, C, H, W) with (O, C, h, w), place by place."""
    height, width = weight.shape[2:]
    rows, columns = x.shape[2] - height + 1, x.shape[3] - width + 1
    result = np.zeros((len(x), len(weight), rows, columns), dtype=np.int64)
    for row in range(height):
        for column in range(width):
            part = x[:, :, row : row + rows, column : column + columns]
            result += np.einsum("nchw,oc->nohw", part, weight[:, :, row, column])
    return result


def broken_cases(rng: Generator) -> list[HiddenCase]:
    """`broken_layer(expected, found)`: where the signal-to-noise ratio falls most."""

    def case(label: str, ratios: list[float], sizes: list[float] | None = None) -> HiddenCase:
        """Layers with these ratios in dB, whose outputs are as large as `sizes`."""
        expected, found = [], []
        for ratio, size in zip(ratios, sizes or [1.0] * len(ratios), strict=True):
            shape = (3, *rng.integers(2, 5, 3))
            signal, noise = rng.normal(0, size, (2, *shape))
            power = np.square(signal).sum() / 10 ** ((ratio + rng.uniform(-0.3, 0.3)) / 10)
            noise *= np.sqrt(power / np.square(noise).sum())
            expected.append(array(signal.astype(np.float32)))
            found.append(array((signal + noise).astype(np.float32)))
        place = int(np.argmin(np.diff([30.0, *ratios])))
        return HiddenCase(label, [expected, found], close(place, 0, 0.1))

    return [
        case("an inner layer is broken", [27, 24, 9, 8, 7, 6]),
        case("the first layer is broken", [6, 7, 5, 4]),
        case("the last layer is broken", [28, 26, 25, 14]),
        case("later layers lose more, but little by little", [27, 14, 10, 6, 2]),
        case("the layers behind recover", [26, 22, 6, 13, 12]),
        case("the outputs of another layer are larger", [26, 24, 9, 8], [1, 300, 0.01, 30]),
        case("there are two layers", [27, 11]),
    ]
