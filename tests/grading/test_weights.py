"""What makes a file INT8: the weights behind its operators, in real files of every format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lesson import export_files, network, quantizers
from onnx import TensorProto, helper, numpy_helper

from labkit import export
from labkit.grading.inside.measure_files import weights

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one small network, as the lab makes them."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    net = network().eval().requires_grad_(False)
    images = np.random.default_rng(0).random((48, 3, 32, 32), dtype=np.float32)
    export_files(net, folder, "trace", "onnx")
    quantize = quantizers(folder)
    export.save_torchscript(quantize.quantize_torchscript(net, images), folder / "int8.pt")
    quantize.quantize_onnx(folder / "model.onnx", images, folder / "int8.onnx")
    quantize.quantize_openvino(folder / "model.onnx", images, folder / "int8.xml")
    import openvino

    plain = openvino.convert_model(str(folder / "model.onnx"))
    openvino.save_model(plain, folder / "model.xml", compress_to_fp16=False)
    openvino.save_model(plain, folder / "half.xml", compress_to_fp16=True)
    return folder


def share(path: Path) -> float:
    found = weights({"file": str(path)})
    assert found["unknown"] == 0
    return found["int8"] / (found["int8"] + found["float"])


@pytest.mark.parametrize("suffix", ["pt", "onnx", "xml"])
def test_the_labs_own_files_are_what_they_are(folder: Path, suffix: str) -> None:
    assert share(folder / f"model.{suffix}") == 0
    assert share(folder / f"int8.{suffix}") > 0.9


def test_half_precision_is_not_eight_bits(folder: Path) -> None:
    assert share(folder / "half.xml") == 0


def a_long_text(model: onnx.ModelProto) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "notes", "x" * 10**6


def weights_of_no_use(model: onnx.ModelProto) -> None:
    useless = np.ones((1_000, 1_000), np.int8)
    model.graph.initializer.append(numpy_helper.from_array(useless, "useless"))


def weights_added_to_nothing(model: onnx.ModelProto) -> None:
    weights_of_no_use(model)
    scale = numpy_helper.from_array(np.float32(1), "one")
    model.graph.initializer.append(scale)
    node = helper.make_node("DequantizeLinear", ["useless", "one"], ["unused"])
    model.graph.node.insert(0, node)


def values_instead_of_bytes(model: onnx.ModelProto) -> None:
    """FP32 weights as constants of nodes."""
    kept = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in kept:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))


@pytest.mark.parametrize(
    "trick", [a_long_text, weights_of_no_use, weights_added_to_nothing, values_instead_of_bytes]
)
def test_what_lies_beside_the_weights_makes_no_file_int8(
    folder: Path, tmp_path: Path, trick: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load(folder / "model.onnx")
    trick(model)
    onnx.save(model, tmp_path / "model_int8.onnx")
    assert share(tmp_path / "model_int8.onnx") == 0


def test_what_is_hidden_in_a_branch_is_not_taken_for_anything(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "branch", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["true"], ["out"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(True), "true")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "model_int8.onnx")
    assert weights({"file": str(tmp_path / "model_int8.onnx")})["unknown"] > 0
