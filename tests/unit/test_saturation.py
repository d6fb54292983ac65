import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from lesson import export_files, network, quantizers
from torch import nn

from labkit import export
from labkit.runtime import Floats, cpu_features, load_runner, probe_images
from labkit.saturation import SaturationError, layer_operands, run_without_vnni

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or "avx2" not in cpu_features(),
    reason="vpmaddubsw is an instruction of x86 CPUs with AVX2",
)


@pytest.fixture(scope="module")
def images() -> Floats:
    return probe_images(8)


@pytest.fixture(scope="module")
def int8(images: Floats, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    export_files(network().eval(), folder, "onnx")
    quantizers(folder).quantize_onnx(folder / "model.onnx", images, folder / "int8.onnx")
    return folder / "int8.onnx"


def test_operands_are_what_the_convolution_multiplies(int8: Path, images: Floats) -> None:
    """Multiplied out, they give the very integers that the layer gives."""
    import onnx
    import onnxruntime

    operands = layer_operands(int8, "stages.stage2b.conv", images, positions=10**6)
    assert operands.activations.dtype == np.uint8
    assert operands.weights.dtype == np.int8
    assert operands.weights.shape == (16, 9 * 16)
    assert operands.activations.shape == (len(images) * 7 * 7, 9 * 16)

    model = onnx.load(int8)
    maker = {name: node for node in model.graph.node for name in node.output}
    conv = next(n for n in model.graph.node if n.name == "/stages/stage2b/conv/Conv")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = [tensors[maker[name].input[1]] for name in conv.input[:2]]
    bias = maker[conv.input[2]]
    while bias.op_type == "Identity":  # layers with equal biases share one
        bias = maker[bias.input[0]]
    offsets = tensors[bias.input[0]] * tensors[bias.input[1]]
    conv.output[0], former = "seen", conv.output[0]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == former:
                node.input[index] = "seen"
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None)
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    expected = session.run(["seen"], {"input": images})[0].transpose(0, 2, 3, 1).reshape(-1, 16)
    integers = operands.activations.astype(np.int64) @ operands.weights.T.astype(np.int64)
    np.testing.assert_allclose(integers * scales[0] * scales[1] + offsets, expected, atol=1e-4)


def test_positions_are_spread_over_all_images(int8: Path, images: Floats) -> None:
    everything = layer_operands(int8, "stages.stage2b.conv", images, positions=10**6).activations
    some = layer_operands(int8, "stages.stage2b.conv", images, positions=5).activations
    assert len(some) == 5
    np.testing.assert_array_equal(some[[0, -1]], everything[[0, -1]])


@pytest.mark.parametrize("module", ["whiten", "stages.stage9.conv"])
def test_a_layer_that_is_not_quantized_is_refused(int8: Path, images: Floats, module: str) -> None:
    with pytest.raises(SaturationError, match=f"no quantized convolution for module '{module}'"):
        layer_operands(int8, module, images)


@x86
def test_without_vnni_full_range_saturates_and_reduced_range_does_not(tmp_path: Path) -> None:
    """White pixels and the largest weights: two products share 16 bits, and do not fit."""
    worst = nn.Sequential(nn.Conv2d(3, 1, 3, bias=False), nn.Flatten()).eval().requires_grad_(False)
    nn.init.ones_(worst[0].weight)
    white = np.ones((2, 3, 32, 32), np.float32)
    page = quantizers(tmp_path)
    paths = [tmp_path / "full.pt", tmp_path / "reduced.pt"]
    for path, reduce in zip(paths, (False, True), strict=True):
        module = page.quantize_torchscript(worst, white, reduce_range=reduce, keep_float=())
        export.save_torchscript(module, path)
    full, reduced = run_without_vnni(paths, white)
    np.testing.assert_allclose(reduced, 27, rtol=0.01)
    # Which products share 16 bits is the kernel's choice: of each position's three channels two, or
    # of all 27 products each with the next.
    one = 255 * 127
    sums = (9 * (32_767 + one) / one, (13 * 32_767 + one) / one)
    assert any(np.allclose(full, expected, rtol=0.02) for expected in sums), full[0, 0]
    if cpu_features() & {"avx512_vnni", "avx_vnni"}:
        np.testing.assert_allclose(load_runner(paths[0])(white), 27, rtol=0.01)


def test_failures_of_the_child_are_sentences(tmp_path: Path, images: Floats, int8: Path) -> None:
    with pytest.raises(SaturationError, match=r"int8\.onnx, expected \.pt or \.xml"):
        run_without_vnni([int8], images)
    with pytest.raises(SaturationError, match=r"running without VNNI failed: .*does not exist"):
        run_without_vnni([tmp_path / "absent.pt"], images)
    (tmp_path / "slow.pt").write_bytes(b"")
    with pytest.raises(SaturationError, match="within 0 s"):
        run_without_vnni([tmp_path / "slow.pt"], images, timeout_s=0.01)
