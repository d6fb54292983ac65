"""Train from nothing and say how well and how fast: `python benchmarks/train.py`.

The network is trained exactly as in notebook 02, on the same split, without leaving a file. Speed
is held against the fastest float32 matrix multiplication of this machine, measured before and
after the training. The test set is read once, when nothing can be chosen any more.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from labkit.data import Images, load_cifar10, make_splits
from labkit.environment import cpu_name
from labkit.model import CifarNet, layer_table, training_flops
from labkit.profiles import PROFILES
from labkit.train import TrainConfig, Trainer, build_model, evaluate

MATRIX_SIDE = 2048


def matmul_peak_gflops(threads: int, seconds: float = 1.0) -> float:
    """Return the best rate of a float32 matrix product, in 10⁹ operations per second."""
    torch.set_num_threads(threads)
    left, right = torch.rand(2, MATRIX_SIDE, MATRIX_SIDE)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX_SIDE**3 / best / 1e9


@dataclass(frozen=True)
class Result:
    """One training, measured."""

    config: TrainConfig
    seconds: float  # of the loop alone, without validation
    validation_accuracy: float
    test_accuracy: float
    tflop: float
    images: int  # seen, over all epochs
    peak_gflops: float


def train(config: TrainConfig, training: Images, validation: Images, test: Images) -> Result:
    """Run the loop of notebook 02 and measure it."""
    model = build_model(config, training)
    trainer = Trainer(model, training, config)
    flop, images_seen = 0.0, 0
    peak = matmul_peak_gflops(config.threads)
    for epoch in trainer.remaining_epochs():
        for images, labels in trainer.batches(epoch):
            with trainer.autocast():
                logits = model(images)
            loss = trainer.loss(logits, labels)
            loss.backward()
            trainer.step(loss, logits)
            images_seen += len(labels)
        record = trainer.end_epoch(evaluate(model, validation))
        flop += record.seconds * record.images_per_second * training_flops(model, record.size)
        print(f"{record}  {record.images_per_second:6.0f} images/s", file=sys.stderr, flush=True)
    return Result(
        config,
        seconds=sum(record.seconds for record in trainer.history),
        validation_accuracy=trainer.history[-1].validation_accuracy,
        test_accuracy=evaluate(model, test),
        tflop=flop / 1e12,
        images=images_seen,
        peak_gflops=max(peak, matmul_peak_gflops(config.threads)),
    )


def rows(results: list[Result]) -> list[tuple[str, str]]:
    """Return the table's lines; with several trainings, mean ± standard deviation."""

    def over(values: list[float], form: str) -> str:
        if len(values) == 1:
            return format(values[0], form)
        return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"

    config = results[0].config
    table = layer_table(CifarNet(config.widths))
    gflops = [1e3 * result.tflop / result.seconds for result in results]
    shares = [100 * g / result.peak_gflops for g, result in zip(gflops, results, strict=True)]
    return [
        ("trainings (n)", str(len(results))),
        ("epochs, batch, precision", f"{config.epochs}, {config.batch_size}, {config.precision}"),
        ("parameters", f"{sum(row.parameters for row in table):,}"),
        ("million MACs per 32×32 image", f"{sum(row.mega_macs for row in table):.1f}"),
        ("training time (s)", over([result.seconds for result in results], ".1f")),
        ("validation accuracy (%)", over([100 * r.validation_accuracy for r in results], ".2f")),
        ("test accuracy (%)", over([100 * result.test_accuracy for result in results], ".2f")),
        ("images/s", over([result.images / result.seconds for result in results], ".0f")),
        ("work done (TFLOP)", over([result.tflop for result in results], ".1f")),
        ("speed (GFLOP/s)", over(gflops, ".0f")),
        ("float32 matmul peak (GFLOP/s)", over([r.peak_gflops for r in results], ".0f")),
        ("share of that peak (%)", over(shares, ".0f")),
        ("threads / cores", f"{config.threads} / {psutil.cpu_count()}"),
        ("CPU", f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"),
        ("versions", f"torch {torch.__version__}, Python {platform.python_version()}"),
        ("load average before it began", f"{START_LOAD:.1f}"),
    ]


START_LOAD = psutil.getloadavg()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="standard", choices=sorted(PROFILES))
    parser.add_argument("--seeds", type=int, default=1, help="trainings, with seeds 0, 1, …")
    parser.add_argument("--threads", type=int, help="default: the profile's")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    profile = PROFILES[options.profile]
    cifar = load_cifar10()
    parts = {
        name: cifar.train.take(np.asarray(indices))
        for name, indices in make_splits(cifar.train.labels, seed=profile.seed).items()
    }
    config = TrainConfig.from_profile(profile)
    config = replace(config, threads=options.threads or config.threads)
    results = [
        train(replace(config, seed=seed), parts["train"], parts["validation"], cifar.test)
        for seed in range(options.seeds)
    ]
    lines = rows(results)
    table = Table("training", f"profile {profile.name}", title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(dict(lines), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
