"""Batching in the stand-ins, with a fake engine and a fake of Triton's Python module."""

import importlib
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from labkit.backends.settings import RequestError


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array

    def __dlpack__(self, **asked: object) -> object:
        return self._array.__dlpack__(**asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class FakeError(Exception):
    INVALID_ARG, INTERNAL = 400, 500

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class FakeResponse:
    def __init__(self, output_tensors: Sequence[FakeTensor] = (), error: Any = None) -> None:
        # Copied at once, as late as Triton would: after `execute` has run every group.
        self.tensors, self.error = output_tensors, error

    def outputs(self) -> dict[str, list[Any]]:
        return {tensor.name(): tensor.as_numpy().tolist() for tensor in self.tensors}


class FakeRequest:
    def __init__(self, wanted: Sequence[str] = ("y",), **arrays: np.ndarray) -> None:
        self._wanted, self._arrays = set(wanted), arrays

    def inputs(self) -> list[FakeTensor]:
        return [FakeTensor(name, array) for name, array in self._arrays.items()]

    def requested_output_names(self) -> set[str]:
        return self._wanted


class FakeEngine:
    """Doubles `x`; refuses negative numbers; answers from one array that it uses again."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.inputs: list[np.ndarray] = []
        self._memory = np.empty((64, 8), np.float32)

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        x = inputs["x"]
        self.shapes.append(x.shape)
        self.inputs.append(x)
        if (x < 0).any():
            raise RequestError("negative")
        y = self._memory[: x.shape[0], : x.shape[1]]
        y[:] = 2 * x
        return [{"y": y, "rows": np.full(len(x), len(x), np.int64)}[name] for name in outputs]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    fake = SimpleNamespace(Tensor=FakeTensor, InferenceResponse=FakeResponse, TritonError=FakeError)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    sys.modules.pop("labkit.backends.standin", None)
    yield importlib.import_module("labkit.backends.standin")
    sys.modules.pop("labkit.backends.standin", None)


@pytest.fixture
def backend(standin: ModuleType) -> Any:
    return start(standin, max_batch_size=8)


def start(standin: ModuleType, max_batch_size: int) -> Any:
    dims = [-1] if max_batch_size else [-1, -1]
    config = {
        "max_batch_size": max_batch_size,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": dims}],
        "output": [
            {"name": "y", "data_type": "TYPE_FP32", "dims": dims},
            {"name": "rows", "data_type": "TYPE_INT64", "dims": dims[1:]},
        ],
    }

    class Backend(standin.StandIn):  # type: ignore[name-defined]
        def load(self, settings: Any) -> FakeEngine:
            return FakeEngine()

    backend = Backend()
    backend.initialize(
        {
            "model_config": json.dumps(config),
            "model_name": "double",
            "model_repository": "/models/double",
            "model_version": "1",
            "model_instance_name": "double_0_0",
            "model_instance_kind": "CPU",
        }
    )
    return backend


def rows(*numbers: float, columns: int = 2) -> np.ndarray:
    return np.array([[number] * columns for number in numbers], np.float32)


def answers(backend: Any, *requests: FakeRequest) -> list[Any]:
    responses = backend.execute(list(requests))
    return [response.error or response.outputs()["y"] for response in responses]


def test_requests_run_as_one_batch_and_get_their_own_rows(backend: Any) -> None:
    got = answers(
        backend, FakeRequest(x=rows(1)), FakeRequest(x=rows(2, 3)), FakeRequest(x=rows(4))
    )
    assert got == [[[2, 2]], [[4, 4], [6, 6]], [[8, 8]]]
    assert backend.engine.shapes == [(4, 2)]


def test_a_single_request_is_not_copied(backend: Any) -> None:
    x = rows(1, 2)
    assert answers(backend, FakeRequest(x=x)) == [[[2, 2], [4, 4]]]
    assert np.shares_memory(backend.engine.inputs[0], x)


def test_batches_share_one_buffer(backend: Any) -> None:
    for numbers in ((1, 2), (3, 4)):
        answers(backend, *(FakeRequest(x=rows(number)) for number in numbers))
    first, second = backend.engine.inputs
    assert first.base is second.base


def test_other_shapes_run_apart_and_keep_their_answers(backend: Any) -> None:
    got = answers(
        backend,
        FakeRequest(x=rows(1)),
        FakeRequest(x=rows(2, columns=3)),
        FakeRequest(x=rows(3)),
    )
    assert got == [[[2, 2]], [[4, 4, 4]], [[6, 6]]]  # although the engine reuses its memory
    assert backend.engine.shapes == [(2, 2), (1, 3)]


def test_a_bad_request_fails_alone(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, last = answers(
        backend, FakeRequest(x=rows(1)), FakeRequest(x=rows(-1)), FakeRequest(x=rows(3))
    )
    assert (good, last) == ([[2, 2]], [[6, 6]])
    assert bad.code == FakeError.INVALID_ARG
    assert str(bad) == "negative"
    assert "double: request failed: negative" in capsys.readouterr().err


def test_a_failing_engine_is_the_servers_fault_and_leaves_a_traceback(
    backend: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(inputs: Any, outputs: Any) -> None:
        raise ValueError("out of chalk")

    monkeypatch.setattr(backend.engine, "run", run_out)
    # Triton counts requests as failed where the execution fails.
    with pytest.raises(Exception, match=r"^out of chalk$") as error:
        answers(backend, FakeRequest(x=rows(1)), FakeRequest(x=rows(2)))
    assert type(error.value).__name__ == "Internal"
    assert len(traceback.extract_tb(error.tb)) == 2  # of this file only: none reaches a client
    log = capsys.readouterr().err
    assert "double: request failed: out of chalk" in log
    assert "in run_out" in log


def test_only_wanted_outputs_are_computed_and_sent(backend: Any) -> None:
    responses = backend.execute([FakeRequest(["rows"], x=rows(1)), FakeRequest(["y"], x=rows(2))])
    assert [list(response.outputs()) for response in responses] == [["rows"], ["y"]]
    assert responses[0].outputs() == {"rows": [2]}


def test_without_batching_every_request_runs_by_itself(standin: ModuleType) -> None:
    backend = start(standin, max_batch_size=0)
    got = answers(backend, FakeRequest(x=rows(1)), FakeRequest(x=rows(2, 3)))
    assert got == [[[2, 2]], [[4, 4], [6, 6]]]
    assert backend.engine.shapes == [(1, 2), (2, 2)]


def test_a_model_that_loses_rows_is_refused(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backend.engine, "run", lambda inputs, outputs: [np.zeros((1, 2), np.float32)]
    )
    responses = backend.execute([FakeRequest(x=rows(1)), FakeRequest(x=rows(2, 3))])
    assert responses[0].error is None  # run again by itself, and one row is right for it
    assert "shape [1, 2] for a batch of 2, expected one row for each" in str(responses[1].error)
    assert responses[1].error.code == FakeError.INTERNAL


def test_an_output_of_another_type_is_refused(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.engine, "run", lambda inputs, outputs: [inputs["x"].astype("f8")])
    with pytest.raises(Exception, match="output 'y' is float64, expected float32"):
        answers(backend, FakeRequest(x=rows(1)))
