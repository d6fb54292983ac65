"""Triton against the servers that people write or choose instead, on the same model and load.

- FastAPI: one uvicorn worker on uvloop, raw bytes in and out, ONNX Runtime called in the handler;
- MLServer with a custom model, over gRPC with raw tensors (its REST endpoint takes JSON only), with
  adaptive batching, inference in the server's own process; beside it Triton over gRPC.

All servers run side by side, all but one idle; they take turns within each round. Every session
has the same number of threads and the same version of ONNX Runtime. The peers' environments are
built in the cache folder, once, by pip. Needs Python 3.11 or 3.12, for MLServer.

    python benchmarks/peers.py [--model model.onnx ...] [--rounds 15] [--seconds 1.5] [--out FILE]
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from serve import (
    BATCH,
    LOADS,
    MODEL,
    Connection,
    Series,
    Turn,
    argument_parser,
    check_answers,
    find_models,
    in_process,
    machine,
    post,
    request_of,
    served,
    take_turns,
    warn_if_busy,
    write_repository,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

from labkit.server import TritonServer
from labkit.server.native.built import built_backends
from labkit.server.ports import free_port
from labkit.workspace import cache_dir

HERE = Path(__file__).parent / "peers"
PACKAGES = {
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
    "mlserver": ("mlserver==1.7.1",),
}
START_LIMIT_S = 60.0
# Subject over peer → what to reach, FP32 and INT8, for each of LOADS.
TARGETS = {
    ("native", "FastAPI"): ((0.97, 1.0), (1.05, 1.8)),
    ("stand-in", "FastAPI"): ((0.97, 0.95), (1.0, 1.5)),
    ("native, gRPC", "MLServer, gRPC"): ((1.5, 2.0), (3.0, 5.0)),
}


def environment(peer: str) -> Path:
    """Return the Python of a peer's environment, which is built where it is missing."""
    packages = (*PACKAGES[peer], f"onnxruntime=={version('onnxruntime')}")
    key = hashlib.sha256("\n".join((sys.version, *packages)).encode()).hexdigest()[:12]
    folder = cache_dir() / "peers" / f"{peer}-{key}"
    if not (folder / "complete").exists():
        print(f"building {peer}'s environment in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *packages], check=True)
        (folder / "complete").touch()
    return folder / "bin" / "python"


@contextmanager
def running(command: Sequence[object], folder: Path, **variables: str) -> Iterator[int]:
    """Run a server in a folder for the length of a block; yield its process ID."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=os.environ | variables,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process.pid
    except BaseException:
        sys.stderr.write(log.read_text()[-2000:])
        raise
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def fastapi(path: Path, threads: int, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the model with FastAPI; yield its address and process."""
    port = free_port()
    command = [environment("fastapi"), "-m", "uvicorn", "fastapi_server:app", "--app-dir", HERE]
    command += ["--port", port, "--loop", "uvloop", "--http", "httptools"]
    command += ["--no-access-log", "--timeout-keep-alive", 3600]  # idle between its turns
    with running(command, folder, MODEL=str(path), THREADS=str(threads)) as pid:
        yield f"127.0.0.1:{port}", pid


@contextmanager
def mlserver(path: Path, threads: int, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the model with MLServer; yield the address of its gRPC endpoint and its process."""
    ports = {f"{name}_port": free_port() for name in ("http", "grpc", "metrics")}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    model = {
        "name": MODEL,
        "implementation": "mlserver_model.OnnxModel",
        "max_batch_size": BATCH,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    variables = {"MODEL": str(path), "THREADS": str(threads), "PYTHONPATH": str(HERE)}
    command = [environment("mlserver").with_name("mlserver"), "start", folder]
    with running(command, folder, **variables) as pid:
        yield f"127.0.0.1:{ports['grpc_port']}", pid


class GrpcClient:
    """A channel of its own, as each of several clients has one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str) -> AsyncIterator["GrpcClient"]:
        """Connect to `HOST:PORT`."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield cls(channel)

    async def post(self, request: Any) -> bytes:
        """Return the logits as bytes."""
        return (await self._infer(request)).raw_output_contents[0]


def grpc_request(images: np.ndarray) -> Any:
    """Return an inference request with its tensor as raw bytes."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="input", datatype="FP32", shape=images.shape
    )
    return service_pb2.ModelInferRequest(
        model_name=MODEL, inputs=[tensor], raw_input_contents=[images.tobytes()]
    )


