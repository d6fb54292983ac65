"""Put load on a model and measure what comes back: closed loop, open loop, and the server's share.

Closed loop: N clients, each sends its next request when the last answer is there. It finds the
greatest throughput, and flatters latency: a slow server slows its own load down.

Open loop: requests arrive at a given rate, whether or not the server keeps up, as users do.
Latency counts from the moment a request was due, so a stall is charged to every request that it
delayed (Tene, "How NOT to Measure Latency": coordinated omission).

The load comes from this machine and competes with the server for its cores: compare settings
within one run, and do not read the figures as the server's own limit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import selectors
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeVar
from urllib.parse import quote

import numpy as np
import psutil
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from labkit.client import (
    GRPC_CHANNEL_ARGS,
    Arrays,
    LabClient,
    ModelCard,
    host_and_port,
    plain,
)
from labkit.compare import Spread
from labkit.errors import LabError

logger = logging.getLogger(__name__)
Key = TypeVar("Key")  # whatever names a case

MIN_N = {95: 20, 99: 100}  # at least one sample must lie beyond a percentile for it to mean much
ERROR_PAUSE_S = 0.01  # a refused request returns at once: without a pause errors would be a flood
STATISTICS_WAIT_S = 0.5  # Triton books a request just after its answer has left
MAX_SECONDS, MAX_CONCURRENCY, MAX_RATE_PER_S = 600.0, 256, 20_000.0


class BenchError(LabError):
    """A load that cannot be put on, or that brought back nothing to measure."""


@dataclass(frozen=True)
class Percentiles:
    """Times in milliseconds; a percentile is None where `n` is too small for it.

    Attributes:
        n: Samples; p95 needs 20 of them, p99 needs 100.
        mean, p50, p95, p99, max: In milliseconds.
    """

    n: int
    mean: float
    p50: float
    p95: float | None
    p99: float | None
    max: float

    @classmethod
    def of(cls, samples_ms: Sequence[float] | NDArray[np.float64]) -> Percentiles:
        """Summarize at least one sample, interpolating linearly between neighbours.

        Raises:
            BenchError: there is no sample.
        """
        values = np.asarray(samples_ms, dtype=np.float64)
        if not values.size:
            raise BenchError("no request was answered, so there is no latency to summarize")

        def at(percent: int) -> float | None:
            enough = values.size >= MIN_N.get(percent, 1)
            return float(np.percentile(values, percent)) if enough else None

        p50 = float(np.percentile(values, 50))
        return cls(values.size, float(values.mean()), p50, at(95), at(99), float(values.max()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {k: getattr(self, k) for k in ("n", "mean", "p50", "p95", "p99", "max")}


@dataclass(frozen=True)
class ServerSplit:
    """Where the server says the time went, between two readings of its counters.

    Attributes:
        requests: Answered requests.
        failures: Requests that failed inside the server.
        inferences: Images (rows) in them; a model with `max_batch_size: 0` counts one a request.
        executions: Times the model ran; fewer than requests where the server batched.
        queue_ms, compute_input_ms, compute_infer_ms, compute_output_ms: Mean per request.
        batch_histogram: Images per execution → how often.
    """

    requests: int
    failures: int
    inferences: int
    executions: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    batch_histogram: dict[int, int]

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any]) -> ServerSplit:
        """Subtract two answers of `/v2/models/<m>/stats`."""
        old, new = before["inference_stats"], after["inference_stats"]
        requests = new["success"]["count"] - old["success"]["count"]

        def mean_ms(kind: str) -> float:
            return (new[kind]["ns"] - old[kind]["ns"]) / 1e6 / max(requests, 1)

        def sizes(stats: Mapping[str, Any]) -> Counter[int]:
            rows = stats.get("batch_stats", [])
            return Counter({row["batch_size"]: row["compute_infer"]["count"] for row in rows})

        return cls(
            requests=requests,
            failures=new["fail"]["count"] - old["fail"]["count"],
            inferences=after["inference_count"] - before["inference_count"],
            executions=after["execution_count"] - before["execution_count"],
            queue_ms=mean_ms("queue"),
            compute_input_ms=mean_ms("compute_input"),
            compute_infer_ms=mean_ms("compute_infer"),
            compute_output_ms=mean_ms("compute_output"),
            batch_histogram=dict(sorted((sizes(after) - sizes(before)).items())),
        )

    @classmethod
    def merge(cls, parts: Sequence[ServerSplit]) -> ServerSplit:
        """Join the splits of several runs; means are weighted by requests."""
        requests = sum(p.requests for p in parts)
        histogram: Counter[int] = Counter()
        for part in parts:
            histogram.update(part.batch_histogram)

        def mean(name: str) -> float:
            return sum(getattr(p, name) * p.requests for p in parts) / max(requests, 1)

        return cls(
            requests,
            sum(p.failures for p in parts),
            sum(p.inferences for p in parts),
            sum(p.executions for p in parts),
            mean("queue_ms"),
            mean("compute_input_ms"),
            mean("compute_infer_ms"),
            mean("compute_output_ms"),
            dict(sorted(histogram.items())),
        )

    @property
    def mean_batch(self) -> float:
        """Images per execution."""
        return self.inferences / max(self.executions, 1)

    @property
    def compute_ms(self) -> float:
        """Input, inference and output together, mean per request."""
        return self.compute_input_ms + self.compute_infer_ms + self.compute_output_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers; histogram keys become text, as JSON wants them."""
        values = {k: v for k, v in vars(self).items() if k != "batch_histogram"}
        histogram = {str(size): count for size, count in self.batch_histogram.items()}
        return {**values, "mean_batch": self.mean_batch, "batch_histogram": histogram}


