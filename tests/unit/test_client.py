"""The client without a server: what it refuses, how it cuts, what it makes of errors."""

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from labkit import client as lab
from labkit.client import BadInput, LabClient, ModelCard

METADATA = {
    "name": "net",
    "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
    "outputs": [
        {"name": "features", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, 10]},
    ],
}
CONFIG = {
    "max_batch_size": 8,
    "output": [{"name": "features"}, {"name": "scores", "label_filename": "labels.txt"}],
}
CARD = ModelCard.parse(METADATA, CONFIG)


def images(n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((n, 3, 32, 32), dtype=np.float32)


def test_importing_the_client_does_not_import_torch() -> None:
    code = "import labkit.client, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_card_takes_names_and_limit_from_the_server() -> None:
    assert CARD.inputs[0].shape == (-1, 3, 32, 32)
    assert CARD.max_batch_size == 8


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (images().astype(np.float64), ["FP32", "float64", "astype(np.float32)"]),
        (np.zeros((2, 3, 32, 32), np.uint8), ["uint8", "labkit.data.preprocess"]),
        (images()[0], ["(N, 3, 32, 32)", "(3, 32, 32)", "images[None]"]),
        (images().transpose(0, 2, 3, 1), ["(2, 32, 32, 3)", "transpose(0, 3, 1, 2)"]),
        (np.zeros((2, 3, 28, 28), np.float32), ["(2, 3, 28, 28)"]),
        (images(0), ["nothing in it"]),
    ],
)
def test_a_misfit_is_named_with_got_expected_and_remedy(
    array: np.ndarray, words: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        lab.check_inputs(CARD, {"pixels": array})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_input_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no input 'image'; its inputs: pixels"):
        lab.check_inputs(CARD, {"image": images()})


def test_inputs_must_agree_on_the_batch() -> None:
    two = {**METADATA, "inputs": [dict(METADATA["inputs"][0], name=n) for n in "ab"]}  # type: ignore[index]
    with pytest.raises(BadInput, match=r"batch size \(a: 2, b: 3\)"):
        lab.check_inputs(ModelCard.parse(two, CONFIG), {"a": images(2), "b": images(3)})


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf])
def test_images_out_of_range_are_refused(value: float) -> None:
    array = images()
    array[0, 0, 0, 0] = value
    with pytest.raises(BadInput, match=r"\[0, 1\]"):
        lab.check_range(CARD, array)


def test_the_whole_range_is_accepted() -> None:
    lab.check_range(CARD, np.array([0.0, 1.0], np.float32))


@pytest.mark.parametrize(
    ("rows", "limit", "sizes"),
    [(1, 8, [1]), (8, 8, [8]), (9, 8, [8, 1]), (20, 8, [8, 8, 4]), (20, 0, [20])],
)
def test_split_never_exceeds_the_limit_and_loses_nothing(
    rows: int, limit: int, sizes: list[int]
) -> None:
    array = images(rows)
    pieces = [piece["pixels"] for piece in lab.split({"pixels": array}, limit)]
    assert [len(piece) for piece in pieces] == sizes
    assert np.array_equal(np.concatenate(pieces), array)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://127.0.0.1:8000/", "grpc://127.0.0.1:8000"]
)
def test_scheme_and_slash_are_dropped(url: str) -> None:
    assert lab.host_and_port(url) == "127.0.0.1:8000"


@pytest.mark.parametrize("url", ["", "localhost", "http://", "a b:1", ":8000"])
def test_an_address_without_host_or_port_is_refused(url: str) -> None:
    with pytest.raises(lab.ClientError, match="host:port"):
        LabClient(url)


