"""What serving costs: images per second through Triton against ONNX Runtime in this process.

Three measurements take turns, several rounds long, so that a busy moment of the machine hits all:

1. in-process: one ONNX Runtime session, batches of 32;
2. 4 × 32: the same model behind Triton's onnxruntime backend, four clients with batches of 32;
3. 16 × 1: the same server, 16 concurrent clients that each send one image and wait for the
   answer; Triton's dynamic batching puts them together.

2 and 3 for each runtime that is there: the native backend and the stand-in, whose servers run side
by side, one of them idle. The library is the same in all three places. A Python model that answers
zeros shows what Triton's Python backend costs without a model.

Session and server compute with the same number of threads. On two cores the default of one leaves
the other to Triton and the clients, for which in-process inference has no need. The clients live in
one asyncio process and speak HTTP by hand (request bytes made once, answers read as binary
tensors), so that little of what is measured is theirs; what is, the table says.

    python benchmarks/serve.py [--model model.onnx ...] [--rounds 15] [--seconds 1.5] [--out FILE]
"""

import argparse
import asyncio
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import psutil
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from labkit.environment import cpu_name
from labkit.operate.processes import family
from labkit.profiles import available_cores
from labkit.server import TritonServer
from labkit.server.fetch import SERVER_VERSION
from labkit.server.native.built import built_backends
from labkit.workspace import project_root

LOADS = ((4, 32), (16, 1))  # clients, images in a request
BATCH = 32
BUSY_PERCENT = 10.0
EMPTY = "empty Python model"
MODEL = "bench"
TARGETS = {  # served over in-process: FP32, INT8
    ("native", BATCH): (0.97, 0.96),
    ("native", 1): (0.97, 0.95),
    ("stand-in", BATCH): (0.96, 0.93),
    ("stand-in", 1): (0.93, 0.8),
}
CONFIG = """
backend: "onnxruntime"
max_batch_size: {batch}
input [{{ name: "input" data_type: TYPE_FP32 dims: [3, 32, 32] }}]
output [{{ name: "logits" data_type: TYPE_FP32 dims: [10] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}
"""


EMPTY_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "input").shape()[0]
            logits = pb_utils.Tensor("logits", np.zeros((rows, 10), dtype=np.float32))
            answers.append(pb_utils.InferenceResponse([logits]))
        return answers
"""
COUNTERS = ("success", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Series:
    """What one subject did, one value per round."""

    name: str
    target: float | None = None
    rates: list[float] = field(default_factory=list)  # images/s
    server_cpu: list[float] = field(default_factory=list)  # seconds for 1,000 images
    client_cpu: list[float] = field(default_factory=list)  # the same, of this process

    @property
    def median(self) -> float:
        """The typical rate; one disturbed round does not move it."""
        return statistics.median(self.rates)

    def ratios(self, base: "Series") -> list[float]:
        """Return this series over another, round by round."""
        return [mine / theirs for mine, theirs in zip(self.rates, base.rates, strict=True)]

    def add(self, images: int, seconds: float, server_cpu: float, client_cpu: float) -> None:
        """Note a round: what was answered, in which time, at what cost in CPU seconds."""
        self.rates.append(images / seconds)
        self.server_cpu.append(1000 * server_cpu / images)
        self.client_cpu.append(1000 * client_cpu / images)


async def in_process(
    path: Path, threads: int, images: np.ndarray, seconds: float
) -> tuple[int, float]:
    """Return images answered and seconds of a session of its own, which ends before the next."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    done, batches = 0, itertools.cycle(np.split(images, len(images) // BATCH))
    session.run(None, {"input": next(batches)})
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        session.run(None, {"input": next(batches)})
        done += BATCH
    return done, spent


