"""The client against a real Triton: both protocols, any dtype, any batch, every refusal."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import STRINGS
from toy_models import write_toy_models

from labkit import client as lab
from labkit.client import LabClient
from labkit.server import TritonServer


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
def client(server: TritonServer, request: pytest.FixtureRequest) -> Iterator[LabClient]:
    address = {"http": server.http, "grpc": server.grpc}[request.param]
    with LabClient(address, request.param, timeout_s=20) as made:
        yield made


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, 3, 32, 32), dtype=np.float32)


def scores(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1)[:, :10]


def statistics(server: TritonServer) -> dict[str, Any]:
    address = f"http://{server.http}/v2/models/toy/stats"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)["model_stats"][0]["inference_stats"]


def test_health_and_index(client: LabClient) -> None:
    assert client.live() and client.ready() and client.ready("toy")
    assert not client.ready("nope")
    toys = ["broken", "flat", *(["mixed"] if STRINGS else []), "sleepy", "toy"]
    assert client.models() == toys
    assert "classification" in client.server()["extensions"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_session_that_has_ended_keeps_no_stopping_server_waiting(
    server: TritonServer, tmp_path: Path, protocol: str
) -> None:
    with TritonServer(
        server.repository, models=["toy"], log_path=tmp_path / "log", allow_python_models=True
    ) as own:
        address = {"http": own.http, "grpc": own.grpc}[protocol]
        with LabClient(address, protocol, timeout_s=20) as client:
            client.infer("toy", images(2))
    assert "Exit timeout expired" not in (tmp_path / "log").read_text()


def test_metadata_and_config_read_the_same_over_both_protocols(server: TritonServer) -> None:
    with LabClient(server.http) as http, LabClient(server.grpc, "grpc") as grpc:
        assert http.metadata("toy") == grpc.metadata("toy")
        assert http.config("toy") == grpc.config("toy")
        assert http.card("flat") == grpc.card("flat")


@pytest.mark.parametrize("model", ["toy", "flat"])
@pytest.mark.parametrize("n", [1, 8, 9, 30])
def test_any_number_of_images_comes_back_in_order(client: LabClient, model: str, n: int) -> None:
    pixels = images(n)
    assert np.array_equal(client.infer(model, pixels), scores(pixels))


def test_a_large_batch_is_cut_into_requests_that_the_server_takes(
    client: LabClient, server: TritonServer, eventually: Callable[..., None]
) -> None:
    def answered() -> int:
        return statistics(server)["success"]["count"]

    before = answered()
    client.infer("toy", images(20))
    # 8 + 8 + 4; the server counts a request after it has answered.
    eventually(lambda: answered() - before == 3, lambda: answered() - before)


def test_json_and_binary_agree_exactly(server: TritonServer) -> None:
    pixels = images(3)
    with LabClient(server.http) as client:
        assert np.array_equal(client.infer("toy", pixels, binary=False), scores(pixels))


def test_arrays_that_are_not_contiguous_arrive_right(client: LabClient) -> None:
    pixels = images(4).transpose(0, 1, 3, 2)
    assert np.array_equal(client.infer("toy", pixels), scores(pixels))


@pytest.mark.native  # strings cross through a stub that was built here
def test_several_inputs_of_other_dtypes(client: LabClient) -> None:
    ids = np.arange(12, dtype=np.int64).reshape(6, 2)
    words = np.array([[b"a"], [b"bb"], [b""], [b"dddd"], ["é".encode()], [b"f"]], dtype=object)
    answer = client.infer("mixed", {"ids": ids, "words": words})  # 6 rows: two requests
    lengths = np.array([[1], [2], [0], [4], [2], [1]])
    assert answer["sums"].dtype == np.int64
    assert np.array_equal(answer["sums"], ids.sum(axis=1, keepdims=True) + lengths)
    assert answer["echo"].tolist() == words.tolist()


@pytest.mark.parametrize(
    ("model", "arrays", "kind", "words"),
    [
        (
            "toy",
            {"pixels": np.zeros((1, 3, 28, 28), np.float32)},
            lab.InvalidRequest,
            "[1,3,28,28]",
        ),
        ("toy", {"pixels": np.zeros((1, 3, 32, 32), np.uint8)}, lab.InvalidRequest, "UINT8"),
        ("toy", {"image": images(1)}, lab.InvalidRequest, "'image'"),
        ("toy", {"pixels": images(9)}, lab.InvalidRequest, "must be <= 8"),
        pytest.param(
            "mixed",
            {"ids": np.zeros((1, 1), np.int64)},
            lab.InvalidRequest,
            "expected",
            marks=pytest.mark.native,
        ),
        ("broken", {"pixels": images(1)}, lab.ServerFault, "out of chalk"),
    ],
)
def test_what_the_server_refuses_keeps_its_words(
    client: LabClient,
    model: str,
    arrays: dict[str, np.ndarray],
    kind: type[lab.ClientError],
    words: str,
) -> None:
    with pytest.raises(kind) as caught:
        client.infer(model, arrays, check=False)
    assert words in caught.value.server_message
    assert caught.value.server_message in str(caught.value)
    assert type(caught.value) is kind


def test_an_unknown_model_names_the_known_ones(client: LabClient) -> None:
    with pytest.raises(lab.NotFound, match=r"served here: broken, flat") as caught:
        client.infer("nope", images(1))
    assert caught.value.status in ("404", "NOT_FOUND")


def test_checks_speak_before_anything_is_sent(client: LabClient, server: TritonServer) -> None:
    before = statistics(server)
    with pytest.raises(lab.BadInput, match="preprocess"):
        client.infer("toy", images(1) * 255)
    assert statistics(server) == before


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_slow_model_is_a_timeout_and_the_client_lives_on(
    server: TritonServer, protocol: lab.Protocol
) -> None:
    address = {"http": server.http, "grpc": server.grpc}[protocol]
    with LabClient(address, protocol, timeout_s=0.02) as hasty:
        hasty.timeout_s = 20  # only the request itself is to be hasty, not the test's preparation
        with pytest.raises(lab.Timeout):
            hasty.infer("sleepy", {"pixels": images(1)}, check=False)
        assert hasty.live()


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [("grpc", "http"), ("metrics", "http"), ("http", "grpc"), ("metrics", "grpc")],
)
def test_the_wrong_port_says_which_port_is_which(
    server: TritonServer, endpoint: str, protocol: lab.Protocol
) -> None:
    with (
        LabClient(getattr(server, endpoint), protocol, timeout_s=5) as lost,
        pytest.raises(lab.Unreachable, match="8000 is HTTP, 8001 gRPC, 8002 metrics"),
    ):
        lost.ready()


def test_metrics_count_the_images(server: TritonServer) -> None:
    def count() -> float:
        return next(
            s.value
            for s in lab.metrics(server.metrics)
            if s.name == "nv_inference_count" and s.labels["model"] == "flat"
        )

    before = count()
    with LabClient(server.http) as client:
        client.infer("flat", images(1))
    give_up = time.monotonic() + 5  # the page is written a little after the answer
    while count() == before and time.monotonic() < give_up:
        time.sleep(0.05)
    assert count() == before + 1


def test_a_restarted_server_is_found_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = write_toy_models(tmp_path_factory.mktemp("restart"))
    first = TritonServer(
        repository,
        models=["toy"],
        log_path=repository.parent / "one.log",
        allow_python_models=True,
    )
    with first:
        port = int(first.http.rsplit(":", 1)[1])
        client = LabClient(first.http, timeout_s=5)
        assert client.live()
        # An open keep-alive connection delays the exit; the server must not wait for ever.
    with pytest.raises(lab.Unreachable):
        client.live()
    with TritonServer(
        repository,
        http_port=port,
        models=["toy"],
        log_path=repository.parent / "two.log",
        allow_python_models=True,
    ):
        assert client.infer("toy", images(2)).shape == (2, 10)
        client.close()