def test_unknown_protocol_and_timeout_are_refused() -> None:
    with pytest.raises(lab.ClientError, match="'http' or 'grpc'"):
        LabClient("127.0.0.1:1", "ftp")  # type: ignore[arg-type]
    with pytest.raises(lab.ClientError, match="timeout_s"):
        LabClient("127.0.0.1:1", timeout_s=0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400", lab.InvalidRequest),
        ("404", lab.NotFound),
        ("500", lab.ServerFault),
        ("501", lab.Unsupported),
        ("503", lab.Unavailable),
        ("StatusCode.INVALID_ARGUMENT", lab.InvalidRequest),
        ("StatusCode.NOT_FOUND", lab.NotFound),
        ("StatusCode.INTERNAL", lab.ServerFault),
        ("StatusCode.UNIMPLEMENTED", lab.Unsupported),
        ("StatusCode.UNAVAILABLE", lab.Unavailable),
        ("StatusCode.DEADLINE_EXCEEDED", lab.Timeout),
        ("418", lab.ClientError),
        (None, lab.ClientError),
    ],
)
def test_both_protocols_end_in_the_same_errors(
    status: str | None, kind: type[lab.ClientError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise InferenceServerException(msg="[request id: <id_unknown>] too bad", status=status)

    with LabClient("127.0.0.1:1") as client:
        monkeypatch.setattr(client._transport, "server", fail)
        with pytest.raises(lab.ClientError) as caught:
            client.server()
    assert type(caught.value) is kind
    assert caught.value.server_message == "too bad"
    assert caught.value.status == (status or "").removeprefix("StatusCode.")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nothing_there_is_one_sentence_with_the_ports(
    protocol: lab.Protocol, closed_port: int
) -> None:
    with (
        LabClient(f"127.0.0.1:{closed_port}", protocol) as client,
        pytest.raises(lab.Unreachable, match=r"8000 is HTTP, 8001 gRPC, 8002 metrics"),
    ):
        client.ready()


def test_no_metrics_there(closed_port: int) -> None:
    with pytest.raises(lab.Unreachable, match=r"connection refused.*8002"):
        lab.metrics(f"127.0.0.1:{closed_port}")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_never_answers_is_a_timeout(protocol: lab.Protocol) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            LabClient(address, protocol, timeout_s=0.2) as client,
            pytest.raises(lab.Timeout, match=r"within 0\.2 s"),
        ):
            client.live()


def test_closed_and_foreign_clients_say_so() -> None:
    client = LabClient("127.0.0.1:1")
    caught: list[Exception] = []

    def elsewhere() -> None:
        try:
            client.live()
        except lab.ClientError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "another thread" in str(caught[0])
    client.close()
    client.close()
    with pytest.raises(lab.ClientError, match="closed"):
        client.live()


@pytest.fixture
def page() -> Iterator[str]:
    text = (
        "# HELP nv_inference_count Images\n# TYPE nv_inference_count counter\n"
        'nv_inference_count{model="net",version="1"} 23\n'
        "# HELP nv_cpu_utilization Share\n# TYPE nv_cpu_utilization gauge\nnv_cpu_utilization 0.5\n"
    )

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_metrics_keep_the_names_of_the_page(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a proxy must not be asked
    assert lab.metrics(page) == [
        ("nv_inference_count", {"model": "net", "version": "1"}, 23.0),
        ("nv_cpu_utilization", {}, 0.5),
    ]


def test_plain_gives_the_shape_of_the_http_answer() -> None:
    config = model_config_pb2.ModelConfig(name="net", max_batch_size=8)
    config.input.add(name="pixels", data_type=model_config_pb2.TYPE_FP32, dims=[3, 32, 32])
    config.parameters["threads"].string_value = "1"
    config.instance_group.add(count=2, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    answer = lab.plain(config)
    assert answer["max_batch_size"] == 8
    assert answer["input"][0]["data_type"] == "TYPE_FP32"
    assert answer["input"][0]["dims"] == [3, 32, 32]
    assert answer["parameters"] == {"threads": {"string_value": "1"}}
    assert answer["instance_group"][0]["kind"] == "KIND_CPU"
    assert "dynamic_batching" not in answer  # not set, and that matters
