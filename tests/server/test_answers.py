"""Any model behind a real Triton, with the stand-ins and with the native backends."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import tritonclient.http as http
from asking import counts, ids, infer
from conftest import STRINGS
from tiny_models import EMBEDDING, TYPES, VOCABULARY

from labkit.server import TritonServer, runtime_of

SAMPLES = {
    "BOOL": np.array([[True, False, True]]),
    "FP16": np.array([[0.5, -2, 65504]], np.float16),
    "STRING": np.array([["plain", "zwölf", ""]], np.object_),
}


def test_every_model_says_what_serves_it(server: TritonServer) -> None:
    with http.InferenceServerClient(server.http) as client:
        models = [entry["name"] for entry in client.get_model_repository_index()]
        assert len(models) >= 10
        assert {runtime_of(client.get_model_config(model)) for model in models} == {server.runtime}


def test_two_inputs_of_other_shapes_and_types(server: TritonServer) -> None:
    image = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    scale = np.array([[1], [10], [-1]], np.int32)
    answer = infer(server, "two_inputs", {"scale": scale, "image": image})
    np.testing.assert_array_equal(answer["scaled"], image * scale[:, :, None])
    assert list(answer) == ["scaled"]


@pytest.mark.parametrize("dtype", [name for name in TYPES if STRINGS or name != "STRING"])
def test_every_type_comes_back_unchanged(server: TritonServer, dtype: str) -> None:
    arrays = {}
    for name in (name for name in TYPES if STRINGS or name != "STRING"):
        kind = "object" if name == "STRING" else name.lower().replace("fp", "float")
        arrays[f"in_{name}"] = SAMPLES.get(name, np.array([[0, 1, 127]], kind))
    if STRINGS:
        arrays["in_STRING"] = np.array([["a", "b", "c"]], np.object_)
    sent = SAMPLES.get(dtype, arrays[f"in_{dtype}"])
    answer = infer(server, "every_type", arrays | {f"in_{dtype}": sent}, [f"out_{dtype}"])
    assert list(answer) == [f"out_{dtype}"]
    received = answer[f"out_{dtype}"]
    if dtype == "STRING":
        received = np.array([[item.decode() for item in received[0]]], np.object_)
    assert received.dtype == sent.dtype
    np.testing.assert_array_equal(received, sent)


def test_token_ids_of_any_length(server: TritonServer) -> None:
    for tokens in ([3], [1, 2, 9], list(range(VOCABULARY)) * 3):
        answer = infer(server, "tokens", ids(*tokens))
        np.testing.assert_allclose(answer["mean"], EMBEDDING[tokens].mean(0, keepdims=True))


def test_concurrent_requests_share_executions_and_keep_their_own_answers(
    server: TritonServer,
) -> None:
    clients = 8
    barrier = Barrier(clients)

    def ask(number: int) -> np.ndarray:
        barrier.wait()
        return infer(server, "tokens", ids(number, number))["mean"]

    before = counts(server, "tokens")
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(clients)))
    rows, executions = counts(server, "tokens") - before
    assert rows == clients
    assert executions < clients
    for number, answer in enumerate(answers):
        np.testing.assert_allclose(answer, EMBEDDING[number : number + 1])


def test_requests_of_other_lengths_are_answered_too(server: TritonServer) -> None:
    lengths = [1, 2, 3, 1, 2, 3]
    with ThreadPoolExecutor(len(lengths)) as pool:
        answers = list(pool.map(lambda n: infer(server, "tokens", ids(*range(n)))["mean"], lengths))
    for length, answer in zip(lengths, answers, strict=True):
        np.testing.assert_allclose(answer, EMBEDDING[:length].mean(0, keepdims=True))


def test_without_batching_and_with_another_file_name(server: TritonServer) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(infer(server, "unbatched", {"x": x})["y"], 2 * x)


@pytest.mark.parametrize("model", ["accelerated", "ir"])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_openvino_at_several_batch_sizes(server: TritonServer, model: str, rows: int) -> None:
    x = np.random.default_rng(rows).random((rows, 4), np.float32)
    np.testing.assert_allclose(infer(server, model, {"x": x})["y"], 2 * x, rtol=1e-6)


def test_openvino_reads_onnx(server: TritonServer) -> None:
    answer = infer(server, "openvino_onnx", {"ids": np.array([[1, 3], [0, 0]], np.int64)})
    np.testing.assert_allclose(answer["mean"], [EMBEDDING[[1, 3]].mean(0), EMBEDDING[0]])


def test_torchscript_inputs_by_name_and_by_number(server: TritonServer) -> None:
    first = np.array([[1, 2]], np.int64)
    second = np.array([[0.5, 0.25]], np.float32)
    named = infer(server, "torch_named", {"first": first, "second": second})
    np.testing.assert_array_equal(named["OUTPUT__1"], second)
    numbered = infer(server, "torch_numbered", {"INPUT__1": second, "INPUT__0": first})
    np.testing.assert_array_equal(numbered["sum__0"], first + 10 * second)
    np.testing.assert_array_equal(numbered["second__1"], second)


@pytest.mark.native
def test_torchscript_strings(server: TritonServer) -> None:
    words = np.array(["one", "zwei"], np.object_)
    assert infer(server, "torch_words", {"words": words})["words__0"].tolist() == [b"ONE", b"ZWEI"]


def test_json_answers_too(server: TritonServer) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    with http.InferenceServerClient(server.http) as client:
        response = client._post(
            "v2/models/ir/infer", json.dumps({"inputs": [tensor]}), headers=None, query_params=None
        )
        assert json.loads(response.read())["outputs"][0]["data"] == [2, 4, 6, 8]


def test_the_log_is_a_file(server: TritonServer) -> None:
    assert "successfully loaded 'tokens'" in Path(str(server.log_path)).read_text()
