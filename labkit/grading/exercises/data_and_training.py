"""Hidden cases for the exercises of notebooks 01, 02 and 04: arrays in, numbers out."""

import numpy as np

from labkit.grading.exercises.case import Case, array, close, each, generator

STATISTICS_TOLERANCE = 2e-3  # as in the notebook; both definitions of a deviation lie within it


def leak_cases(seed: int) -> list[Case]:
    """`leaked(first, second)`: how many indices are in both."""
    rng = generator(seed, "ex-01-leak")
    pool = [int(index) for index in rng.permutation(50_000)]
    same, twice = pool[:12], pool[20:24]

    def case(label: str, first: list[int], second: list[int]) -> Case:
        return Case(label, [first, second], close(len({*first}.intersection(second))))

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


def statistics_cases(seed: int) -> list[Case]:
    """`channel_statistics(pixels)`: mean and standard deviation per channel, both (3,)."""
    rng = generator(seed, "ex-01-statistics")

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
        cases.append(Case(label, [array(images)], oracle))
    return cases


def learning_rate_cases(seed: int) -> list[Case]:
    """`learning_rate(progress, warmup)`: from 0.2 up to 1, then down to 0."""
    rng = generator(seed, "ex-02-learning-rate")
    short, long = float(rng.uniform(0.05, 0.2)), float(rng.uniform(0.4, 0.7))
    early, late = float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))

    def case(label: str, progress: float, warmup: float) -> Case:
        up = 0.2 + 0.8 * progress / warmup if warmup else 1.0
        down = (1 - progress) / (1 - warmup) if warmup < 1 else 1.0
        return Case(label, [progress, warmup], close(up if progress < warmup else down, 0, 1e-6))

    return [
        case("the training begins", 0.0, long),
        case("a short warm-up is under way", early * short, short),
        case("a long warm-up is under way", early * long, long),
        case("the warm-up has just ended", long, long),
        case("the rate goes down after a short warm-up", short + late * (1 - short), short),
        case("the rate goes down after a long warm-up", long + late * (1 - long), long),
        case("the training ends", 1.0, short),
        case("there is no warm-up (warmup is 0)", late, 0.0),
        case("the warm-up lasts to the end (warmup is 1)", early, 1.0),
    ]


def recalls_cases(seed: int) -> list[Case]:
    """`recalls(matrix)`: right answers over the images of each true class."""
    rng = generator(seed, "ex-02-recalls")

    def counts(high: int = 40) -> np.ndarray:
        return rng.integers(1, high, (10, 10)) + np.diag(rng.integers(100, 400, 10))

    unequal = counts() * rng.integers(1, 9, (10, 1))
    never, favourite = counts(), counts()
    missed = int(rng.integers(10))
    never[missed, missed] = 0
    favourite[:, int(rng.integers(10))] += 300
    matrices = {
        "the classes have unequal numbers of images": unequal,
        "a class is never answered rightly": never,
        "one answer is given far too often": favourite,
        "most answers are right": counts(4),
    }
    return [
        Case(label, [array(matrix)], close(np.diag(matrix) / matrix.sum(axis=1), 0, 1e-6))
        for label, matrix in matrices.items()
    ]


def conv_cases(seed: int) -> list[Case]:
    """`integer_conv(x, weight, bias, …)`: the bytes of a quantized convolution."""
    rng = generator(seed, "ex-04-conv")

    def case(
        label: str,
        shape: tuple[int, ...] = (2, 3, 7, 6),
        kernel: tuple[int, ...] = (4, 3, 3, 3),
        y_scale: float = 0.08,
        zeros: tuple[int, int] = (120, 110),
        near: int = 120,  # how far x and the weights reach from their zeros
    ) -> Case:
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
        return Case(label, given, close(wanted, 0, 0.1))

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


def pairs_cases(seed: int) -> list[Case]:
    """`pair_sums(activations, weights)`: exact sums of neighbouring products."""
    rng = generator(seed, "ex-04-pairs")

    def case(label: str, activations: np.ndarray, weights: np.ndarray) -> Case:
        products = activations.astype(np.int64) * weights.astype(np.int64)
        wanted = products.reshape(*products.shape[:-1], -1, 2).sum(axis=-1)
        return Case(label, [array(activations), array(weights)], close(wanted, 0, 1e-3))

    def drawn(label: str, *shape: int, low: int = 0) -> Case:
        activations = rng.integers(low, 256, shape).astype(np.uint8)
        return case(label, activations, rng.integers(-127, 128, shape).astype(np.int8))

    lowest = np.full(6, 255, np.uint8), np.full(6, -128, np.int8)
    return [
        drawn("there is one row of pairs", 10),
        drawn("there is a single pair", 2, low=100),
        drawn("the arrays have two axes", 3, 8),
        drawn("the arrays have three axes", 2, 5, 6),
        case("every sum is as low as it can be", *lowest),
    ]
