"""What serving costs: images per second through Triton against ONNX Runtime in this process.

Three measurements take turns, several rounds long, so that a busy moment of the machine hits all:

1. in-process: one ONNX Runtime session, batches of 32;
2. batch 32: the same model behind Triton's onnxruntime stand-in, three requests in flight: one is
   computed, one waits in the server's queue, one is prepared by the client;
3. 16 clients: the same server, 16 concurrent clients that each send one image and wait for the
   answer; Triton's dynamic batching puts them together.

Session and server compute with the same number of threads. On two cores the default of one leaves
the other to Triton and the clients, for which in-process inference has no need. All clients live
in one asyncio process (`tritonclient.grpc.aio`, tensors in binary); each serializes every request
anew, as real clients do.

    python benchmarks/serve.py [--model model.onnx] [--threads 1] [--rounds 15] [--seconds 1.5]
"""

import argparse
import asyncio
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
from tritonclient.grpc import InferInput, InferRequestedOutput, aio

from labkit.environment import cpu_name
from labkit.profiles import available_cores
from labkit.server import TritonServer
from labkit.workspace import project_root

BATCH = 32
CLIENTS = 16
IN_FLIGHT = 3
BUSY_PERCENT = 10.0
MODEL = "bench"
TARGETS = {"served, batch 32": 0.9, f"served, {CLIENTS} clients × 1": 0.6}
CONFIG = """
backend: "onnxruntime"
max_batch_size: {batch}
input [{{ name: "input" data_type: TYPE_FP32 dims: [3, 32, 32] }}]
output [{{ name: "logits" data_type: TYPE_FP32 dims: [10] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}
"""


@dataclass
class Series:
    """Images per second of one subject, one value per round."""

    name: str
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The typical rate; one disturbed round does not move it."""
        return statistics.median(self.rates)

    def ratios(self, base: "Series") -> list[float]:
        """Return this series over another, round by round."""
        return [mine / theirs for mine, theirs in zip(self.rates, base.rates, strict=True)]


def in_process(path: Path, threads: int, images: np.ndarray, seconds: float) -> float:
    """Return images/s of a session of its own, which ends with its threads before the next turn."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    batches = itertools.cycle(np.split(images, len(images) // BATCH))
    for _ in range(5):
        session.run(None, {"input": next(batches)})
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        session.run(None, {"input": next(batches)})
        done += BATCH
    return done / spent