@dataclass(frozen=True)
class LoadOptions:
    """What rarely changes between measurements.

    Attributes:
        protocol: `http` or `grpc`; the address must be that endpoint's.
        warmup_s: Load that does not count, before the measurement.
        timeout_s: Longest wait for one answer; after that the request counts as an error.
        max_requests: Upper limit of requests in one measurement.
        max_in_flight: Open loop: requests under way at once; beyond, arrivals count as dropped.
        inputs: Input name → array with `batch` rows; None for random values that fit.
        seed: Seeds the random values and the arrival times.
    """

    protocol: Literal["http", "grpc"] = "http"
    warmup_s: float = 0.3
    timeout_s: float = 10.0
    max_requests: int = 100_000
    max_in_flight: int = 512
    inputs: Mapping[str, np.ndarray] | None = None
    seed: int = 0


@dataclass(frozen=True)
class LoadResult:
    """One measurement.

    Attributes:
        model, protocol: What was asked, and how.
        batch: Images per request.
        clients: Closed loop: concurrent clients; None in an open loop.
        rate_per_s: Open loop: requests due per second; None in a closed loop.
        seconds: How long requests were sent.
        n: Requests answered.
        errors: Kind of error → how often; not part of `n` or of the latency.
        images_per_s: Images answered per second.
        latency_ms: Per request, as the client saw it.
        late_ms: Open loop: how late requests were sent, 95th percentile; 0 in a closed loop. When
            it is not small against the latency, the load generator was the bottleneck.
        server: The server's own account of the same requests.
        samples_ms: Every latency, shape (n,).
    """

    model: str
    protocol: str
    batch: int
    clients: int | None
    rate_per_s: float | None
    seconds: float
    n: int
    errors: dict[str, int]
    images_per_s: float
    latency_ms: Percentiles
    late_ms: float
    server: ServerSplit
    samples_ms: NDArray[np.float64] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers, without the samples."""
        values = {k: v for k, v in vars(self).items() if k != "samples_ms"}
        return {**values, "latency_ms": self.latency_ms.to_dict(), "server": self.server.to_dict()}


@dataclass(frozen=True)
class Repeated:
    """Several measurements of one setting, taken in turn with those of other settings.

    Attributes:
        runs: The measurements, in order.
        images_per_s: Median and spread over the runs.
        latency_ms: Over the requests of all runs together.
        server: The server's account of all runs together.
    """

    runs: tuple[LoadResult, ...]
    images_per_s: Spread
    latency_ms: Percentiles
    server: ServerSplit

    @classmethod
    def of(cls, runs: Sequence[LoadResult]) -> Repeated:
        """Summarize at least one measurement."""
        return cls(
            tuple(runs),
            Spread.of([r.images_per_s for r in runs]),
            Percentiles.of(np.concatenate([r.samples_ms for r in runs])),
            ServerSplit.merge([r.server for r in runs]),
        )

    @property
    def errors(self) -> dict[str, int]:
        """Kind of error → how often, over all runs."""
        total: Counter[str] = Counter()
        for run in self.runs:
            total.update(run.errors)
        return dict(total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        first = self.runs[0]
        return {
            "model": first.model,
            "protocol": first.protocol,
            "batch": first.batch,
            "clients": first.clients,
            "rate_per_s": first.rate_per_s,
            "seconds": first.seconds,
            "images_per_s": vars(self.images_per_s),
            "latency_ms": self.latency_ms.to_dict(),
            "server": self.server.to_dict(),
            "errors": self.errors,
        }


def repeat(
    cases: Mapping[Key, Callable[[], LoadResult]],
    repeats: int,
    progress: Callable[[str], None] | None = None,
) -> dict[Key, Repeated]:
    """Measure every case once per round, for `repeats` rounds, every other round backwards.

    On a shared machine everything drifts; cases measured in turn drift together.

    Raises:
        BenchError: no rounds, or a case that brought back nothing.
    """
    if repeats < 1:
        raise BenchError(f"got repeats={repeats}, expected at least 1")
    runs: dict[Key, list[LoadResult]] = {name: [] for name in cases}
    for index in range(repeats):
        for name in list(cases)[:: 1 if index % 2 == 0 else -1]:
            runs[name].append(cases[name]())
        if progress:
            progress(f"round {index + 1} of {repeats}")
    return {name: Repeated.of(results) for name, results in runs.items()}


def closed_loop(
    url: str,
    model: str,
    *,
    clients: int = 1,
    batch: int = 1,
    seconds: float = 2.0,
    options: LoadOptions = LoadOptions(),
) -> LoadResult:
    """Let `clients` clients ask without pause for `seconds`.

    Args:
        url: `host:port` on this machine, of the endpoint that `options.protocol` names.
        model: Name in the repository; any model whose inputs can be filled.
        clients: Concurrent clients, each with one request under way.
        batch: Images per request.
        seconds: How long requests are sent; the last answers are waited for.
        options: Protocol, warm-up, limits.

    Raises:
        BenchError: the load is refused here, or no request was answered.
    """
    _within("clients", clients, 1, MAX_CONCURRENCY)
    _within("seconds", seconds, 0.01, MAX_SECONDS)
    target = _Target.prepare(url, model, batch, options)

    async def load(sender: _Sender) -> _Outcome:
        await _ask_in_turn(sender, clients, options.warmup_s, options.max_requests)
        before = await sender.statistics()
        outcome = await _ask_in_turn(sender, clients, seconds, options.max_requests)
        return await outcome.finish(sender, before)

    outcome = _run(target, load, connections=clients)
    return outcome.result(target, seconds, clients=clients)


def open_loop(
    url: str,
    model: str,
    *,
    rate_per_s: float,
    batch: int = 1,
    seconds: float = 2.0,
    options: LoadOptions = LoadOptions(),
) -> LoadResult:
    """Send requests at random moments, `rate_per_s` on average, whether or not answers come.

    Args:
        url: `host:port` on this machine, of the endpoint that `options.protocol` names.
        model: Name in the repository.
        rate_per_s: Requests per second; the gaps are exponential (a Poisson process).
        batch: Images per request.
        seconds: How long requests are sent; the last answers are waited for.
        options: Protocol, warm-up, limits.

    Raises:
        BenchError: the load is refused here, or no request was answered.
    """
    _within("rate_per_s", rate_per_s, 0.01, MAX_RATE_PER_S)
    _within("seconds", seconds, 0.01, MAX_SECONDS)
    target = _Target.prepare(url, model, batch, options)
    due_s = poisson_schedule(rate_per_s, seconds, options.seed)[: options.max_requests]

    async def load(sender: _Sender) -> _Outcome:
        await _ask_in_turn(sender, 1, options.warmup_s, options.max_requests)
        before = await sender.statistics()
        outcome = await _ask_on_schedule(sender, due_s, options.max_in_flight)
        return await outcome.finish(sender, before)

    outcome = _run(target, load, connections=options.max_in_flight)
    return outcome.result(target, seconds, rate_per_s=rate_per_s)


def poisson_schedule(rate_per_s: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Return the arrival times of a Poisson process in [0, seconds), sorted, at least one."""
    rng = np.random.default_rng(seed)
    count = int(rate_per_s * seconds + 10 * (rate_per_s * seconds) ** 0.5 + 10)  # 10 sigma spare
    times = np.cumsum(rng.exponential(1 / rate_per_s, count))
    return times[times < seconds] if times[0] < seconds else np.zeros(1)


