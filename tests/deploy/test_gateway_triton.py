"""The gateway before a real Triton, with its own clients, over HTTP and gRPC."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from fake_replicas import eventually
from tritonclient.utils import InferenceServerException

from labkit.operate import MissingProgram, find_program
from labkit.operate.gateway import Gateway
from labkit.server import TritonServer, find_triton

pytestmark = [pytest.mark.nginx, pytest.mark.triton]

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"lab": "0123456789abcdef" * 4}
METADATA = {"x-api-key": KEYS["lab"]}  # gRPC wants lower case
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    binary = find_triton()
    if binary is None or binary.problem:
        pytest.skip(
            binary.problem if binary else "the server is not in the cache: labkit triton fetch"
        )
    try:
        find_program("nginx")
    except MissingProgram as error:
        pytest.skip(str(error))


def restrictions(folder: Path) -> list[str]:
    """Return the flags by which docker/serve.sh closes Triton's own control calls."""
    for name in ("repository/m/1", "models", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "repository" / "m" / "1" / "model.onnx").write_text("")
    server = folder / "bin" / "tritonserver"
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "docker" / "serve.sh"], capture_output=True, text=True, check=True,
        env={
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "REPOSITORY": str(folder / "repository"),
            "MODELS": str(folder / "models"),
        },
    )  # fmt: skip
    flags = [line for line in done.stdout.splitlines() if "-restricted-" in line]
    assert len(flags) == 2
    return flags


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One Triton with toy models, started with the flags of docker/serve.sh."""
    folder = tmp_path_factory.mktemp("triton")
    place = ROOT / "tests" / "server" / "toy_models.py"
    specification = importlib.util.spec_from_file_location("toy_models_of_deploy", place)
    toys = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(toys)
    repository = toys.write_toy_models(folder / "models")
    flags = restrictions(folder / "script")
    models = ["toy", "flat", "sleepy"]
    with TritonServer(
        repository, models=models, extra_args=flags, allow_python_models=True
    ) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway([server.http], [server.grpc], folder, keys=KEYS) as running:
        yield running


@pytest.fixture
def web(gateway: Gateway) -> Iterator[tritonclient.http.InferenceServerClient]:
    with tritonclient.http.InferenceServerClient(gateway.http_url) as client:
        yield client


@pytest.fixture
def remote(gateway: Gateway) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(gateway.grpc_url) as client:
        yield client


def header() -> dict[str, str]:
    """A new dictionary for each call: tritonclient.http writes headers of its own into it."""
    return {"X-API-Key": KEYS["lab"]}


def images(number: int) -> np.ndarray:
    return np.random.default_rng(number).random((number, 3, 32, 32), dtype=np.float32)


def scores(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)[:, :10]


def inputs(library: Any, batch: np.ndarray) -> list[Any]:
    tensor = library.InferInput("pixels", list(batch.shape), "FP32")
    return [tensor.set_data_from_numpy(batch)]


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status(), caught.value.message()


# ---- HTTP ----------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_inference_over_http(web: tritonclient.http.InferenceServerClient, binary: bool) -> None:
    batch = images(8)
    tensor = tritonclient.http.InferInput("pixels", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch, binary_data=binary)
    wanted = tritonclient.http.InferRequestedOutput("scores", binary_data=binary)
    result = web.infer("toy", [tensor], outputs=[wanted], headers=header())
    np.testing.assert_allclose(result.as_numpy("scores"), scores(batch), rtol=1e-6)
    versioned = web.infer("toy", [tensor], model_version="1", outputs=[wanted], headers=header())
    assert versioned.get_response()["model_version"] == "1"


def test_compressed_answers_pass_and_compressed_bodies_do_not(
    web: tritonclient.http.InferenceServerClient,
) -> None:
    batch = images(8)
    result = web.infer(
        "toy",
        inputs(tritonclient.http, batch),
        headers=header(),
        response_compression_algorithm="gzip",
    )
    np.testing.assert_array_equal(result.as_numpy("scores"), scores(batch))
    with pytest.raises(InferenceServerException, match="a compressed body: send it as it is"):
        web.infer(
            "toy",
            inputs(tritonclient.http, batch),
            headers=header(),
            request_compression_algorithm="gzip",
        )


def test_compressed_grpc_calls_are_refused(
    remote: tritonclient.grpc.InferenceServerClient,
) -> None:
    sent = inputs(tritonclient.grpc, images(8))
    status, message = refusal(
        remote.infer, "toy", sent, headers=METADATA, compression_algorithm="gzip"
    )
    assert (status, "compressed body" in message) == ("StatusCode.UNIMPLEMENTED", True)


def test_health_metadata_and_statistics_over_http(
    web: tritonclient.http.InferenceServerClient,
) -> None:
    assert web.is_server_live(headers=header())
    assert web.is_server_ready(headers=header())
    assert web.is_model_ready("toy", headers=header())
    assert web.get_server_metadata(headers=header())["name"] == "triton"
    assert web.get_model_metadata("toy", headers=header())["name"] == "toy"
    assert web.get_model_config("toy", headers=header())["max_batch_size"] == 8
    stats = web.get_inference_statistics("toy", headers=header())
    assert stats["model_stats"][0]["name"] == "toy"


def test_control_over_http_is_refused(
    web: tritonclient.http.InferenceServerClient, server: TritonServer
) -> None:
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (web.get_model_repository_index, ()),
        (web.load_model, ("toy",)),
        (web.unload_model, ("toy",)),
        (web.get_system_shared_memory_status, ()),
        (web.register_system_shared_memory, ("r", "/nothing", 64)),
        (web.unregister_system_shared_memory, ()),
        (web.get_cuda_shared_memory_status, ()),
        (web.unregister_cuda_shared_memory, ()),
        (web.get_trace_settings, ()),
        (web.update_trace_settings, ("toy", {"trace_level": ["TIMESTAMPS"]})),
        (web.get_log_settings, ()),
        (web.update_log_settings, ({"log_verbose_level": 1},)),
    ]
    for call, arguments in calls:
        status, message = refusal(call, *arguments, headers=header())
        assert (status, message[:13]) == ("403", "not open here"), call
        status, message = refusal(call, *arguments)
        assert (status, message[:7]) == ("401", "API key"), call


def test_triton_itself_refuses_control_over_http(server: TritonServer) -> None:
    """Whoever gets around the gateway meets a second lock."""
    paths = [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/toy/load"),
        ("POST", "/v2/repository/models/toy/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
        ("POST", "/v2/systemsharedmemory/unregister"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("GET", "/v2/models/toy/trace/setting"),
        ("POST", "/v2/models/toy/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
    ]
    open_paths = ["/v2", "/v2/health/ready", "/v2/models/toy/config", "/v2/models/toy/stats"]
    with http_connection(server.http) as connection:
        for method, path in paths:
            for headers in ({}, {"lab-operator": ""}, {"lab-operator": "guess"}):
                connection.request(method, path, body="{}", headers=headers)
                answer = connection.getresponse()
                assert (answer.status, b"restricted" in answer.read()) == (403, True), path
        for path in open_paths:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, path


class http_connection(http.client.HTTPConnection):  # noqa: N801
    def __enter__(self) -> http_connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def test_tritons_own_errors_pass_as_they_are(
    web: tritonclient.http.InferenceServerClient, server: TritonServer
) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as direct:
        for model, batch in (("missing", images(1)), ("toy", images(9)), ("toy", images(1)[0])):
            sent = inputs(tritonclient.http, batch)
            through = refusal(web.infer, model, sent, headers=header())
            assert through == refusal(direct.infer, model, sent)
            assert through[0] in ("400", "404")


# ---- gRPC ----------------------------------------------------------------------------------


def test_inference_over_grpc(remote: tritonclient.grpc.InferenceServerClient) -> None:
    batch = images(8)
    result = remote.infer("toy", inputs(tritonclient.grpc, batch), headers=METADATA)
    np.testing.assert_array_equal(result.as_numpy("scores"), scores(batch))


def test_health_metadata_and_statistics_over_grpc(
    remote: tritonclient.grpc.InferenceServerClient, gateway: Gateway
) -> None:
    assert remote.is_server_live(headers=METADATA)
    assert remote.is_server_ready(headers=METADATA)
    assert remote.is_model_ready("toy", headers=METADATA)
    assert remote.get_server_metadata(headers=METADATA).name == "triton"
    assert remote.get_model_metadata("toy", headers=METADATA).name == "toy"
    assert remote.get_model_config("toy", headers=METADATA).config.max_batch_size == 8
    stats = remote.get_inference_statistics("toy", headers=METADATA)
    assert stats.model_stats[0].name == "toy"
    # grpc.health.v1: the answer of a health check is one field, 1 for SERVING
    with grpc.insecure_channel(gateway.grpc_url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", metadata=list(METADATA.items()), timeout=10) == b"\x08\x01"


def test_control_over_grpc_is_refused(remote: tritonclient.grpc.InferenceServerClient) -> None:
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (remote.get_model_repository_index, ()),
        (remote.load_model, ("toy",)),
        (remote.unload_model, ("toy",)),
        (remote.get_system_shared_memory_status, ()),
        (remote.register_system_shared_memory, ("r", "/nothing", 64)),
        (remote.unregister_system_shared_memory, ()),
        (remote.get_cuda_shared_memory_status, ()),
        (remote.unregister_cuda_shared_memory, ()),
        (remote.get_trace_settings, ()),
        (remote.update_trace_settings, ("toy", {"trace_level": ["TIMESTAMPS"]})),
        (remote.get_log_settings, ()),
        (remote.update_log_settings, ({"log_verbose_level": 1},)),
    ]
    for call, arguments in calls:
        status, message = refusal(call, *arguments, headers=METADATA)
        assert (status, message[:13]) == ("StatusCode.PERMISSION_DENIED", "not open here"), call
        status, message = refusal(call, *arguments)
        assert (status, message[:7]) == ("StatusCode.UNAUTHENTICATED", "API key"), call


@pytest.mark.parametrize(
    "method",
    [
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/inference.GRPCInferenceService/repositoryindex",
        "/inference.GRPCInferenceService//RepositoryIndex",
        "/inference.GRPCInferenceService/ModelInfer/../RepositoryIndex",
        "/inference.GRPCInferenceService/%52epositoryIndex",
        "/inference.GRPCInferenceService/ModelInfer/",
        "/inference.GRPCInferenceService/ModelInfer?x",
        "/inference%2eGRPCInferenceService/ModelInfer",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/v2/repository/index",
        "/healthz",
        "/refused",
    ],
)
def test_other_spellings_of_grpc_calls_are_refused(gateway: Gateway, method: str) -> None:
    with grpc.insecure_channel(gateway.grpc_url) as channel:
        call = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=list(METADATA.items()), timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_triton_itself_refuses_control_over_grpc(server: TritonServer) -> None:
    """Triton 2.51 says UNAVAILABLE here, where HTTP says 403."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as direct:
        calls = [
            direct.get_model_repository_index,
            direct.get_system_shared_memory_status,
            direct.get_cuda_shared_memory_status,
            direct.get_trace_settings,
            direct.get_log_settings,
        ]
        for call in calls:
            status, message = refusal(call)
            assert status == "StatusCode.UNAVAILABLE"
            assert "restricted" in message
        assert direct.get_inference_statistics("toy").model_stats[0].name == "toy"


