"""What starting a server costs: seconds until all models are ready, and memory, on each runtime.

Servers with native backends and with stand-ins take turns, each with all variants of a run. Memory
is the proportional set size (PSS: a page that n processes share counts 1/n to each) of the server
and of everything that it started, after each model has answered once.

    python benchmarks/start.py [--repository runs/smoke/model_repository] [--rounds 7]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from serve import machine, warn_if_busy

from labkit.client import LabClient
from labkit.operate.processes import family
from labkit.repository import VARIANTS
from labkit.server import TritonServer
from labkit.server.native.built import built_backends
from labkit.workspace import project_root

MIB = 2**20
TARGET = 0.5  # of the stand-ins' time


def measure(repository: Path, models: list[str], runtime: str) -> tuple[float, float, int]:
    """Return seconds until a server is ready, its memory in MiB, and its processes."""
    image = np.zeros((1, 3, 32, 32), np.float32)
    begin = time.perf_counter()
    with TritonServer(repository, models=models, runtime=runtime) as server:
        seconds = time.perf_counter() - begin
        with LabClient(server.http) as client:
            for model in models:
                client.infer(model, image)
        assert server.pid is not None
        processes = family(server.pid)
        pss = sum(process.memory_full_info().pss for process in processes)
        return seconds, pss / MIB, len(processes)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repository", type=Path, help="of a run; else the newest one's")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    runs = sorted(project_root().glob("runs/*/model_repository"), key=lambda p: p.stat().st_mtime)
    repository = args.repository or (runs[-1] if runs else None)
    if repository is None:
        raise SystemExit("no run has models: make lab PROFILE=smoke, or name a --repository")
    models = [name for name in VARIANTS if any(repository.glob(f"{name}/1/model.*"))]
    if not built_backends():
        raise SystemExit("the native backends are not built: labkit triton build")
    warn_if_busy()
    found: dict[str, list[tuple[float, float, int]]] = {"native": [], "stand-in": []}
    for number in range(args.rounds):
        for runtime, values in found.items():
            values.append(measure(repository, models, runtime))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    print(f"\n{len(models)} models{'seconds':>13}{'min–max':>14}{'PSS MiB':>11}{'processes':>11}")
    for runtime, values in found.items():
        seconds, memory, processes = (list(column) for column in zip(*values, strict=True))
        spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
        line = f"{runtime:10}{statistics.median(seconds):11.2f}{spread:>14}"
        print(f"{line}{statistics.median(memory):11,.0f}{statistics.median(processes):11.0f}")
    ratios = [a[0] / b[0] for a, b in zip(found["native"], found["stand-in"], strict=True)]
    ratio = statistics.median(ratios)
    reached = ratio <= TARGET
    print(
        f"\nnative over stand-in, round by round: {ratio:.2f} "
        f"({min(ratios):.2f}–{max(ratios):.2f}), target ≤ {TARGET} "
        f"{'reached' if reached else 'MISSED'}; n = {args.rounds}\n{machine()}"
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
