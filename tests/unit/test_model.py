"""The network: shapes, whitening, and that it survives folding, tracing and export."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from labkit.model import (
    CifarNet,
    ModelError,
    layer_table,
    set_whitening,
    training_flops,
)

TINY = (4, 6, 8)


@pytest.fixture
def model() -> CifarNet:
    """A tiny network with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = CifarNet(TINY)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.5, 0.5)
                layer.running_var.uniform_(0.5, 2.0)
                layer.bias.uniform_(-0.5, 0.5)
    return model.eval()


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("size", [20, 24, 28, 32])
def test_gives_ten_logits_at_every_training_size(model, count, size):
    logits = model(images(count, size))
    assert logits.shape == (count, 10)
    assert torch.isfinite(logits).all()


def test_config_rebuilds_the_same_network(model):
    twin = CifarNet(**model.config)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(images(2)), model(images(2)))


@pytest.mark.parametrize("widths", [(), (4, 4), (4, 0, 4), (4, 4, 4, 4)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ModelError, match="three channel counts"):
        CifarNet(widths)


def test_normalization_is_inside(model):
    mean = model.normalize.mean.expand(1, 3, 32, 32)
    assert torch.allclose(model.normalize(mean), torch.zeros(1, 3, 32, 32), atol=1e-6)


def test_images_of_a_batch_do_not_influence_each_other(model):
    batch = images(5)
    alone = torch.cat([model(image[None]) for image in batch])
    assert torch.allclose(model(batch), alone, atol=1e-5)


def test_whitening_decorrelates_the_patches(model):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32)).astype(np.uint8)
    pixels[:, 1] = pixels[:, 0] // 2 + pixels[:, 1] // 2  # correlated colours
    before = _covariance_of_first_layer(model, pixels)
    set_whitening(model, pixels)
    after = _covariance_of_first_layer(model, pixels)
    assert torch.allclose(after, torch.eye(12), atol=0.02)
    assert not torch.allclose(before, torch.eye(12), atol=0.02)
    first, second = model.whiten.weight.chunk(2)
    assert torch.equal(first, -second)


def _covariance_of_first_layer(model: CifarNet, pixels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        outputs = model.whiten(model.normalize(torch.from_numpy(pixels).float() / 255))
    rows = outputs[:, :12].permute(0, 2, 3, 1).reshape(-1, 12)
    return rows.T @ rows / len(rows)


def test_every_batch_norm_folds_into_the_convolution_before_it(model):
    expected = model(images(3))
    folded = 0
    for stage in model.stages:
        stage.conv = fuse_conv_bn_eval(stage.conv, stage.norm)
        stage.norm = nn.Identity()
        folded += 1
    assert folded == 6
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert torch.allclose(model(images(3)), expected, atol=1e-5)


def test_traces_and_freezes_for_any_batch(model):
    traced = torch.jit.freeze(torch.jit.trace(model, images(1)))
    for count in (1, 7):
        assert torch.allclose(traced(images(count)), model(images(count)), atol=1e-5)


def test_exports_to_onnx_opset_17_with_plain_operators(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (images(1),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    operators = {node.op_type for node in graph.graph.node} - {"Constant"}
    assert operators <= {
        *("Sub", "Div", "Conv", "Relu", "MaxPool", "GlobalAveragePool", "Flatten"),
        *("Gemm", "MatMul", "Transpose", "Identity"),
    }


def test_static_int8_quantization_by_fx_keeps_the_answers(model):
    from torch.ao.quantization import QConfigMapping, get_default_qconfig, quantize_fx

    engine = next(
        name
        for name in ("x86", "fbgemm", "qnnpack", "onednn")
        if name in torch.backends.quantized.supported_engines
    )
    mapping = QConfigMapping().set_global(get_default_qconfig(engine))
    mapping.set_module_name("normalize", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = engine
        prepared = quantize_fx.prepare_fx(model, mapping, (images(1),))
        prepared(images(64))
        quantized = quantize_fx.convert_fx(prepared)
    error = (quantized(images(16)) - model(images(16))).abs().max()
    spread = model(images(16)).std()
    assert error < spread


def test_layer_table_counts_shapes_weights_and_operations():
    model = CifarNet(TINY)
    rows = {row.name: row for row in layer_table(model)}
    assert rows["whiten"].shape == (24, 31, 31)
    assert rows["whiten"].mega_macs == pytest.approx(24 * 12 * 31 * 31 / 1e6)
    assert not rows["whiten"].trained
    assert rows["stages.stage3b.conv"].shape == (8, 3, 3)
    assert rows["stages.stage3b.conv"].mega_macs == pytest.approx(8 * 8 * 9 * 9 / 1e6)
    assert rows["classifier"].mega_macs == pytest.approx(80 / 1e6)
    assert sum(row.parameters for row in rows.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert model.training, "the table must leave the mode as it was"


def test_training_flops_follow_from_the_table():
    model = CifarNet(TINY)
    macs = {row.name: 1e6 * row.mega_macs for row in layer_table(model)}
    first = macs["stages.stage1a.conv"]
    rest = sum(macs.values()) - macs["whiten"] - first
    assert training_flops(model) == pytest.approx(2 * macs["whiten"] + 4 * first + 6 * rest)


def test_the_real_size_is_small_enough_to_serve_on_a_cpu():
    rows = layer_table(CifarNet())
    assert 10 < sum(row.mega_macs for row in rows) < 60
    assert sum(row.parameters for row in rows) < 2_000_000