@pytest.mark.parametrize("key", ["", "wrong", "lab"])
def test_a_wrong_key_over_grpc(remote: tritonclient.grpc.InferenceServerClient, key: str) -> None:
    sent = inputs(tritonclient.grpc, images(1))
    status, message = refusal(remote.infer, "toy", sent, headers={"x-api-key": key})
    assert status == "StatusCode.UNAUTHENTICATED"
    assert "API key" in message


def test_tritons_own_grpc_errors_pass_as_they_are(
    remote: tritonclient.grpc.InferenceServerClient, server: TritonServer
) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as direct:
        for model, batch in (("missing", images(1)), ("toy", images(9))):
            sent = inputs(tritonclient.grpc, batch)
            through = refusal(remote.infer, model, sent, headers=METADATA)
            assert through == refusal(direct.infer, model, sent)


def test_large_messages_up_to_the_cap(
    web: tritonclient.http.InferenceServerClient,
    remote: tritonclient.grpc.InferenceServerClient,
) -> None:
    fits, too_large = images(640), images(700)  # 7.5 and 8.2 MiB
    assert fits.nbytes < 8 * MIB < too_large.nbytes
    result = web.infer("flat", inputs(tritonclient.http, fits), headers=header())
    np.testing.assert_array_equal(result.as_numpy("scores"), scores(fits))
    result = remote.infer("flat", inputs(tritonclient.grpc, fits), headers=METADATA)
    np.testing.assert_array_equal(result.as_numpy("scores"), scores(fits))
    status, message = refusal(
        web.infer, "flat", inputs(tritonclient.http, too_large), headers=header()
    )
    assert (status, "too large" in message) == ("413", True)
    status, message = refusal(
        remote.infer, "flat", inputs(tritonclient.grpc, too_large), headers=METADATA
    )
    assert (status, "too large" in message) == ("StatusCode.RESOURCE_EXHAUSTED", True)
    batch = images(2)  # the connection goes on
    result = remote.infer("toy", inputs(tritonclient.grpc, batch), headers=METADATA)
    np.testing.assert_array_equal(result.as_numpy("scores"), scores(batch))