async def ready(client_to: Any, address: str, request: Any) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            async with client_to(address) as client:
                await client.post(request)
            return
        except (OSError, RuntimeError, EOFError, grpc.aio.AioRpcError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def measure(path: Path, args: argparse.Namespace, folder: Path) -> dict[str, Series]:
    """Return the series by name: subject, and load."""
    images = np.random.default_rng(0).random((8 * BATCH, 3, 32, 32), dtype=np.float32)
    parts = {batch: np.split(images, len(images) // batch) for _, batch in LOADS}
    name = f"in-process, batch {BATCH}"
    turns = [Turn(Series(name), partial(in_process, path, args.threads, images))]
    with ExitStack() as servers:
        subjects = []
        for runtime in ("native", "stand-in") if built_backends() else ("stand-in",):
            server = servers.enter_context(TritonServer(folder / "repository", runtime=runtime))
            subjects.append((runtime, Connection.to, server.http, request_of, server.pid))
            subjects.append(
                (f"{runtime}, gRPC", GrpcClient.to, server.grpc, grpc_request, server.pid)
            )
        for title, start, client_to, make in (
            ("FastAPI", fastapi, Connection.to, lambda part: post("/predict", part.tobytes())),
            ("MLServer, gRPC", mlserver, GrpcClient.to, grpc_request),
        ):
            place = folder / title.partition(",")[0]
            place.mkdir()
            address, pid = servers.enter_context(start(path, args.threads, place))
            await ready(client_to, address, make(images[:1]))
            subjects.append((title, client_to, address, make, pid))
        async with AsyncExitStack() as stack:
            for clients, batch in LOADS:
                for title, client_to, address, make, pid in subjects:
                    requests = [make(part) for part in parts[batch]]
                    open_ = [
                        await stack.enter_async_context(client_to(address)) for _ in range(clients)
                    ]
                    await check_answers(open_[0], requests[0], path, images[:batch])
                    load = partial(served, open_, requests, batch)
                    turns.append(Turn(Series(f"{title}, {clients} × {batch}"), load, pid))
            await take_turns(turns, args.rounds, args.seconds)
    return {turn.series.name: turn.series for turn in turns}


def rows(series: dict[str, Series]) -> Iterator[str]:
    """Yield a table of what each subject did."""
    base = next(iter(series.values()))
    yield "| | images/s | min–max | over in-process | CPU s per 1,000 images: server | clients |"
    yield "|---|---|---|---|---|---|"
    for entry in series.values():
        yield (
            f"| {entry.name} | {entry.median:,.0f} "
            f"| {min(entry.rates):,.0f}–{max(entry.rates):,.0f} "
            f"| {statistics.median(entry.ratios(base)):.2f} "
            f"| {statistics.median(entry.server_cpu):.2f} "
            f"| {statistics.median(entry.client_cpu):.2f} |"
        )


def ratios(series: dict[str, Series], int8: bool) -> Iterator[str]:
    """Yield a table of Triton over its peers, round by round, against what is to be reached."""
    yield "| | ratio | min–max | to reach |"
    yield "|---|---|---|---|"
    for (subject, peer), targets in TARGETS.items():
        for (clients, batch), target in zip(LOADS, targets, strict=True):
            load = f"{clients} × {batch}"
            if f"{subject}, {load}" not in series:
                continue
            values = series[f"{subject}, {load}"].ratios(series[f"{peer}, {load}"])
            yield (
                f"| {subject} / {peer}, {load} | {statistics.median(values):.2f} "
                f"| {min(values):.2f}–{max(values):.2f} | ≥ {target[int8]} |"
            )


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, help="write the tables there, too")
    args = parser.parse_args()
    warn_if_busy()
    packages = ", ".join(package for entry in PACKAGES.values() for package in entry)
    lines = [
        "# Triton and its peers",
        "",
        f"`python benchmarks/peers.py`: {args.rounds} rounds of {args.seconds:g} s for each "
        f"subject, in turns, {args.threads} thread(s) in every session; medians, ratios within a "
        f"round. {machine()}, {packages}.",
    ]
    for path in args.model or find_models():
        with tempfile.TemporaryDirectory() as folder:
            write_repository(Path(folder), path, args.threads)
            series = asyncio.run(measure(path.resolve(), args, Path(folder)))
        lines += [
            "",
            f"## {path.name}",
            "",
            *rows(series),
            "",
            *ratios(series, "int8" in path.name),
        ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
