"""A server takes the threads that its models ask for, and no more."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from onnx import helper
from tiny_models import save_onnx
from torch import nn
from tritonclient import http

from labkit.profiles import available_cores
from labkit.server import TritonServer

WIDTH, LAYERS, ROWS = 1024, 4, 64  # about 10 ms of products a request: the way costs little
MORE = 0.3  # cores: HTTP, queues and copies
CLIENTS, LOAD_S = 3, 1.5
THREADS = {
    "onnxruntime": "intra_op_thread_count",
    "openvino": "INFERENCE_NUM_THREADS",
    "pytorch": "INTRA_OP_THREAD_COUNT",
}
FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml", "pytorch": "model.pt"}


def write_model(folder: Path, backend: str) -> None:
    """Write `y = ((x W) W) …`, FP32 (N, 1024), with one instance of one thread."""
    path = folder / "1" / FILES[backend]
    path.parent.mkdir(parents=True)
    weight = np.eye(WIDTH, dtype=np.float32)
    if backend == "pytorch":
        layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        torch.jit.trace(layers.eval(), torch.zeros(1, WIDTH)).save(path)
    else:
        onnx_path = path.with_name("model.onnx")
        names = ["x", *(f"x{number}" for number in range(1, LAYERS)), "y"]
        save_onnx(
            onnx_path,
            [helper.make_node("MatMul", [a, "weight"], [b]) for a, b in pairwise(names)],
            {"x": ("FP32", ["batch", WIDTH])},
            {"y": ("FP32", ["batch", WIDTH])},
            {"weight": weight},
        )
        if backend == "openvino":
            import openvino

            openvino.save_model(openvino.convert_model(onnx_path), path)
            onnx_path.unlink()
    x, y = ("x__0", "y__0") if backend == "pytorch" else ("x", "y")
    (folder / "config.pbtxt").write_text(
        f'backend: "{backend}" max_batch_size: {ROWS} '
        f'input {{ name: "{x}" data_type: TYPE_FP32 dims: [ {WIDTH} ] }} '
        f'output {{ name: "{y}" data_type: TYPE_FP32 dims: [ {WIDTH} ] }} '
        "instance_group { count: 1 kind: KIND_CPU } "
        f'parameters {{ key: "{THREADS[backend]}" value {{ string_value: "1" }} }}'
    )


@pytest.fixture(
    scope="module", params=["stand-in", pytest.param("native", marks=pytest.mark.native)]
)
def heavy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    root = tmp_path_factory.mktemp("threads")
    for backend in THREADS:
        write_model(root / backend, backend)
    with TritonServer(root, runtime=request.param) as server:
        yield server


def cpu_s() -> float:
    """CPU seconds so far of every process below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


@pytest.mark.skipif(available_cores() < 2, reason="one core: nothing to take too much of")
@pytest.mark.parametrize("backend", THREADS)
def test_a_loaded_server_uses_the_cores_it_was_given(heavy: TritonServer, backend: str) -> None:
    name = "x__0" if backend == "pytorch" else "x"
    tensor = http.InferInput(name, [ROWS, WIDTH], "FP32")
    tensor.set_data_from_numpy(np.ones((ROWS, WIDTH), dtype=np.float32))

    def load(_: int) -> int:
        answered, end = 0, time.monotonic() + LOAD_S
        with http.InferenceServerClient(heavy.http) as client:
            while time.monotonic() < end:
                client.infer(backend, [tensor])
                answered += 1
        return answered

    load(0)  # warm
    with ThreadPoolExecutor(CLIENTS) as pool:
        begin, before = time.monotonic(), cpu_s()
        answered = sum(pool.map(load, range(CLIENTS)))
        cores = (cpu_s() - before) / (time.monotonic() - begin)
    assert answered >= 2 * CLIENTS
    assert cores <= 1 + MORE