def test_a_stream_of_requests(remote: tritonclient.grpc.InferenceServerClient) -> None:
    answers: list[Any] = []
    remote.start_stream(lambda result, error: answers.append(error or result), headers=METADATA)
    batches = [images(number) for number in (1, 2, 3)]
    for batch in batches:
        remote.async_stream_infer("toy", inputs(tritonclient.grpc, batch))
    eventually(lambda: len(answers) == len(batches), lambda: answers)
    remote.stop_stream()
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer.as_numpy("scores"), scores(batch))


def test_many_at_once_over_both_protocols(gateway: Gateway) -> None:
    def ask(number: int) -> bool:
        library, url, headers = (
            (tritonclient.http, gateway.http_url, header),
            (tritonclient.grpc, gateway.grpc_url, METADATA.copy),
        )[number % 2]
        batch = images(number % 8 + 1)
        with library.InferenceServerClient(url) as client:
            answers = [
                client.infer("toy", inputs(library, batch), headers=headers()) for _ in range(10)
            ]
        return all(np.array_equal(a.as_numpy("scores"), scores(batch)) for a in answers)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(32)))


def test_a_dead_replica_costs_no_new_grpc_call(server: TritonServer, tmp_path: Path) -> None:
    dead = ["127.0.0.1:1", "127.0.0.1:2"]  # nobody listens there
    with Gateway([*dead, server.http], [*dead, server.grpc], tmp_path, keys=KEYS) as gateway:
        batch = images(2)
        with tritonclient.grpc.InferenceServerClient(gateway.grpc_url) as client:
            for _ in range(50):
                result = client.infer("toy", inputs(tritonclient.grpc, batch), headers=METADATA)
                np.testing.assert_array_equal(result.as_numpy("scores"), scores(batch))


