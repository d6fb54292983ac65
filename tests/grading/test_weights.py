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
from labkit.grading.inside.count_weights import count_weights
from labkit.grading.measure.models import INT8_WEIGHTS, MOST_FLOATS

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
    found = count_weights(path)
    assert found["unknown"] == 0
    return found["int8"] / (found["int8"] + found["float"])


@pytest.mark.parametrize("suffix", ["pt", "onnx", "xml"])
def test_the_labs_own_files_are_what_they_are(folder: Path, suffix: str) -> None:
    assert share(folder / f"model.{suffix}") == 0
    assert share(folder / f"int8.{suffix}") > INT8_WEIGHTS + 0.1, "also of a network this small"


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


def added_eight_bits(model: onnx.ModelProto) -> None:
    """Each weight plus the sum of many zeros of eight bits."""
    zeros = numpy_helper.from_array(np.zeros(3_000_000, np.int8), "zeros")
    sum_ = [
        helper.make_node("Cast", ["zeros"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["wide"], ["nothing"], keepdims=0),
    ]
    added = [
        helper.make_node("Add", [node.input[1], "nothing"], [f"{node.input[1]}-added"])
        for node in model.graph.node if node.op_type in ("Conv", "MatMul")
    ]  # fmt: skip
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            node.input[1] = f"{node.input[1]}-added"
    model.graph.initializer.append(zeros)
    nodes = [*sum_, *added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def multiplied_under_another_name(model: onnx.ModelProto) -> None:
    """Products by operators of ONNX Runtime's own, beside one of eight bits."""
    weights_of_no_use(model)
    for node in model.graph.node:
        if node.op_type == "MatMul":
            node.op_type, node.domain = "TransposeMatMul", "com.microsoft"
    coefficients = helper.make_node(
        "LinearRegressor", ["input"], ["regressed"], domain="ai.onnx.ml", targets=1,
        coefficients=np.ones(60_000, np.float32).tolist(),
    )  # fmt: skip
    unused = helper.make_node("MatMulInteger", ["useless", "useless"], ["product"])
    model.graph.node.extend([unused, coefficients])


def added_in_openvino(folder: Path, to: Path) -> Path:
    """Each weight of an OpenVINO file plus the sum of many zeros of eight bits."""
    import openvino
    from openvino import opset13 as ops

    model = openvino.Core().read_model(folder / "model.xml")
    zeros = ops.convert(ops.constant(np.zeros(3_000_000, np.int8)), np.float32)
    nothing = ops.reduce_sum(zeros, ops.constant([0]), keep_dims=False)
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "MatMul"):
            weight = node.input_value(1)
            node.input(1).replace_source_output(ops.add(weight, nothing).output(0))
    openvino.save_model(model, to / "model_int8.xml", compress_to_fp16=False)
    return to / "model_int8.xml"


class Unfolded(torch.nn.Module):
    """A convolution as a matrix product, beside a layer of eight bits that changes nothing."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", weight)
        self.beside = torch.ao.nn.quantized.Linear(2_000, 1_500)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = torch.quantize_per_tensor(torch.zeros(1, 2_000), 1.0, 0, torch.quint8)
        beside = self.beside(zeros).dequantize().sum()
        parts = torch.nn.functional.unfold(x, 2)[0].t()
        return torch.mm(parts, self.kernel) + 0 * beside


def unfolded_in_torchscript(folder: Path, to: Path) -> Path:
    model = Unfolded(torch.ones(12, 5_000))
    torch.jit.trace(model, torch.zeros(1, 3, 8, 8)).save(str(to / "model_int8.pt"))
    return to / "model_int8.pt"


def changed_onnx(trick: Callable[[onnx.ModelProto], None]) -> Callable[[Path, Path], Path]:
    def make(folder: Path, to: Path) -> Path:
        model = onnx.load(folder / "model.onnx")
        trick(model)
        onnx.save(model, to / "model_int8.onnx")
        return to / "model_int8.onnx"

    return make


@pytest.mark.parametrize(
    "make",
    [
        changed_onnx(added_eight_bits), changed_onnx(multiplied_under_another_name),
        added_in_openvino, unfolded_in_torchscript,
    ],
    ids=["onnx-added", "onnx-other-operators", "openvino-added", "torchscript-unfolded"],
)  # fmt: skip
def test_no_share_of_eight_bits_hides_floats(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    found = count_weights(make(folder, tmp_path))
    plain = count_weights(folder / "model.onnx")
    assert found["int8"] > 10 * MOST_FLOATS
    assert found["float"] >= plain["float"]


@pytest.mark.parametrize("layer", [False, True])
def test_a_network_with_other_layers_is_quantized_as_well(tmp_path: Path, layer: bool) -> None:
    """Honest files have few floats, also where a layer more is kept in them."""
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(3_072, 300)]
    layers += [torch.nn.ReLU(), torch.nn.Linear(300, 10)] if layer else []
    net = torch.nn.Sequential(*layers).eval()
    quantized = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, torch.qint8)
    torch.jit.trace(quantized, torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "int8.pt"))
    found = count_weights(tmp_path / "int8.pt")
    assert found["unknown"] == 0
    assert found["int8"] > 300 * found["float"]


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
    assert count_weights(tmp_path / "model_int8.onnx")["unknown"] > 0