# -- what is sent --------------------------------------------------------------------------------


def random_inputs(card: ModelCard, batch: int, seed: int = 0) -> Arrays:
    """Make values that fit a model's metadata: floats in [0, 1), small integers, short texts.

    Free axes get `batch` where they are the batch axis, else 1.

    Raises:
        BenchError: the batch exceeds the model's limit.
    """
    if card.max_batch_size and batch > card.max_batch_size:
        raise BenchError(
            f"got batch={batch}, but {card.name} takes at most {card.max_batch_size} per request"
        )
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for tensor in card.inputs:
        shape = [batch if i == 0 and d == -1 else abs(d) for i, d in enumerate(tensor.shape)]
        if tensor.datatype == "BYTES":
            arrays[tensor.name] = np.full(shape, b"text", dtype=np.object_)
            continue
        dtype = np.dtype(triton_to_np_dtype(tensor.datatype))
        values = rng.random(shape) if dtype.kind not in "iub" else rng.integers(0, 2, shape)
        arrays[tensor.name] = values.astype(dtype)
    return arrays


@dataclass(frozen=True)
class _Target:
    """What to ask, and where."""

    url: str
    model: str
    batch: int
    arrays: Arrays
    outputs: tuple[str, ...]
    options: LoadOptions

    @classmethod
    def prepare(cls, url: str, model: str, batch: int, options: LoadOptions) -> _Target:
        _within("batch", batch, 1, 4096)
        _within("warmup_s", options.warmup_s, 0, MAX_SECONDS)
        _within("timeout_s", options.timeout_s, 1e-3, MAX_SECONDS)
        address = require_loopback(url)
        with LabClient(address, options.protocol, timeout_s=options.timeout_s) as client:
            card = client.card(model)
        arrays = dict(options.inputs or random_inputs(card, batch, options.seed))
        if card.inputs[0].shape[:1] == (-1,) and len(arrays[card.inputs[0].name]) != batch:
            raise BenchError(f"the given inputs hold other than batch={batch} rows")
        outputs = tuple(tensor.name for tensor in card.outputs)
        return cls(address, model, batch, arrays, outputs, options)