def test_no_grpc_replica_is_unavailable_at_once(tmp_path: Path) -> None:
    nobody = ["127.0.0.1:1"]
    with (
        Gateway(nobody, nobody, tmp_path, keys=KEYS) as gateway,
        tritonclient.grpc.InferenceServerClient(gateway.grpc_url) as client,
    ):
        sent = inputs(tritonclient.grpc, images(1))
        status, message = refusal(client.infer, "toy", sent, headers=METADATA)
        assert (status, "no replica" in message) == ("StatusCode.UNAVAILABLE", True)


# ---- what README.md tells people to type ---------------------------------------------------


def readme_block(language: str, word: str) -> str:
    text = (ROOT / "docker" / "README.md").read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    (block,) = [block for block in blocks if word in block]
    return block


def speak_tls(gateway: Gateway) -> None:
    """Give a gateway the container's listeners, at its own ports, and a test certificate."""
    script = ROOT / "docker" / "gateway" / "make_certificate.sh"
    subprocess.run(["sh", script, gateway.folder / "secrets"], check=True, capture_output=True)
    for name, before, after in (
        ("http", "listen 8080 ssl;", f"listen {gateway.http_url} ssl;"),
        # An nginx before 1.25 knows no `http2 on`.
        ("grpc", "listen 8081 ssl;\nhttp2 on;", f"listen {gateway.grpc_url} ssl http2;"),
    ):
        text = (ROOT / "docker" / "gateway" / "site" / f"listen_{name}.conf").read_text()
        assert before in text
        (gateway.folder / "site" / f"listen_{name}.conf").write_text(text.replace(before, after))
    gateway.reload(gateway.http, gateway.grpc)