async def served(
    client: aio.InferenceServerClient,
    images: np.ndarray,
    batch: int,
    concurrency: int,
    seconds: float,
) -> float:
    """Return images/s of clients that each wait for their answer before they send again."""
    requests = np.split(images, len(images) // batch)
    outputs = [InferRequestedOutput("logits")]
    start = time.perf_counter()
    answered = 0

    async def loop(first: int) -> None:
        nonlocal answered
        for index in itertools.count(first, concurrency):
            tensor = InferInput("input", [batch, 3, 32, 32], "FP32")
            tensor.set_data_from_numpy(requests[index % len(requests)])
            result = await client.infer(MODEL, [tensor], outputs=outputs)
            logits = result.as_numpy("logits")
            if logits is None or logits.shape != (batch, 10):
                raise RuntimeError(f"got {logits}, expected logits of shape ({batch}, 10)")
            answered += batch
            if time.perf_counter() - start >= seconds:
                return

    await asyncio.gather(*(loop(first) for first in range(concurrency)))
    return answered / (time.perf_counter() - start)


async def check_answers(client: aio.InferenceServerClient, path: Path, images: np.ndarray) -> None:
    """Refuse to measure a server that answers anything but what the session answers."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    tensor = InferInput("input", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    result = await client.infer(MODEL, [tensor])
    np.testing.assert_allclose(
        result.as_numpy("logits"), session.run(None, {"input": images})[0], atol=1e-4
    )


async def measure(url: str, path: Path, args: argparse.Namespace) -> tuple[list[Series], float]:
    """Return the three series, and the mean batch that Triton made for the 16 clients."""
    images = np.random.default_rng(0).random((8 * BATCH, 3, 32, 32), dtype=np.float32)
    singles = f"served, {CLIENTS} clients × 1"
    client = aio.InferenceServerClient(url)
    turns: dict[str, Callable[[float], Awaitable[float]]] = {
        "in-process, batch 32": lambda seconds: asyncio.to_thread(
            in_process, path, args.threads, images, seconds
        ),
        "served, batch 32": lambda seconds: served(client, images, BATCH, IN_FLIGHT, seconds),
        singles: lambda seconds: served(client, images, 1, CLIENTS, seconds),
    }
    series = {name: Series(name) for name in turns}
    counts = np.zeros(2)  # images, executions
    try:
        await check_answers(client, path, images[:BATCH])
        for turn in turns.values():  # warm-up
            await turn(min(1.0, args.seconds))
        for number in range(args.rounds):
            for name, turn in turns.items():
                before = await executions(client)
                series[name].rates.append(await turn(args.seconds))
                if name == singles:
                    counts += await executions(client) - before
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    finally:
        await client.close()
    return list(series.values()), float(counts[0] / counts[1])


async def executions(client: aio.InferenceServerClient) -> np.ndarray:
    """Return how many images the server has answered, in how many executions."""
    statistics_of_model = await client.get_inference_statistics(MODEL)
    model = statistics_of_model.model_stats[0]
    return np.array([model.inference_count, model.execution_count])


def report(series: list[Series], mean_batch: float, args: argparse.Namespace) -> bool:
    """Print the table; return whether every target is reached."""
    base = series[0]
    print(f"\n{'':26}{'images/s':>10}{'min–max':>16}{'ratio':>8}{'min–max':>14}{'target':>9}")
    reached = True
    for entry in series:
        ratios = entry.ratios(base)
        ratio = statistics.median(ratios)
        target = TARGETS.get(entry.name)
        line = f"{entry.name:26}{entry.median:10,.0f}"
        line += f"{f'{min(entry.rates):,.0f}–{max(entry.rates):,.0f}':>16}{ratio:8.2f}"
        line += f"{f'{min(ratios):.2f}–{max(ratios):.2f}':>14}"
        if target is not None:
            reached = reached and ratio >= target
            line += f"{f'≥ {target}':>9} {'reached' if ratio >= target else 'MISSED'}"
        print(line)
    print(
        f"\nmedians and ranges of {args.rounds} rounds of {args.seconds:g} s each; ratios within a "
        f"round\n{args.threads} thread(s) in the session and in the server's one instance; "
        f"{CLIENTS} clients made batches of {mean_batch:.1f} on average\n{machine()}"
    )
    return reached


def machine() -> str:
    """Return the hardware and the versions that the figures belong to."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("onnxruntime", "nvidia-pytriton", "tritonclient")
    )
    return (
        f"{cpu_name()}, {available_cores()} cores; Python {platform.python_version()}, {packages}"
    )


def find_model(folder: Path) -> Path:
    """Return the lab's exported model where a run has made one, else an untrained one."""
    runs = sorted(project_root().glob("runs/*/artifacts/model.onnx"))
    if runs:
        return runs[-1]
    from labkit.export import export_onnx
    from labkit.model import CifarNet

    export_onnx(CifarNet().eval(), folder / "model.onnx")
    return folder / "model.onnx"


def warn_if_busy() -> None:
    """Say so when other processes compete: then the ratios say more about them."""
    busy = psutil.cpu_percent(interval=1.0)
    if busy > BUSY_PERCENT:
        print(f"other processes use {busy:.0f} % of this machine: measure again", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="an ONNX model of the lab")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--queue-delay-us", type=int, default=0)
    args = parser.parse_args()
    warn_if_busy()
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or find_model(Path(folder))
        model = Path(folder) / "repository" / MODEL
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.onnx").write_bytes(path.read_bytes())
        config = CONFIG.format(batch=BATCH, threads=args.threads, delay=args.queue_delay_us)
        (model / "config.pbtxt").write_text(config)
        print(f"model: {path.name}, {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
        with TritonServer(model.parent) as server:
            series, mean_batch = asyncio.run(measure(server.grpc, path, args))
    return 0 if report(series, mean_batch, args) else 1


if __name__ == "__main__":
    sys.exit(main())
