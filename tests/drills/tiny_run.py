"""A run with nothing but a small model of the lab's own name and shapes: no training needed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from labkit.repository import VARIANTS, write_config

MODEL = "cifar10_onnx"
CHANNELS = (3, 48, 48, 48)  # enough work, a millisecond or two, that ten times as much can be sent


def write_run(root: Path) -> Path:
    """Write `model_repository/cifar10_onnx` below a folder: three convolutions and a mean."""
    rng = np.random.default_rng(0)
    nodes, weights, tensor = [], {}, "input"
    for number, (inside, outside) in enumerate(pairwise(CHANNELS)):
        kernel = rng.normal(0, 0.05, (outside, inside, 3, 3)).astype(np.float32)
        weights[f"kernel_{number}"] = kernel
        nodes.append(
            helper.make_node(
                "Conv", [tensor, f"kernel_{number}"], [f"maps_{number}"], pads=[1, 1, 1, 1]
            )
        )
        tensor = f"maps_{number}"
    weights["last"] = rng.normal(0, 1, (CHANNELS[-1], 10)).astype(np.float32)
    nodes += [
        helper.make_node("ReduceMean", [tensor], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "last"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    repository = root / "model_repository"
    write_config(repository, VARIANTS[MODEL])
    (repository / MODEL / "1").mkdir()
    onnx.save(model, repository / MODEL / "1" / "model.onnx")
    return root
