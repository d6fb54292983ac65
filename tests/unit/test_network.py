"""The network of notebook 02: shapes, whitening, export; and that a run's own network is loaded."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lesson import cell_source, network, run_cells
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from labkit.network import NetworkError, NetworkRunner, load_network
from labkit.runtime import predict

TINY = (4, 6, 8)


@pytest.fixture
def model() -> nn.Module:
    """A tiny network with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = network(TINY)
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
    training = SimpleNamespace(pixels=pixels)
    page = run_cells("02_train", "imports", "network")
    run_cells("02_train", "whitening", **vars(page), model=model, training=training)
    after = _covariance_of_first_layer(model, pixels)
    assert torch.allclose(after, torch.eye(12), atol=0.02)
    assert not torch.allclose(before, torch.eye(12), atol=0.02)
    first, second = model.whiten.weight.chunk(2)
    assert torch.equal(first, -second)


def _covariance_of_first_layer(model: nn.Module, pixels: np.ndarray) -> torch.Tensor:
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


def test_the_layers_are_counted_from_the_network_itself(capsys):
    page = run_cells("02_train", "imports", "network")
    page = run_cells("02_train", "layers", **vars(page), model=network(TINY))
    assert page.shapes["whiten"] == (24, 31, 31)
    assert page.shapes["stages.stage3b.conv"] == (8, 3, 3)
    macs = page.million_macs
    assert macs["CifarNet.whiten"] == pytest.approx(24 * 12 * 31 * 31 / 1e6)
    assert macs["CifarNet.stages.stage3b.conv"] == pytest.approx(8 * 8 * 9 * 9 / 1e6)
    assert macs["CifarNet.classifier"] == pytest.approx(80 / 1e6)
    assert f"{page.weights:,}" in capsys.readouterr().out


def test_the_real_size_is_small_enough_to_serve_on_a_cpu():
    page = run_cells("02_train", "imports", "network")
    page = run_cells("02_train", "layers", **vars(page), model=network((32, 128, 256)))
    assert 10 < page.macs < 60
    assert page.weights < 2_000_000


# --- a run's own network -----------------------------------------------------------------------


def save(model: nn.Module, folder: Path, source: str | None = None) -> Path:
    """Write `network.py` and `checkpoint.pt` as notebook 02 does; returns the checkpoint."""
    (folder / "network.py").write_text(source or cell_source("02_train", "network"))
    path = folder / "checkpoint.pt"
    config = {"mean": [0.5] * 3, "std": [0.25] * 3, "widths": TINY}
    torch.save({"config": config, "weights": model.state_dict()}, path)
    return path


def test_a_network_is_rebuilt_from_its_file_and_its_weights(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32)).astype(np.uint8)
    path = save(model, tmp_path)
    rebuilt = load_network(path)
    assert not rebuilt.training
    images = torch.from_numpy(pixels).float() / 255
    assert torch.equal(rebuilt(images), model(images))
    expected = model(images).detach().numpy()
    assert np.allclose(predict(NetworkRunner(path), pixels, batch=3), expected, atol=1e-5)


def test_a_changed_network_is_loaded_as_it_was_changed(tmp_path):
    """The class comes from the file, not from a copy that the lab has."""
    source = cell_source("02_train", "network")
    wider = re.sub(r"channels = 24 ", "channels = 30 ", source)
    names = {"__name__": "network"}
    exec(wider, names)
    changed = names["CifarNet"]([0.5] * 3, [0.25] * 3, TINY)
    assert load_network(save(changed, tmp_path, wider)).whiten.weight.shape == (30, 3, 2, 2)
    with pytest.raises(NetworkError, match=r"does not fit the CifarNet of network\.py"):
        load_network(save(changed, tmp_path))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("class CifarNet(", "SyntaxError"),
        ("class CifarNet(nn.Module): pass", "NameError.*must hold everything that the class needs"),
        ("class AnotherNet: pass", "no attribute 'CifarNet'"),
        ("def CifarNet(**config): return config", "does not fit"),
    ],
)
def test_a_network_file_that_does_not_do_says_why(model, tmp_path, source, why):
    with pytest.raises(NetworkError, match=why):
        load_network(save(model, tmp_path, source))


def test_checkpoints_that_are_none_are_refused_with_the_next_step(model, tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(NetworkError, match="run notebook 02_train first"):
        load_network(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(NetworkError, match="damaged"):
        load_network(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(NetworkError, match="no `config` and `weights`"):
        load_network(path)
    save(model, tmp_path).with_name("network.py").unlink()
    with pytest.raises(NetworkError, match=r"no network\.py beside the checkpoint"):
        load_network(path)


class Evil:
    """Unpickled, it would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "evil.pt")
    with pytest.raises(NetworkError, match="not a checkpoint"):
        load_network(tmp_path / "evil.pt")
    assert not Path("evil-was-here").exists()
