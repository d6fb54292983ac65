"""The load generator against models whose behaviour is known."""

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import STRINGS
from toy_models import SLEEP_S, write_toy_models

from labkit.bench import BenchError, LoadOptions, closed_loop, instance_memory
from labkit.bench.target import Target
from labkit.client import Protocol
from labkit.operate.load import Load, LoadProfile, aimed_at
from labkit.server import TritonServer

SLEEP_MS = 1e3 * SLEEP_S


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = write_toy_models(tmp_path_factory.mktemp("toys"), STRINGS)
    with TritonServer(
        repository,
        log_path=repository.parent / "triton.log",
        allow_python_models=True,
    ) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


def address(server: TritonServer, protocol: Protocol) -> str:
    return {"http": server.http, "grpc": server.grpc}[protocol]


def test_a_known_delay_is_the_latency_and_sets_the_throughput(
    server: TritonServer, protocol: Protocol
) -> None:
    options = LoadOptions(protocol, warmup_s=0.1)
    result = closed_loop(address(server, protocol), "sleepy", batch=4, seconds=1, options=options)
    assert SLEEP_MS <= result.latency_ms.p50 < 1.8 * SLEEP_MS
    # One client: Little's law ties the two together.
    assert result.images_per_s == pytest.approx(4e3 / result.latency_ms.mean, rel=0.05)
    assert result.latency_ms.p99 is None  # about 20 samples are too few
    assert result.server.compute_infer_ms == pytest.approx(SLEEP_MS, rel=0.5)
    assert result.server.queue_ms < SLEEP_MS / 2
    assert result.server.batch_histogram == {4: result.n}


def test_clients_beyond_the_instances_wait_in_the_queue(server: TritonServer) -> None:
    result = closed_loop(server.http, "sleepy", clients=4, seconds=1.5)
    assert 3 * SLEEP_MS < result.latency_ms.p50 < 6 * SLEEP_MS  # one works, three wait
    assert result.server.queue_ms > 2 * SLEEP_MS
    assert result.server.queue_ms + result.server.compute_ms < result.latency_ms.mean * 1.05
    assert 0.7 / SLEEP_S < result.images_per_s <= 1 / SLEEP_S


def test_the_server_counted_exactly_what_was_answered(
    server: TritonServer, protocol: Protocol
) -> None:
    options = LoadOptions(protocol, warmup_s=0.2)
    result = closed_loop(
        address(server, protocol), "toy", clients=8, batch=2, seconds=0.5, options=options
    )
    assert result.errors == {}
    assert result.server.requests == result.n
    assert result.server.inferences == 2 * result.n
    assert sum(k * v for k, v in result.server.batch_histogram.items()) == 2 * result.n
    assert result.server.executions < result.n  # dynamic batching joined some


def test_an_open_loop_charges_the_wait_to_the_late_requests(server: TritonServer) -> None:
    # Twice as many requests as `sleepy` can answer: the queue grows to the end.
    target = aimed_at(server.http, "sleepy")
    with Load(target, LoadProfile(rate_per_s=2 / SLEEP_S, seconds=1)) as load:
        record = load.finish()
    assert record.rate_per_s < 1.02 / SLEEP_S  # it answers what it can
    assert record.latency_ms().max > 5 * SLEEP_MS  # and the last ones waited for half a second
    closed = closed_loop(server.http, "sleepy", clients=1, seconds=0.5)
    assert record.latency_ms().p50 > 2 * closed.latency_ms.p50  # which a closed loop never shows


def test_an_open_loop_below_capacity_keeps_the_rate(server: TritonServer) -> None:
    target = aimed_at(server.http, "toy")
    with Load(target, LoadProfile(rate_per_s=100, seconds=2)) as load:
        record = load.finish()
    assert record.errors == {}
    assert record.rate_per_s == pytest.approx(100, rel=0.35)
    assert record.late_ms < 50


def test_arrivals_beyond_the_limit_are_counted_as_dropped(server: TritonServer) -> None:
    target = Target.prepare(server.http, "sleepy", 1, LoadOptions(max_in_flight=2))
    with Load(target, LoadProfile(rate_per_s=200, seconds=0.5)) as load:
        record = load.finish()
    assert record.dropped > 0
    assert len(record.answers) + record.dropped > 60


def test_the_number_of_requests_is_bounded(server: TritonServer) -> None:
    options = LoadOptions(max_requests=7, warmup_s=0)
    assert closed_loop(server.http, "toy", clients=3, seconds=60, options=options).n == 7


def test_only_errors_is_an_error_with_the_servers_words(
    server: TritonServer, protocol: Protocol
) -> None:
    options = LoadOptions(protocol, warmup_s=0)
    with pytest.raises(BenchError, match="out of chalk"):
        closed_loop(address(server, protocol), "broken", seconds=0.2, options=options)


def test_timeouts_are_errors_not_latencies(server: TritonServer, protocol: Protocol) -> None:
    options = LoadOptions(protocol, warmup_s=0, timeout_s=SLEEP_S / 2)
    with pytest.raises(BenchError, match="× timeout"):
        closed_loop(address(server, protocol), "sleepy", seconds=0.2, options=options)


@pytest.mark.native  # strings cross through a stub that was built here
def test_any_model_can_be_loaded(server: TritonServer, protocol: Protocol) -> None:
    url, options = address(server, protocol), LoadOptions(protocol, warmup_s=0.1)
    assert closed_loop(url, "mixed", batch=3, seconds=0.2, options=options).n > 0
    assert closed_loop(url, "flat", batch=3, seconds=0.2, options=options).n > 0


def test_given_inputs_must_have_the_batch(server: TritonServer) -> None:
    options = LoadOptions(inputs={"pixels": np.zeros((3, 3, 32, 32), np.float32)})
    with pytest.raises(BenchError, match="batch=2"):
        closed_loop(server.http, "toy", batch=2, options=options)


def test_each_instance_is_a_process_with_memory_of_its_own(server: TritonServer) -> None:
    assert server.pid is not None
    memory = instance_memory(server.pid)
    assert {name: len(rows) for name, rows in memory.items()} == dict.fromkeys(
        ["toy", "flat", "sleepy", "broken", *(["mixed"] if STRINGS else [])], 1
    )
    assert all(row.rss_mib > row.own_mib > 1 for rows in memory.values() for row in rows)
