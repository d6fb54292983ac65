"""The arithmetic of the load generator, on known answers."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lesson import run_cells

from labkit import bench
from labkit.bench import BenchError, LoadResult, Percentiles, Repeated, ServerSplit
from labkit.bench.senders import HttpSender
from labkit.bench.target import LoadOptions, Target
from labkit.client import ModelCard


def test_percentiles_of_known_samples() -> None:
    result = Percentiles.of(np.arange(1, 102))  # 1 … 101: percentile p is 1 + p
    assert (result.n, result.mean, result.max) == (101, 51, 101)
    assert (result.p50, result.p95, result.p99) == (51, 96, 100)


@pytest.mark.parametrize(
    ("n", "p95", "p99"),
    [(19, False, False), (20, True, False), (99, True, False), (100, True, True)],
)
def test_no_percentile_from_too_few_samples(n: int, p95: bool, p99: bool) -> None:
    result = Percentiles.of(np.ones(n))
    assert (result.p95 is not None, result.p99 is not None) == (p95, p99)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(BenchError, match="no request was answered"):
        Percentiles.of([])


def test_poisson_schedule_is_a_poisson_process() -> None:
    times = bench.poisson_schedule(1000, 10, seed=1)
    assert np.all(np.diff(times) > 0) and times[0] >= 0 and times[-1] < 10
    assert len(times) == pytest.approx(10_000, abs=400)  # 4 standard deviations
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)  # exponential: deviation equals mean


def test_poisson_schedule_is_seeded_and_never_empty() -> None:
    assert np.array_equal(bench.poisson_schedule(50, 2, 7), bench.poisson_schedule(50, 2, 7))
    assert not np.array_equal(bench.poisson_schedule(50, 2, 7), bench.poisson_schedule(50, 2, 8))
    assert len(bench.poisson_schedule(0.01, 0.01)) == 1


def stats(
    requests: int, executions: int, rows: int, ns: int, sizes: dict[int, int]
) -> dict[str, Any]:
    kinds = ("queue", "compute_input", "compute_infer", "compute_output")
    return {
        "inference_count": rows,
        "execution_count": executions,
        "inference_stats": {
            "success": {"count": requests, "ns": 4 * ns},
            "fail": {"count": 0, "ns": 0},
            **{kind: {"count": requests, "ns": ns * (i + 1)} for i, kind in enumerate(kinds)},
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": {"count": count, "ns": 1}}
            for size, count in sizes.items()
        ],
    }


BEFORE = stats(10, 10, 10, 1_000_000, {1: 10})
AFTER = stats(30, 15, 30, 21_000_000, {1: 10, 4: 5})


def test_server_split_is_the_difference_of_two_readings() -> None:
    split = ServerSplit.between(BEFORE, AFTER)
    assert (split.requests, split.executions, split.inferences) == (20, 5, 20)
    assert split.mean_batch == 4
    assert (split.queue_ms, split.compute_input_ms) == (1, 2)
    assert split.compute_ms == 2 + 3 + 4
    assert split.batch_histogram == {4: 5}  # sizes that did not occur in between are left out


def test_merged_splits_weigh_by_requests() -> None:
    one = ServerSplit(1, 0, 1, 1, 4.0, 0, 0, 0, {1: 1})
    three = ServerSplit(3, 1, 6, 2, 0.0, 0, 0, 0, {1: 1, 5: 1})
    merged = ServerSplit.merge([one, three])
    assert merged.queue_ms == 1.0
    assert (merged.requests, merged.failures, merged.inferences) == (4, 1, 7)
    assert merged.batch_histogram == {1: 2, 5: 1}


def result(rate: float, samples: list[float], errors: dict[str, int] | None = None) -> LoadResult:
    split = ServerSplit.between(BEFORE, AFTER)
    return LoadResult("net", 1, 2, None, 1.0, rate, np.array(samples), split, errors or {})


def test_repeat_takes_the_cases_in_turn_and_back() -> None:
    order: list[str] = []

    def case(name: str, rate: float) -> LoadResult:
        order.append(name)
        return result(rate, [1.0, 3.0], {"timeout": 1})

    cases = {
        name: (lambda n=name, r=rate: case(n, r)) for name, rate in {"a": 10.0, "b": 20.0}.items()
    }
    repeated = bench.repeat(cases, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert repeated["b"].images_per_s.median == 20.0
    assert repeated["a"].latency_ms.n == 6  # percentiles over all requests of all rounds
    assert repeated["a"].errors == {"timeout": 3}


def test_results_become_json() -> None:
    repeated = Repeated.of([result(1.0, [1.0]), result(3.0, [2.0])])
    text = json.dumps(repeated.to_dict(), allow_nan=False)
    assert json.loads(text)["server"]["batch_histogram"] == {"4": 10}
    assert repeated.to_dict()["images_per_s"] == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 2}


def test_repeats_below_one_are_refused() -> None:
    with pytest.raises(BenchError, match="repeats=0"):
        bench.repeat({}, 0)


MIXED = ModelCard.parse(
    {
        "name": "mixed",
        "inputs": [
            {"name": "f", "datatype": "FP16", "shape": [-1, 3]},
            {"name": "i", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "t", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "b", "datatype": "BOOL", "shape": [-1, 2]},
        ],
        "outputs": [{"name": "o", "datatype": "FP32", "shape": [-1, 1]}],
    },
    {"max_batch_size": 4},
)


def test_random_inputs_fit_any_metadata() -> None:
    arrays = bench.random_inputs(MIXED, 4)
    assert {name: (a.dtype, a.shape) for name, a in arrays.items()} == {
        "f": (np.float16, (4, 3)),
        "i": (np.int64, (4, 1)),
        "t": (np.object_, (4, 1)),
        "b": (np.bool_, (4, 2)),
    }


def test_a_batch_above_the_limit_is_refused() -> None:
    with pytest.raises(BenchError, match="at most 4"):
        bench.random_inputs(MIXED, 5)


@pytest.mark.parametrize("url", ["10.0.0.1:8000", "example.org:8000", "0.0.0.0:8000"])
def test_load_on_other_machines_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match="this machine only"):
        bench.closed_loop(url, "net")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.9.9.9:1"])
def test_this_machine_is_accepted(url: str) -> None:
    assert bench.require_loopback(url) == url


@pytest.mark.parametrize(
    "wrong", [{"clients": 0}, {"clients": 10_000}, {"seconds": 0}, {"seconds": 1e6}, {"batch": 0}]
)
def test_unbounded_load_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match=f"{next(iter(wrong))}=.*expected"):
        bench.closed_loop("127.0.0.1:1", "net", **wrong)


def test_a_server_that_hangs_up_is_an_error_of_that_request() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def ask() -> str | None:
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            arrays = {"x": np.ones((1, 4), np.float32)}
            target = Target(f"{host}:{port}", "net", 1, arrays, ("y",), LoadOptions())
            sender = HttpSender(target, connections=1)
            try:
                return await sender.send()
            finally:
                await sender.close()

    assert asyncio.run(ask()) == "ServerDisconnectedError"


# The load generator of notebook 07


@pytest.fixture(scope="module")
def page() -> SimpleNamespace:
    """The functions that stand in the cells of notebook 07."""
    cells = ("percentiles", "statistics", "closed-loop", "poisson", "ex-07-open-loop")
    return run_cells("07_tune", "imports", *cells)


def test_the_page_subtracts_as_the_library_does(page: SimpleNamespace) -> None:
    assert ServerSplit(**page.difference(BEFORE, AFTER)) == ServerSplit.between(BEFORE, AFTER)


@pytest.mark.parametrize("n", [1, 19, 20, 99, 100, 500])
def test_the_pages_percentiles_are_the_librarys(page: SimpleNamespace, n: int) -> None:
    samples = list(np.random.default_rng(n).exponential(5, n))
    ours = Percentiles.of(samples)
    assert page.percentiles(samples) == {"p50": ours.p50, "p95": ours.p95, "p99": ours.p99}


def test_the_pages_arrivals_are_a_poisson_process(page: SimpleNamespace) -> None:
    times = page.poisson(1000, 10, seed=1)
    assert np.all(np.diff(times) > 0) and times[0] >= 0 and times[-1] < 10
    assert len(times) == pytest.approx(10_000, abs=400)  # 4 standard deviations
    assert np.diff(times).std() == pytest.approx(1e-3, rel=0.05)  # deviation equals mean


def test_the_pages_closed_loop_keeps_each_client_busy(page: SimpleNamespace) -> None:
    under_way, most = [], []

    def send() -> None:
        under_way.append(None)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.pop()

    latencies_ms = page.closed_loop(send, 4, 0.4)
    assert max(most) == 4
    assert len(latencies_ms) == len(most) and min(latencies_ms) >= 20


def test_the_pages_open_loop_waits_for_nobody_and_counts_from_due(page: SimpleNamespace) -> None:
    together = threading.Barrier(4)  # answers when all are under way, and never to one at a time
    due_s = np.array([-0.5, 0.0, 0.01, 0.02])
    latencies_ms = page.open_loop(lambda: together.wait(timeout=10), due_s)
    answered_ms = latencies_ms + 1e3 * due_s  # since the load began
    assert min(answered_ms) >= 20
    assert np.ptp(answered_ms) < 150