def test_the_readme_shows_calls_that_work(server: TritonServer, tmp_path: Path) -> None:
    """The README's own lines, with the names of the toy model and this gateway's ports."""
    with Gateway([server.http], [server.grpc], tmp_path / "gateway") as gateway:
        speak_tls(gateway)
        (gateway.folder / "secrets" / "lab.key").write_text(gateway.key + "\n")
        new = {
            "cifar10_onnx": "toy",
            '"input"': '"pixels"',
            "localhost:8080": gateway.http_url.replace("127.0.0.1", "localhost"),
            "localhost:8081": gateway.grpc_url.replace("127.0.0.1", "localhost"),
        }

        def ours(text: str) -> str:
            for old, ours in new.items():
                text = text.replace(old, ours)
            return text

        checks = "\nassert answer.as_numpy('scores').shape == (8, 10)\n"
        first, second = ours(readme_block("python", "tritonclient.http")).split("\nwith ")[1:]
        before = ours(readme_block("python", "tritonclient.http")).split("\nwith ")[0]
        code = f"{before}\nwith {first}{checks}with {second}{checks}"
        assert code.count("answer =") == 2
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        if shutil.which("curl") is None:
            return
        lines = ours(readme_block("sh", "--cacert")).splitlines()
        script = "\n".join(lines[:2])
        assert "curl" in script
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert json.loads(done.stdout)["name"] == "toy", done


# ---- what README.md says of streams --------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "number"),
    [({"body_cap": "100k"}, 12), ({"body_timeout": "1s"}, 1)],
    ids=["too much in all", "silent too long"],
)
def test_a_stream_ends_at_the_limits_of_one_request(
    server: TritonServer, tmp_path: Path, settings: dict[str, str], number: int
) -> None:
    answers: list[Any] = []

    def ended() -> bool:
        return bool(answers) and isinstance(answers[-1], InferenceServerException)

    with (
        Gateway([server.http], [server.grpc], tmp_path, keys=KEYS, settings=settings) as gateway,
        tritonclient.grpc.InferenceServerClient(gateway.grpc_url) as client,
    ):
        client.start_stream(lambda result, error: answers.append(error or result), headers=METADATA)
        for sent in range(1, number + 1):  # 12 KiB each
            client.async_stream_infer("toy", inputs(tritonclient.grpc, images(1)))
            eventually(lambda sent=sent: len(answers) >= sent, lambda: answers)
            if ended():
                break
        assert isinstance(answers[0], tritonclient.grpc.InferResult)
        eventually(ended, lambda: answers)
        client.stop_stream()
        batch = images(1)  # a new call goes through
        result = client.infer("toy", inputs(tritonclient.grpc, batch), headers=METADATA)
        np.testing.assert_array_equal(result.as_numpy("scores"), scores(batch))
