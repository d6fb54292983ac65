"""The native backends: bit for bit the engines, whole through stops and kills, and no abort."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import psutil
import pytest
import torch
from asking import ids, infer
from tiny_models import (
    ACCELERATED,
    OPEN_X,
    OPEN_Y,
    Double,
    TwoArguments,
    X,
    Y,
    int8_double,
    save_double,
    save_int8,
    save_ir,
    save_torchscript,
    write_config,
)

from labkit.repository_check import ERROR, check_repository
from labkit.server import ModelLoadError, ServerError, TritonServer
from labkit.server.native import recipe
from labkit.server.ports import choose_ports

pytestmark = pytest.mark.native
LIMITS = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}


@pytest.fixture
def native(servers: Callable[[str], TritonServer]) -> TritonServer:
    return servers("native")


def test_answers_are_those_of_the_engines_bit_for_bit(native: TritonServer) -> None:
    folder = Path(native.repository)
    session = onnxruntime.InferenceSession(folder / "tokens" / "1" / "model.onnx")
    for tokens in ([3], [1, 2, 9]):
        expected = session.run(["mean"], ids(*tokens))[0]
        np.testing.assert_array_equal(infer(native, "tokens", ids(*tokens))["mean"], expected)
    x = np.random.default_rng(0).random((3, 4), np.float32)
    compiled = openvino.Core().compile_model(folder / "ir" / "1" / "model.xml", "CPU")
    np.testing.assert_array_equal(infer(native, "ir", {"x": x})["y"], compiled({"x": x})["y"])
    module = torch.jit.load(folder / "torch_named" / "1" / "model.pt")
    first, second = np.array([[1, 2]], np.int64), np.array([[0.5, 0.25]], np.float32)
    expected = module(torch.from_numpy(first), torch.from_numpy(second))[1].numpy()
    answer = infer(native, "torch_named", {"first": first, "second": second})["OUTPUT__1"]
    np.testing.assert_array_equal(answer, expected)


def test_the_engine_in_process_is_the_one_that_serves() -> None:
    """A comparison of served and in-process would else mix engines."""
    assert onnxruntime.__version__ == recipe.ONNXRUNTIME_OPENVINO.version


def test_the_accelerator_is_openvinos_execution_provider(native: TritonServer) -> None:
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(infer(native, "accelerated", {"x": x})["y"], 2 * x)
    mapped = Path(f"/proc/{native.pid}/maps").read_text()
    assert "libonnxruntime_providers_openvino.so" in mapped


def repository_of(folder: Path) -> Path:
    version = write_config(folder / "double", "onnxruntime", X, Y)
    save_double(version / "model.onnx")
    version = write_config(folder / "ir", "openvino", OPEN_X, OPEN_Y, 0, parameters=LIMITS)
    save_ir(version / "model.xml")
    return folder


def every_kind(folder: Path) -> Path:
    """Tiny models of the kinds that the lab serves, each `2 x` in FP32 or INT8."""
    version = write_config(folder / "int8", "onnxruntime", X, Y)
    save_int8(version / "model.onnx")
    version = write_config(folder / "accelerated", "onnxruntime", X, Y, more=ACCELERATED)
    save_double(version / "model.onnx")
    version = write_config(folder / "ir_int8", "openvino", OPEN_X, OPEN_Y, 0, parameters=LIMITS)
    save_ir(version / "model.xml", save_int8)
    inputs, outputs = {"x__0": ("FP32", [4])}, {"y__0": ("FP32", [4])}
    for name, module, instances in (("torch", Double(), 2), ("torch_int8", int8_double(), 1)):
        version = write_config(folder / name, "pytorch", inputs, outputs, instances=instances)
        save_torchscript(version / "model.pt", module)
    return repository_of(folder)


def test_it_starts_and_stops_again_and_again(tmp_path: Path) -> None:
    repository = every_kind(tmp_path / "repository")
    models = sorted(path.name for path in repository.iterdir())
    x = np.ones((1, 4), np.float32)
    for _ in range(20):
        with TritonServer(repository, log_path=tmp_path / "log", runtime="native") as server:
            for model in models:
                (x_name, y_name) = ("x__0", "y__0") if "torch" in model else ("x", "y")
                answer = infer(server, model, {x_name: x})[y_name]
                np.testing.assert_allclose(answer, 2 * x, rtol=0.02 if "int8" in model else 0)
        assert "Exit timeout expired" not in (tmp_path / "log").read_text()
        assert server.pid is None and server._run_folder is not None
        assert not server._run_folder.exists()
        assert not list(Path("/dev/shm").glob(f"{server._run_folder.name}*"))


def test_nothing_is_left_when_it_is_killed_at_any_moment(tmp_path: Path) -> None:
    repository = every_kind(tmp_path / "repository")
    moments = random.Random(0)
    for _ in range(5):
        server = TritonServer(repository, log_path=tmp_path / "log", runtime="native")
        folders = server._model_folders()
        server._ports = choose_ports({"http": None, "grpc": None, "metrics": None})
        server._launch(folders)  # without waiting until it is ready
        assert server.pid is not None and server._run_folder is not None
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        psutil.wait_procs(family, timeout=moments.uniform(0, 1.5))
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="SIGKILL"):
            server.wait()
        server.stop()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        assert not server._run_folder.exists()
        assert not list(Path("/dev/shm").glob(f"{server._run_folder.name}*"))


DAMAGED = {
    "no file": lambda version: (version / "model.xml").unlink(),
    "no weights": lambda version: (version / "model.bin").unlink(),
    "cut weights": lambda version: (version / "model.bin").write_bytes(b""),
    "no XML": lambda version: (version / "model.xml").write_text("<net"),
    "another format": lambda version: (version / "model.xml").rename(version / "model.onnx"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_that_would_end_the_server_are_refused_before_it_starts(
    damage: str, tmp_path: Path
) -> None:
    repository = repository_of(tmp_path / "repository")
    version = repository / "ir" / "1"
    save_ir_with_weights(version / "model.xml")
    DAMAGED[damage](version)
    found = check_repository(repository, ["ir"])
    assert any(finding.severity == ERROR for finding in found), found
    with pytest.raises(ModelLoadError, match=r"was not started.*\n  ir: 1/model\.xml is ") as error:
        TritonServer(repository, log_path=tmp_path / "log", runtime="native").start()
    assert list(error.value.models) == ["ir"]
    with TritonServer(
        repository, models=["double"], log_path=tmp_path / "log", runtime="native"
    ) as server:
        assert server.running


def save_ir_with_weights(path: Path) -> None:
    """`y = x + c` as IR: unlike `2 x`, it has weights that can be damaged."""
    import openvino.opset13 as ops

    x = ops.parameter([-1, 4], np.float32, name="x")
    x.output(0).set_names({"x"})
    total = ops.add(x, ops.constant(np.arange(4, dtype=np.float32)[None]))
    total.output(0).set_names({"y"})
    openvino.save_model(openvino.Model([total], [x], "plus"), path, compress_to_fp16=False)


def test_an_old_version_that_is_not_served_may_be_damaged(tmp_path: Path) -> None:
    repository = repository_of(tmp_path / "repository")
    (repository / "ir" / "1").rename(repository / "ir" / "2")
    (repository / "ir" / "1").mkdir()
    (repository / "ir" / "1" / "model.xml").write_text("<net")
    with TritonServer(repository, log_path=tmp_path / "log", runtime="native") as server:
        x = np.ones((1, 4), np.float32)
        np.testing.assert_array_equal(infer(server, "ir", {"x": x})["y"], 2 * x)


def test_settings_that_would_end_the_server_are_refused(tmp_path: Path) -> None:
    repository = repository_of(tmp_path / "repository")
    for name in ("one", "two"):
        version = write_config(
            repository / name,
            "pytorch",
            {"first": ("INT64", [2]), "second": ("FP32", [2])},
            {"OUTPUT__0": ("FP32", [2])},
            parameters={"INTER_OP_THREAD_COUNT": "1"},
        )
        save_torchscript(version / "model.pt", TwoArguments())
    padded = LIMITS | {"ENABLE_BATCH_PADDING": "YES"}
    version = write_config(repository / "padded", "openvino", X, Y, 4, parameters=padded)
    save_ir(version / "model.xml")
    with pytest.raises(ModelLoadError, match="corrupts the memory") as error:
        TritonServer(repository, log_path=tmp_path / "log", runtime="native").start()
    assert set(error.value.models) == {"two", "padded"}
