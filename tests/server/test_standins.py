"""What the stand-ins do in their own way: processes, errors that stay alone, words."""

import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import psutil
import pytest
import tritonclient.http as http
from asking import counts, ids, infer, status_of
from tiny_models import EMBEDDING, VOCABULARY
from tritonclient.utils import InferenceServerException

from labkit.server import TritonServer


def test_one_bad_request_fails_alone_in_its_batch(stand_in: TritonServer) -> None:
    clients, bad = 6, 3
    barrier = Barrier(clients)

    def ask(number: int) -> np.ndarray | InferenceServerException:
        barrier.wait()
        try:
            return infer(stand_in, "tokens", ids(VOCABULARY + 5 if number == bad else number))[
                "mean"
            ]
        except InferenceServerException as error:
            return error

    before = counts(stand_in, "tokens")
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(clients)))
    assert (counts(stand_in, "tokens") - before)[1] < clients  # it did share a batch
    failed = answers.pop(bad)
    assert isinstance(failed, InferenceServerException)
    assert failed.status() == "StatusCode.INTERNAL"  # as natively
    assert "out of data bounds" in failed.message()
    for number, answer in zip([0, 1, 2, 4, 5], answers, strict=True):
        np.testing.assert_allclose(answer, EMBEDDING[number : number + 1])


def test_a_failing_request_counts_as_a_failure_and_brings_no_traceback(
    stand_in: TritonServer,
) -> None:
    def failures() -> tuple[int, str]:
        with http.InferenceServerClient(stand_in.http) as client:
            stats = client.get_inference_statistics("tokens")["model_stats"][0]
        address = f"http://{stand_in.metrics}/metrics"
        page = urllib.request.urlopen(address, timeout=10).read().decode()
        name = r'nv_inference_request_failure\{.*model="tokens".*reason="BACKEND".*\} (\d+)'
        return stats["inference_stats"]["fail"]["count"], re.findall(name, page)[0]

    before, _ = failures()
    status, message = status_of(stand_in, "tokens", ids(VOCABULARY))
    assert status == "500"
    assert "message: Internal: onnx runtime error 2: " in message
    assert "\nAt:" not in message
    counted, _ = failures()
    assert counted == before + 1
    deadline = time.monotonic() + 10
    while failures() != (counted, str(counted)):  # the page is renewed from time to time
        assert time.monotonic() < deadline, failures()


@pytest.mark.native  # its strings cross through a stub that was built here
def test_a_failing_model_is_the_servers_fault_and_its_log_says_where(
    stand_in: TritonServer,
) -> None:
    status, message = status_of(
        stand_in, "torch_words", {"words": np.array([b"chalk"], np.object_)}
    )
    assert status == "500"
    assert "PyTorch execute failure: " in message and "out of chalk" in message
    assert "torch_words: request failed: " in Path(str(stand_in.log_path)).read_text()
    assert infer(stand_in, "torch_words", {"words": np.array([b"a"], np.object_)})  # it goes on


def test_two_instances_are_two_processes(stand_in: TritonServer) -> None:
    stubs = [" ".join(process.cmdline()) for process in psutil.Process(stand_in.pid).children()]
    assert sum("two_inputs_0_" in command for command in stubs) == 2
    assert sum("tokens_0_" in command for command in stubs) == 1


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_openvino_pads_a_static_batch(stand_in: TritonServer, rows: int) -> None:
    x = np.random.default_rng(rows).random((rows, 4), np.float32)
    np.testing.assert_allclose(infer(stand_in, "padded", {"x": x})["y"], 2 * x, rtol=1e-6)


def test_openvino_static_batch_refuses_a_partial_one(stand_in: TritonServer) -> None:
    full = np.ones((4, 4), np.float32)
    np.testing.assert_array_equal(infer(stand_in, "static", {"x": full})["y"], 2 * full)
    status, message = status_of(stand_in, "static", {"x": full[:3]})
    assert status == "500"
    assert "expected requests with batch size '4', got '3'" in message