def require_loopback(url: str) -> str:
    """Return `host:port` if it is on this machine; load on others' servers is an attack.

    Raises:
        BenchError: the host is another machine.
    """
    address = host_and_port(url)
    host = address.rsplit(":", 1)[0].strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise BenchError(
            f"got the address {address}; load goes to this machine only, such as 127.0.0.1:8000"
        )
    return address


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BenchError(f"got {name}={value}, expected {low:g} to {high:g}")


# -- how it is sent ------------------------------------------------------------------------------


class _Sender(Protocol):
    """One asyncio client that sends the same request again and again.

    The request is encoded once and answers are not decoded: on a machine that also runs the
    server, every microsecond here is taken from there.
    """

    async def send(self) -> str | None:
        """Ask once; return None for an answer, else the kind of error."""

    async def statistics(self) -> dict[str, Any]:
        """Read the model's counters."""

    async def close(self) -> None:
        """Close the connections."""


class _HttpSender:
    def __init__(self, target: _Target, connections: int):
        import aiohttp
        from tritonclient import http as library

        inputs = [
            library.InferInput(
                name, list(array.shape), np_to_triton_dtype(array.dtype)
            ).set_data_from_numpy(array)
            for name, array in target.arrays.items()
        ]
        outputs = [library.InferRequestedOutput(name) for name in target.outputs]
        generate = library.InferenceServerClient.generate_request_body
        self._body, header_bytes = generate(inputs, outputs=outputs)
        self._headers = {"Inference-Header-Content-Length": str(header_bytes)}
        self._url = f"http://{target.url}/v2/models/{quote(target.model)}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=target.options.timeout_s),
        )

    async def send(self) -> str | None:
        try:
            async with self._session.post(
                f"{self._url}/infer", data=self._body, headers=self._headers
            ) as answer:
                content = await answer.read()
                return None if answer.status == 200 else f"HTTP {answer.status}: {content.decode()}"
        except TimeoutError:
            return "timeout"
        except OSError as error:  # aiohttp's connection errors are OSErrors too
            return type(error).__name__

    async def statistics(self) -> dict[str, Any]:
        async with self._session.get(f"{self._url}/stats") as answer:
            return (await answer.json(content_type=None))["model_stats"][0]

    async def close(self) -> None:
        await self._session.close()