class Connection:
    """A connection to Triton's HTTP endpoint that is kept open, without a client library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str) -> AsyncIterator["Connection"]:
        """Connect to `HOST:PORT`."""
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    async def post(self, request: bytes) -> bytes:
        """Send a request and return the body of its answer.

        Raises:
            RuntimeError: the answer is no 200.
        """
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0])
        body = await self._reader.readexactly(length)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"got {head.splitlines()[0]!r}: {body[:300]!r}")
        return body


def request_of(images: np.ndarray) -> bytes:
    """Return the bytes of an inference request with binary tensors in both directions."""
    tensor = InferInput("input", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    outputs = [InferRequestedOutput("logits")]
    body, header = InferenceServerClient.generate_request_body([tensor], outputs=outputs)
    return post(f"/v2/models/{MODEL}/infer", body, f"Inference-Header-Content-Length: {header}")


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of an HTTP request."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


class Client(Protocol):
    """Sends a request that was made before, and returns bytes that end in the logits."""

    async def post(self, request: Any) -> bytes:
        """Wait for the answer."""
        ...


async def served(
    connections: Sequence[Client], requests: Sequence[Any], batch: int, seconds: float
) -> tuple[int, float]:
    """Return images answered, and seconds; each client waits for an answer before it goes on."""
    start, answered, size = time.perf_counter(), 0, batch * 10 * 4

    async def loop(first: int, connection: Client) -> None:
        nonlocal answered
        for index in itertools.count(first, len(connections)):
            body = await connection.post(requests[index % len(requests)])
            logits = np.frombuffer(body[-size:], np.float32).reshape(batch, 10)
            if not np.isfinite(logits).all():
                raise RuntimeError(f"got {logits}")
            answered += batch
            if time.perf_counter() - start >= seconds:
                return

    await asyncio.gather(*(loop(*client) for client in enumerate(connections)))
    return answered, time.perf_counter() - start


async def check_answers(connection: Client, request: Any, path: Path, images: np.ndarray) -> None:
    """Refuse to measure a server that answers anything but what the session answers."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    body = await connection.post(request)
    logits = np.frombuffer(body[-len(images) * 40 :], np.float32).reshape(-1, 10)
    np.testing.assert_allclose(logits, session.run(None, {"input": images})[0], atol=1e-4)


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time of a server and all that it started; 0 where there is none."""
    if pid is None:
        return 0.0
    times = [process.cpu_times() for process in family(pid)]
    return sum(entry.user + entry.system for entry in times)


@dataclass
class Turn:
    """One subject's part of a round.

    Attributes:
        series: Where its values go.
        run: Given seconds, returns images answered, and the seconds that it took.
        pid: Of its server, whose CPU time counts; None for this process.
    """

    series: Series
    run: Callable[[float], Awaitable[tuple[int, float]]]
    pid: int | None = None


async def take_turns(turns: Sequence[Turn], rounds: int, seconds: float) -> None:
    """Run every subject once in each round, after a warm-up that does not count."""
    for turn in turns:
        await turn.run(min(1.0, seconds))
    for number in range(rounds):
        for turn in turns:
            theirs, ours = cpu_seconds(turn.pid), time.process_time()
            done, spent = await turn.run(seconds)
            ours = time.process_time() - ours
            turn.series.add(done, spent, cpu_seconds(turn.pid) - theirs, ours)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)


async def measure(
    servers: Mapping[str, TritonServer], path: Path, int8: bool, args: argparse.Namespace
) -> tuple[list[Series], dict[str, np.ndarray]]:
    """Return the series, and server → what its `counters` grew by while the 16 clients asked."""
    images = np.random.default_rng(0).random((8 * BATCH, 3, 32, 32), dtype=np.float32)
    requests = {
        n: [request_of(part) for part in np.split(images, len(images) // n)] for _, n in LOADS
    }
    alone = partial(in_process, path, args.threads, images)
    turns = [Turn(Series(f"in-process, batch {BATCH}"), alone)]
    grown = {name: np.zeros(2 + len(COUNTERS)) for name in servers}

    async def counted(name: str, load: Callable, seconds: float) -> tuple[int, float]:
        before = counters(servers[name])
        result = await load(seconds)
        grown[name] += counters(servers[name]) - before
        return result

    async with AsyncExitStack() as stack:
        for clients, batch in LOADS:
            for name, server in servers.items():
                if name == EMPTY and batch > 1:
                    continue
                to = [Connection.to(server.http) for _ in range(clients)]
                open_ = [await stack.enter_async_context(entry) for entry in to]
                if name != EMPTY:
                    await check_answers(open_[0], requests[batch][0], path, images[:batch])
                target = TARGETS.get((name, batch))
                series = Series(f"{name}, {clients} × {batch}", target and target[int8])
                load = partial(served, open_, requests[batch], batch)
                run = partial(counted, name, load) if batch == 1 else load
                turns.append(Turn(series, run, server.pid))
        await take_turns(turns, args.rounds, args.seconds)
    return [turn.series for turn in turns], grown


def counters(server: TritonServer) -> np.ndarray:
    """Return images, executions, requests, and nanoseconds of the requests in each `COUNTERS`."""
    with InferenceServerClient(server.http) as client:
        model = client.get_inference_statistics(MODEL)["model_stats"][0]
    stats = model["inference_stats"]
    counts = [model["inference_count"], model["execution_count"], stats["success"]["count"]]
    return np.array([*counts, *(stats[name]["ns"] for name in COUNTERS[1:])], dtype=float)


def engine_us(path: Path, threads: int, batch: int) -> float:
    """Return the microseconds that the session alone takes for a batch, the median of 100."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32)
    times = []
    for _ in range(110):
        started = time.perf_counter()
        session.run(None, {"input": images})
        times.append(1e6 * (time.perf_counter() - started))
    return statistics.median(times[10:])


