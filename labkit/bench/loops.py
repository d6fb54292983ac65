"""Closed and open loop in an event loop of their own, and repetition in turn."""

from __future__ import annotations

import asyncio
import logging
import selectors
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labkit.bench.results import BenchError, LoadResult, Repeated, ServerSplit
from labkit.bench.senders import GrpcSender, HttpSender, Sender
from labkit.bench.target import DEFAULTS, MAX_SECONDS, LoadOptions, Target, within
from labkit.compare import Key, in_turn

logger = logging.getLogger(__name__)
ERROR_PAUSE_S = 0.01  # a refused request returns at once: without a pause errors would be a flood
STATISTICS_WAIT_S = 0.5  # Triton books a request just after its answer has left
MAX_CONCURRENCY = 256


def repeat(cases: Mapping[Key, Callable[[], LoadResult]], repeats: int) -> dict[Key, Repeated]:
    """Measure every case once per round, in turn; see `in_turn`.

    Raises:
        BenchError: no rounds, or a case that brought back nothing.
    """
    if repeats < 1:
        raise BenchError(f"got repeats={repeats}, expected at least 1")
    runs = in_turn(cases, repeats)
    return {name: Repeated.of(results) for name, results in runs.items()}


def closed_loop(
    url: str,
    model: str,
    *,
    clients: int = 1,
    batch: int = 1,
    seconds: float = 2.0,
    options: LoadOptions = DEFAULTS,
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
    within("clients", clients, 1, MAX_CONCURRENCY)
    within("seconds", seconds, 0.01, MAX_SECONDS)
    target = Target.prepare(url, model, batch, options)

    async def load(sender: Sender) -> Asked:
        await ask_in_turn(sender, clients, options.warmup_s, options.max_requests)
        before = await _settled_statistics(sender)
        outcome = await ask_in_turn(sender, clients, seconds, options.max_requests)
        return await outcome.finish(sender, before)

    outcome = run_load(target, load, connections=clients)
    return outcome.result(target, seconds, clients)


def poisson_schedule(rate_per_s: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Return the arrival times of a Poisson process in [0, seconds), sorted, at least one."""
    rng = np.random.default_rng(seed)
    count = int(rate_per_s * seconds + 10 * (rate_per_s * seconds) ** 0.5 + 10)  # 10 sigma spare
    times = np.cumsum(rng.exponential(1 / rate_per_s, count))
    return times[times < seconds] if times[0] < seconds else np.zeros(1)


async def _settled_statistics(sender: Sender) -> dict[str, Any]:
    """Return the server's counters once they rest: what warmed up is booked, and not counted."""
    give_up = time.perf_counter() + STATISTICS_WAIT_S
    last = await sender.statistics()
    while time.perf_counter() < give_up:
        await asyncio.sleep(0.02)
        now = await sender.statistics()
        if ServerSplit.between(last, now).requests == 0:
            return now
        last = now
    return last


@dataclass
class Asked:
    """What came back, before it is summarized."""

    samples_ms: list[float]
    requests_per_s: float
    errors: Counter[str]
    late_ms: list[float] = field(default_factory=list)
    server: ServerSplit | None = None

    async def finish(self, sender: Sender, before: Mapping[str, Any]) -> Self:
        """Read the server's counters once it has booked what was answered."""
        give_up = time.perf_counter() + STATISTICS_WAIT_S
        while True:
            self.server = ServerSplit.between(before, await sender.statistics())
            booked = self.server.requests >= len(self.samples_ms)
            if booked or time.perf_counter() > give_up:
                return self
            await asyncio.sleep(0.01)

    def result(self, target: Target, seconds: float, clients: int) -> LoadResult:
        """Summarize, or say why there is nothing to summarize."""
        if not self.samples_ms or self.server is None:
            what = "; ".join(f"{n} × {kind}" for kind, n in self.errors.most_common(3))
            raise BenchError(f"{target.model} at {target.url} answered no request: {what}")
        if self.errors:
            logger.warning("%s: %d requests failed", target.model, self.errors.total())
        return LoadResult(
            model=target.model,
            batch=target.batch,
            clients=clients,
            rate_per_s=None,
            seconds=seconds,
            images_per_s=self.requests_per_s * target.batch,
            samples_ms=np.asarray(self.samples_ms),
            server=self.server,
            errors=dict(self.errors),
            protocol=target.options.protocol,
        )


async def ask_in_turn(
    sender: Sender,
    clients: int,
    seconds: float,
    limit: int,
    stop: Callable[[], bool] = lambda: False,
) -> Asked:
    """Closed loop. The rate counts up to the last answer, so it never exceeds what was served."""
    samples: list[float] = []
    errors: Counter[str] = Counter()
    begin = last = time.perf_counter()
    sent = 0

    async def one_client() -> None:
        nonlocal sent, last
        while (start := time.perf_counter()) < begin + seconds and sent < limit and not stop():
            sent += 1
            error = await sender.send()
            if error is None:
                last = time.perf_counter()
                samples.append(1e3 * (last - start))
            else:
                errors[error] += 1
                await asyncio.sleep(ERROR_PAUSE_S)

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return Asked(samples, len(samples) / max(last - begin, 1e-9), errors)


async def ask_on_schedule(sender: Sender, due_s: NDArray[np.float64], max_in_flight: int) -> Asked:
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
    return Asked(samples, len(samples) / elapsed, errors, late)


def run_load(target: Target, load: Callable[[Sender], Any], connections: int) -> Asked:
    """Run the load in an event loop and a thread of its own: a notebook's loop is already busy."""

    async def main() -> Asked:
        kind = HttpSender if target.options.protocol == "http" else GrpcSender
        sender: Sender = kind(target, connections)
        try:
            return await load(sender)
        finally:
            await sender.close()

    def run() -> Asked:
        # epoll, asyncio's choice, rounds waits up to a millisecond: too coarse for a schedule.
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
        ) as runner:
            return runner.run(main())

    with ThreadPoolExecutor(1, thread_name_prefix="labkit-bench") as pool:
        return pool.submit(run).result()