class _GrpcSender:
    def __init__(self, target: _Target, connections: int):
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self._error = grpc.aio.AioRpcError
        self._deadline = grpc.StatusCode.DEADLINE_EXCEEDED
        self._request = service_pb2.ModelInferRequest(model_name=target.model)
        for name, array in target.arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            self._request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
            self._request.raw_input_contents.append(raw)
        for name in target.outputs:
            self._request.outputs.add(name=name)
        self._statistics = service_pb2.ModelStatisticsRequest(name=target.model)
        self._timeout_s = target.options.timeout_s
        self._channel = grpc.aio.insecure_channel(target.url, options=GRPC_CHANNEL_ARGS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def send(self) -> str | None:
        try:
            await self._stub.ModelInfer(self._request, timeout=self._timeout_s)
        except self._error as error:
            if error.code() is self._deadline:
                return "timeout"
            return f"gRPC {error.code().name}: {error.details()}"
        return None

    async def statistics(self) -> dict[str, Any]:
        answer = await self._stub.ModelStatistics(self._statistics, timeout=self._timeout_s)
        return plain(answer)["model_stats"][0]

    async def close(self) -> None:
        await self._channel.close()


@dataclass
class _Outcome:
    """What came back, before it is summarized."""

    samples_ms: list[float]
    requests_per_s: float
    errors: Counter[str]
    late_ms: list[float] = field(default_factory=list)
    server: ServerSplit | None = None

    async def finish(self, sender: _Sender, before: Mapping[str, Any]) -> Self:
        """Read the server's counters once it has booked what was answered."""
        give_up = time.perf_counter() + STATISTICS_WAIT_S
        while True:
            self.server = ServerSplit.between(before, await sender.statistics())
            booked = self.server.requests >= len(self.samples_ms)
            if booked or time.perf_counter() > give_up:
                return self
            await asyncio.sleep(0.01)

    def result(
        self,
        target: _Target,
        seconds: float,
        clients: int | None = None,
        rate_per_s: float | None = None,
    ) -> LoadResult:
        """Summarize, or say why there is nothing to summarize."""
        if not self.samples_ms or self.server is None:
            what = "; ".join(f"{n} × {kind}" for kind, n in self.errors.most_common(3))
            raise BenchError(f"{target.model} at {target.url} answered no request: {what}")
        if self.errors:
            logger.warning("%s: %d requests failed", target.model, self.errors.total())
        return LoadResult(
            model=target.model,
            protocol=target.options.protocol,
            batch=target.batch,
            clients=clients,
            rate_per_s=rate_per_s,
            seconds=seconds,
            n=len(self.samples_ms),
            errors=dict(self.errors),
            images_per_s=self.requests_per_s * target.batch,
            latency_ms=Percentiles.of(self.samples_ms),
            late_ms=float(np.percentile(self.late_ms, 95)) if self.late_ms else 0.0,
            server=self.server,
            samples_ms=np.asarray(self.samples_ms),
        )


async def _ask_in_turn(sender: _Sender, clients: int, seconds: float, limit: int) -> _Outcome:
    """Closed loop. The rate counts up to the last answer, so it never exceeds what was served."""
    samples: list[float] = []
    errors: Counter[str] = Counter()
    begin = last = time.perf_counter()
    sent = 0

    async def one_client() -> None:
        nonlocal sent, last
        while (start := time.perf_counter()) < begin + seconds and sent < limit:
            sent += 1
            error = await sender.send()
            if error is None:
                last = time.perf_counter()
                samples.append(1e3 * (last - start))
            else:
                errors[error] += 1
                await asyncio.sleep(ERROR_PAUSE_S)

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return _Outcome(samples, len(samples) / max(last - begin, 1e-9), errors)


async def _ask_on_schedule(
    sender: _Sender, due_s: NDArray[np.float64], max_in_flight: int
) -> _Outcome:
    """Open loop. Latency counts from the moment a request was due, not from when it was sent."""
    samples: list[float] = []
    late: list[float] = []
    errors: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()

    async def one_request(due: float) -> None:
        late.append(1e3 * (time.perf_counter() - due))
        error = await sender.send()
        if error is None:
            samples.append(1e3 * (time.perf_counter() - due))
        else:
            errors[error] += 1

    for due in begin + due_s:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if len(tasks) >= max_in_flight:
            errors["dropped: too many requests under way"] += 1
            await asyncio.sleep(0)  # let the ones under way come back
            continue
        task = asyncio.create_task(one_request(float(due)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    elapsed = max(time.perf_counter() - begin, 1e-9)
    return _Outcome(samples, len(samples) / elapsed, errors, late)


def _run(target: _Target, load: Callable[[_Sender], Any], connections: int) -> _Outcome:
    """Run the load in an event loop and a thread of its own: a notebook's loop is already busy."""

    async def main() -> _Outcome:
        kind = _HttpSender if target.options.protocol == "http" else _GrpcSender
        sender: _Sender = kind(target, connections)
        try:
            return await load(sender)
        finally:
            await sender.close()

    def run() -> _Outcome:
        # epoll, asyncio's choice, rounds waits up to a millisecond: too coarse for a schedule.
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
        ) as runner:
            return runner.run(main())

    with ThreadPoolExecutor(1, thread_name_prefix="labkit-bench") as pool:
        return pool.submit(run).result()


# -- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InstanceMemory:
    """Memory of one stub process, which serves one instance of a stand-in.

    Attributes:
        rss_mib: Resident, shared libraries counted in full.
        own_mib: Resident and shared with no other process: what one more instance costs.
    """

    rss_mib: float
    own_mib: float


def instance_memory(pid: int) -> dict[str, list[InstanceMemory]]:
    """Return the memory of every Python stub below process `pid`, by model.

    Native backends run inside the server's own process and have no entry.
    """
    found: dict[str, list[InstanceMemory]] = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            command = process.cmdline()
            if not command or not command[0].endswith("triton_python_backend_stub"):
                continue
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        names = [match[1] for word in command if (match := re.fullmatch(r"(.+)_\d+_\d+", word))]
        entry = InstanceMemory(memory.rss / 2**20, memory.uss / 2**20)
        found.setdefault(names[-1] if names else "?", []).append(entry)
    return found
