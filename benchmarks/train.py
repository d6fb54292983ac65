"""How fast and how well notebook 02 trains: the cells of the notebook themselves, measured.

    python benchmarks/train.py                           a step, float32 against bfloat16
    python benchmarks/train.py --train standard          also trains to the end
    python benchmarks/train.py --out benchmarks/train.md     writes the tables there

The test set is read once in each training, when nothing can be chosen any more.

Speed is held against this machine's fastest matrix product in the same precision and on the same
threads. Precisions and products take turns, round after round, so that background load affects all
of them equally.
"""

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from labkit.compare import Spread
from labkit.data import CIFAR10, CLASSES, Images, load_cifar10, preprocess
from labkit.environment import cpu_name
from labkit.profiles import PROFILES, Profile, available_cores
from labkit.workspace import project_root

sys.path.append(str(project_root() / "tests"))
from lesson import run_cells

MATRIX_SIDE = 2048
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")  # make the libraries use fewer instructions
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BEFORE_THE_LOOP = ("build", "whitening", "batches", "ex-02-learning-rate", "optimizers")


def split(cifar: CIFAR10, seed: int) -> tuple[dict[str, Images], dict[str, list[float]]]:
    """Split the images and compute their statistics as notebook 01 does."""
    given = {"np": np, "CLASSES": CLASSES, "cifar": cifar, "settings": SimpleNamespace(seed=seed)}
    with contextlib.redirect_stdout(sys.stderr):
        page = run_cells("01_data", "splits", "ex-01-statistics", **given)
    parts = {name: cifar.train.take(np.asarray(part)) for name, part in page.splits.items()}
    mean, std = page.channel_statistics(preprocess(parts["train"].pixels))
    return parts, {"mean": mean.tolist(), "std": std.tolist()}


class Lesson:
    """Notebook 02 up to its loop, on given images.

    Args:
        profile: Chooses the recipe, the seed and the threads.
        precision: `fp32` or `bf16`.
        parts: Images of the training and the validation split.
        constants: Mean and standard deviation of the training split.
        folder: Where the notebook keeps its state.
    """

    def __init__(
        self,
        profile: Profile,
        precision: str,
        parts: dict[str, Images],
        constants: dict[str, list[float]],
        folder: Path,
    ) -> None:
        page = run_cells("02_train", "imports", "network", "recipe", settings=profile)
        training = parts["train"].take(slice(profile.train_images))
        self.recipe = replace(page.recipe, precision=precision)
        given = vars(page) | {
            "recipe": self.recipe,
            "training": training,
            "validation": parts["validation"],
            "statistics": constants,
            "count": len(training.labels),
            "steps": len(training.labels) // self.recipe.batch_size,
            "lab": SimpleNamespace(path=lambda name: folder / name),
        }
        cells = (*BEFORE_THE_LOOP, "evaluate", "train-epoch", "epochs")
        self.page = run_cells("02_train", *cells, **given)
        self.images = self.page.steps * self.recipe.batch_size  # of an epoch

    def images_per_s(self, epoch: int) -> float:
        """Train for an epoch and return its speed."""
        started = time.perf_counter()
        self.page.train_epoch(epoch)
        return self.images / (time.perf_counter() - started)

    def flop_per_image(self, epoch: int) -> float:
        """Count the operations of an epoch: forward, backward, and the optimizer's products."""
        with FlopCounterMode(display=False) as counter:
            self.page.train_epoch(epoch)
        return counter.get_total_flops() / self.images