def report(
    path: Path, series: list[Series], grown: dict[str, np.ndarray], args: argparse.Namespace
) -> tuple[str, bool]:
    """Return the tables, and whether every target is reached."""
    head = ["", "images/s", "min–max", "over in-process", "min–max"]
    head += ["CPU s per 1,000 images: server", "clients", "to reach"]
    rows, reached = [head, ["---"] * len(head)], True
    for entry in series:
        ratios = entry.ratios(series[0])
        ratio = statistics.median(ratios)
        wanted = ""
        if entry.target is not None:
            good = round(ratio, 2) >= entry.target
            reached = reached and good
            wanted = f"≥ {entry.target}{'' if good else ', missed'}"
        rows.append(
            [
                entry.name,
                f"{entry.median:,.0f}",
                f"{min(entry.rates):,.0f}–{max(entry.rates):,.0f}",
                f"{ratio:.2f}",
                f"{min(ratios):.2f}–{max(ratios):.2f}",
                f"{statistics.median(entry.server_cpu):.3f}",
                f"{statistics.median(entry.client_cpu):.3f}",
                wanted,
            ]
        )
    head = ["16 × 1, µs", "queue", "input", "infer", "output", "images in an execution"]
    parts = [[*head, "the session alone, per execution"], ["---"] * (len(head) + 1)]
    for name, (images, runs, count, *nanoseconds) in grown.items():
        each = [f"{entry / count / 1e3:,.0f}" for entry in nanoseconds]
        alone = (
            "–" if name == EMPTY else f"{engine_us(path, args.threads, round(images / runs)):,.0f}"
        )
        parts.append([name, *each, f"{images / runs:.1f}", alone])
    tables = ["\n".join(f"| {' | '.join(row)} |" for row in table) for table in (rows, parts)]
    said = (
        f"## {path.name}, {path.stat().st_size / 1e6:.1f} MB",
        tables[0],
        "Of a request, as the server counts it; a request's `infer` is that of its whole batch:",
        tables[1],
    )
    return "\n\n".join(said), reached


def machine() -> str:
    """Return the hardware and the versions that the figures belong to."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "numpy"))
    return (
        f"{cpu_name()}, {available_cores()} cores; Python {platform.python_version()}, "
        f"tritonserver {SERVER_VERSION}, {packages}"
    )


def find_models() -> list[Path]:
    """Return the newest run's exported models, FP32 and INT8.

    Raises:
        SystemExit: no run has made any.
    """
    runs = sorted(project_root().glob("runs/*/artifacts/model_int8.onnx"), key=os.path.getmtime)
    if not runs:
        raise SystemExit("no run has models: make lab PROFILE=smoke, or name them with --model")
    return [runs[-1].with_name("model.onnx"), runs[-1]]


def warn_if_busy() -> None:
    """Say so when other processes compete: then the ratios say more about them."""
    busy = psutil.cpu_percent(interval=1.0)
    if busy > BUSY_PERCENT:
        print(f"other processes use {busy:.0f} % of this machine: measure again", file=sys.stderr)


def write_repository(folder: Path, path: Path, threads: int, delay_us: int = 0) -> Path:
    """Return a repository in `folder` that serves one ONNX file."""
    repository = folder / "repository"
    model = repository / MODEL
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(path.read_bytes())
    config = CONFIG.format(batch=BATCH, threads=threads, delay=delay_us)
    (model / "config.pbtxt").write_text(config)
    return repository


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark of serving takes."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", help="ONNX models of the lab")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    return parser


def write_empty_model(folder: Path) -> Path:
    """Return a repository in `folder` whose model has the same tensors and answers zeros."""
    model = folder / "repository" / MODEL
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(EMPTY_MODEL)
    config = CONFIG.format(batch=BATCH, threads=1, delay=0).replace("onnxruntime", "python")
    (model / "config.pbtxt").write_text(config)
    return model.parent


def measure_model(path: Path, args: argparse.Namespace) -> tuple[str, bool]:
    """Measure one model on every runtime; return the tables, and whether targets are reached."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = write_repository(Path(folder), path, args.threads, args.queue_delay_us)
        runtimes = ["native", "stand-in"] if built_backends() else ["stand-in"]
        made = {name: TritonServer(repository, runtime=name) for name in runtimes}
        made[EMPTY] = TritonServer(
            write_empty_model(Path(folder) / "empty"), runtime="stand-in", allow_python_models=True
        )
        servers = {name: stack.enter_context(server) for name, server in made.items()}
        series, grown = asyncio.run(measure(servers, path, "int8" in path.name, args))
        return report(path, series, grown, args)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--queue-delay-us", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    warn_if_busy()
    measured = [measure_model(path, args) for path in args.model or find_models()]
    about = (
        f"{machine()}. Medians and ranges of {args.rounds} rounds of {args.seconds:g} s each, "
        f"ratios within a round; {args.threads} thread(s) in the session and in each server's one "
        "instance."
    )
    text = "\n\n".join(["# Serving", about, *(tables for tables, _ in measured)])
    print(f"\n{text}")
    if args.out:
        args.out.write_text(f"{text}\n", encoding="utf-8")
    return 0 if all(good for _, good in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
