"""Ask a server through the official clients, as the tests of both runtimes do."""

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from labkit.server import TritonServer


def infer(
    server: TritonServer,
    model: str,
    arrays: dict[str, np.ndarray],
    outputs: list[str] | None = None,
) -> dict[str, np.ndarray]:
    """Ask over gRPC, on a connection of its own: tests call it from several threads."""
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    wanted = [grpc.InferRequestedOutput(name) for name in outputs] if outputs else None
    with grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer(model, inputs, outputs=wanted, client_timeout=60)
    return {out.name: result.as_numpy(out.name) for out in result.get_response().outputs}


def status_of(server: TritonServer, model: str, arrays: dict[str, np.ndarray]) -> tuple[str, str]:
    """Ask over HTTP for something that must fail; return status and message."""
    inputs = []
    for name, array in arrays.items():
        inputs.append(http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    with (
        http.InferenceServerClient(server.http) as client,
        pytest.raises(InferenceServerException) as error,
    ):
        client.infer(model, inputs)
    return error.value.status(), error.value.message()


def counts(server: TritonServer, model: str) -> np.ndarray:
    """Return how many rows were answered, and in how many executions."""
    with grpc.InferenceServerClient(server.grpc) as client:
        stats = client.get_inference_statistics(model).model_stats[0]
    return np.array([stats.inference_count, stats.execution_count])


def ids(*tokens: int) -> dict[str, np.ndarray]:
    return {"ids": np.array([tokens], np.int64)}
