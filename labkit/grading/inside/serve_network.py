"""Serve a network of one matrix product as `cifar10_onnx`, for exercises that ask a server.

Its text is run with a folder that holds `network.json`. Prints the addresses of the three ports as
JSON, and serves until told to stop (SIGTERM).
"""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from labkit.repository import VARIANTS, write_config
from labkit.server import TritonServer

MODEL = "cifar10_onnx"


def main(folder: str) -> int:
    """Serve the network; return the exit status."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    network = json.loads(Path(folder, "network.json").read_text(encoding="utf-8"))
    repository = Path(folder) / "repository"
    # Without batching, the server's counters show each request as it was sent.
    write_config(repository, replace(VARIANTS[MODEL], dynamic_batching=False))
    write_network(repository / MODEL / "1", network)
    log_path = Path(folder) / "triton.log"
    with TritonServer(repository, log_path=log_path, exit_timeout_s=1) as server:
        addresses = {"http": server.http, "grpc": server.grpc, "metrics": server.metrics}
        print(json.dumps(addresses), flush=True)
        server.wait()
    return 0


def write_network(folder: Path, network: dict[str, list[float]]) -> None:
    """Write `model.onnx`: `input` (batch, 3, 32, 32) → `logits` (batch, 10).

    Args:
        folder: Of the model's version.
        network: `weight`, 3,072 numbers for each of the logits in turn, and `bias`.
    """
    bias = np.array(network["bias"], dtype=np.float32)
    weight = np.array(network["weight"], dtype=np.float32).reshape(len(bias), -1)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["pixels"]),
            helper.make_node("Gemm", ["pixels", "weight", "bias"], ["logits"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    opset = [helper.make_opsetid("", 17)]
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