def matmul_flops(precision: str, seconds: float = 0.5) -> float:
    """Return the best rate of a matrix product, in operations per second."""
    left, right = torch.rand(2, MATRIX_SIDE, MATRIX_SIDE).to(TYPES[precision])
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX_SIDE**3 / best


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def speed_table(profile: Profile, rounds: int) -> str:
    """Measure both precisions at the smallest and at the full image size, in turn."""
    few = replace(profile, name="standard", train_images=4 * 500)  # four steps a turn
    parts, constants = split(load_cifar10(), profile.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lessons = {p: Lesson(few, p, parts, constants, Path(folder)) for p in TYPES}
        for epoch in (0, lessons["fp32"].recipe.epochs - 1):
            flop = {p: lesson.flop_per_image(epoch) for p, lesson in lessons.items()}  # warms up
            speeds: dict[str, list[float]] = {p: [] for p in TYPES}
            shares: dict[str, list[float]] = {p: [] for p in TYPES}
            for _ in range(rounds):
                for precision, lesson in lessons.items():
                    peak = matmul_flops(precision)
                    speed = lesson.images_per_s(epoch)
                    speeds[precision].append(speed)
                    shares[precision].append(speed * flop[precision] / peak)
            for p, lesson in lessons.items():
                ratios = [one / base for one, base in zip(speeds[p], speeds["fp32"], strict=True)]
                rows.append(
                    [
                        f"{lesson.page.image_size(epoch)} px, {p}",
                        f"{flop[p] / 1e6:.0f}",
                        spread(speeds[p], ".0f"),
                        str(Spread.of(ratios)),
                        str(Spread.of(shares[p])),
                    ]
                )
    head = ["images", "MFLOP per image", "images/s", "against fp32", "share of matmul peak"]
    return table(f"A step on {profile.threads} threads", head, rows)


def spread(values: Sequence[float], form: str) -> str:
    """Return median and range, such as `992 (980 to 1,001, n = 3)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}}, n = {len(values)})"


def training_table(profile: Profile, precisions: Sequence[str], seeds: int) -> str:
    """Train to the end, once for each seed and precision in turn."""
    cifar = load_cifar10()
    results: dict[str, list[tuple[float, float, float, float]]] = {p: [] for p in precisions}
    for seed in range(seeds):
        parts, constants = split(cifar, profile.seed)
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                chosen = replace(profile, seed=seed)
                lesson = Lesson(chosen, precision, parts, constants, Path(folder))
                started = time.perf_counter()
                with contextlib.redirect_stdout(sys.stderr):
                    run_cells("02_train", "loop", **vars(lesson.page))
                total = time.perf_counter() - started
                history = lesson.page.epochs.history
                seconds = sum(record.seconds for record in history)
                test = lesson.page.evaluate(lesson.page.model, cifar.test)
                validation = history[-1].validation_accuracy
                results[precision].append((seconds, total, 100 * validation, 100 * test))
    forms = (".0f", ".0f", ".2f", ".2f")
    rows = [
        [p, *(spread([run[i] for run in runs], form) for i, form in enumerate(forms))]
        for p, runs in results.items()
    ]
    head = ["precision", "training (s)", "with validation (s)", "validation (%)", "test (%)"]
    return table(f"Profile {profile.name}, to the end", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each precision")
    parser.add_argument("--train", choices=sorted(PROFILES), help="train this profile to its end")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, with seeds 0, 1, …")
    parser.add_argument("--precision", nargs="*", choices=sorted(TYPES), default=["bf16"])
    parser.add_argument("--threads", type=int, help="default: the profile's")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    profile = PROFILES[options.train or "standard"]
    profile = replace(profile, threads=options.threads or profile.threads)
    texts = [
        "# Training\n",
        f"{cpu_name()}, {available_cores()} cores, {torch.backends.cpu.get_cpu_capability()}; "
        f"torch {torch.__version__}, Python {platform.python_version()}. Medians, in brackets the "
        "smallest and the largest value.\n",
        *(f"Limited by `{name}={os.environ[name]}`.\n" for name in LIMITS if name in os.environ),
        speed_table(profile, options.rounds),
    ]
    if options.train:
        texts.append(training_table(profile, options.precision, options.seeds))
    print("\n".join(texts))
    if options.out:
        options.out.write_text("\n".join(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
