"""The pipeline of notebook 10, as its cells write it, behind Triton; and `labkit demo` on it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as http
from lesson import run_cells, write_pipeline
from PIL import Image
from tritonclient.utils import InferenceServerException

from labkit.data import preprocess
from labkit.grading.exercises.models import linear_logits, linear_network
from labkit.grading.inside.serve_network import write_network
from labkit.repository import PIPELINE, VARIANTS, write_config
from labkit.repository_check import check_repository
from labkit.server import ServerError, TritonServer
from labkit.server.native.built import built_backends

WEIGHT, BIAS = linear_network(np.random.default_rng(5))
MODELS = ("cifar10_onnx", "cifar10_preprocess", PIPELINE)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipeline") / "model_repository"
    write_config(root, VARIANTS["cifar10_onnx"])
    network = {"weight": WEIGHT.ravel().tolist(), "bias": BIAS.tolist()}
    write_network(root / "cifar10_onnx" / "1", network)
    write_pipeline(root)
    return root


def tensor(images: np.ndarray) -> http.InferInput:
    made = http.InferInput("image", list(images.shape), "UINT8")
    made.set_data_from_numpy(images)
    return made


@pytest.mark.parametrize("runtime", ["stand-in", pytest.param("native", marks=pytest.mark.native)])
def test_raw_pixels_are_answered_as_floats_are_and_a_bad_image_fails_alone(
    repository: Path, runtime: str, tmp_path: Path
) -> None:
    if runtime == "native" and built_backends() is None:
        pytest.skip("no native backends: labkit triton build")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    with (
        TritonServer(
            repository, runtime=runtime, log_path=tmp_path / "log", allow_python_models=True
        ) as server,
        http.InferenceServerClient(server.http, concurrency=4) as client,
    ):
        raw = np.ascontiguousarray(small.transpose(0, 2, 3, 1))
        prepared = client.infer("cifar10_preprocess", [tensor(raw)]).as_numpy("pixels")
        np.testing.assert_array_equal(prepared, preprocess(small))
        logits = client.infer(PIPELINE, [tensor(raw)]).as_numpy("logits")
        expected = linear_logits(preprocess(small), WEIGHT, BIAS)
        np.testing.assert_allclose(logits, expected, atol=1e-3)

        # Whole blocks of equal pixels are averaged to just those, and only the centre counts.
        large = np.kron(raw, np.ones((1, 7, 7, 1), np.uint8))
        wide = np.pad(large, ((0, 0), (0, 0), (30, 30), (0, 0)))
        averaged = client.infer("cifar10_preprocess", [tensor(wide)]).as_numpy("pixels")
        np.testing.assert_allclose(averaged, preprocess(small), atol=1e-5)

        ranked = http.InferRequestedOutput("logits", class_count=1)
        best = client.infer(PIPELINE, [tensor(wide[:1])], outputs=[ranked]).as_numpy("logits")
        assert best[0, 0].decode().split(":")[1] == str(expected[0].argmax())
        assert best[0, 0].decode().count(":") == 2, "the ensemble passes the labels on"

        together = [large[:1], np.zeros((1, 4, 90, 3), np.uint8), wide[:2], raw]
        pending = [client.async_infer(PIPELINE, [tensor(images)]) for images in together]
        with pytest.raises(InferenceServerException, match="got 4 x 90 pixels") as refused:
            pending.pop(1).get_result()
        assert refused.value.status() == "400"
        assert [p.get_result().as_numpy("logits").shape[0] for p in pending] == [1, 2, 5]


def test_a_strangers_pipeline_is_refused_until_it_was_read(repository: Path) -> None:
    with pytest.raises(ServerError, match=r"cifar10_preprocess.*--allow-python-models"):
        TritonServer(repository).start()
    errors = [finding.model for finding in check_repository(repository)]
    assert "cifar10_preprocess" in errors
    assert check_repository(repository, allow_python_models=True) == []


def test_the_notebooks_client_asks_the_pipeline(repository: Path, tmp_path: Path) -> None:
    """The ten lines stand alone: they need tritonclient and numpy."""
    page = run_cells(
        "10_pipeline", "model-py"
    )  # the cells run here, without the notebook's imports
    assert "class TritonPythonModel" in page.MODEL_PY
    with TritonServer(repository, log_path=tmp_path / "log", allow_python_models=True) as server:
        asked = run_cells(
            "10_pipeline", "client", np=np, httpclient=http, server=server,
            pixels=np.full((50, 40, 3), 90, np.uint8),
        )  # fmt: skip
    assert len(asked.guesses) == 10
    assert asked.guesses[0][1] == max(value for _, value in asked.guesses)


def test_the_demo_answers_and_ends_with_ctrl_c(repository: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), (200, 10, 10)).save(photo)
    command = [sys.executable, "-m", "labkit", "demo", str(repository), "--no-browser"]
    process = subprocess.Popen(
        [*command, "--allow-python-models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        ready = next(line for line in lines if "ready:" in line)
        url = next(word for word in ready.split() if word.startswith("http://127.0.0.1:"))
        request = urllib.request.Request(f"{url}/classify", photo.read_bytes())
        with urllib.request.urlopen(request, timeout=30) as reply:
            classes = json.load(reply)["classes"]
        assert len(classes) == 10
        assert sum(entry["share"] for entry in classes) == pytest.approx(1, abs=0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait(30)
