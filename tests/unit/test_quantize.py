import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from lesson import export_files, network, quantizers
from onnx import TensorProto, numpy_helper
from torch import nn

from labkit import export
from labkit.runtime import Floats, load_runner, logit_error, predict, probe_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def pictures(count: int, seed: int) -> Floats:
    """Return images (count, 3, 32, 32) that differ in colour, brightness and texture."""
    random = np.random.default_rng(seed)
    colour = random.random((count, 3, 1, 1), dtype=np.float32)
    texture = random.random((count, 3, 32, 32), dtype=np.float32) - 0.5
    return np.clip(colour + texture * random.random((count, 1, 1, 1), dtype=np.float32), 0, 1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = network()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():  # give the batch norms statistics of the images used here
        for _ in range(20):
            net.train()(torch.from_numpy(pictures(32, seed=0)))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Floats:
    return pictures(48, seed=1)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What notebook 04 defines."""
    return quantizers(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def source(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    export_files(model, folder, "onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def files(
    page: SimpleNamespace,
    model: nn.Module,
    images: Floats,
    source: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    paths = {suffix: folder / f"model_int8{suffix}" for suffix in (".pt", ".onnx", ".xml")}
    export.save_torchscript(page.quantize_torchscript(model, images), paths[".pt"])
    page.quantize_onnx(source, images, paths[".onnx"])
    page.quantize_openvino(source, images, paths[".xml"])
    return paths


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Return the 8-bit kernels of an ONNX file."""
    tensors = onnx.load(path).graph.initializer
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in tensors
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    }


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".xml"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_int8_is_near_fp32_but_not_it(
    files: dict[str, Path], source: Path, suffix: str, batch: int
) -> None:
    fresh = pictures(batch, seed=2)
    expected = load_runner(source)(fresh)
    got = load_runner(files[suffix])(fresh)
    assert got.dtype == np.float32
    assert got.shape == (batch, 10)
    assert np.abs(got - expected).max() > 0
    assert logit_error(got, expected) < 0.1


def test_nothing_but_the_files_is_left(files: dict[str, Path]) -> None:
    names = {path.name for path in files[".pt"].parent.iterdir()}
    assert names == {f"model_int8{suffix}" for suffix in (".pt", ".onnx", ".xml", ".bin")}


def test_first_and_last_layer_stay_in_float(files: dict[str, Path]) -> None:
    kinds = export.torchscript_operators(torch.jit.load(files[".pt"]))
    assert kinds["quantized::conv2d_relu"] == 6
    assert kinds["aten::_convolution"] == kinds["aten::linear"] == 1
    graph = onnx.load(files[".onnx"]).graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    from_bytes = Counter(
        (node.op_type, maker.get(node.input[1]) == "DequantizeLinear")
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
    )
    assert from_bytes == {("Conv", True): 6, ("Conv", False): 1, ("MatMul", False): 1}


def test_openvino_has_names_a_free_batch_and_six_byte_kernels(files: dict[str, Path]) -> None:
    import openvino

    network = openvino.Core().read_model(files[".xml"])
    (entry,), (end,) = network.inputs, network.outputs
    assert entry.get_names() == {"input"}
    assert end.get_names() == {"logits"}
    assert str(entry.get_partial_shape()) == "[?,3,32,32]"
    assert str(end.get_partial_shape()) == "[?,10]"
    kernels = [
        operator
        for operator in network.get_ops()
        if operator.get_type_name() == "Constant"
        and operator.get_element_type().get_type_name() == "i8"
        and len(operator.get_output_shape(0)) == 4
    ]
    assert len(kernels) == 6
    assert max(np.abs(kernel.data).max() for kernel in kernels) <= 64  # reduced range


def test_the_range_of_onnx_weights(
    page: SimpleNamespace, source: Path, images: Floats, tmp_path: Path
) -> None:
    largest = {}
    for reduce in (True, False):
        path = tmp_path / f"{reduce}.onnx"
        page.quantize_onnx(source, images, path, reduce_range=reduce)
        kernels = weights_of(path).values()
        assert len(kernels) == 6
        largest[reduce] = max(int(np.abs(kernel.astype(int)).max()) for kernel in kernels)
    # Two products of at most 255 · 64 fit into 16 bits; of 255 · 127 they do not.
    assert largest[True] == 64
    assert 2 * 255 * largest[True] <= 32_767
    assert largest[False] == 127


def test_per_channel_scales(
    page: SimpleNamespace, source: Path, images: Floats, tmp_path: Path
) -> None:
    for per_channel in (True, False):
        path = tmp_path / f"{per_channel}.onnx"
        page.quantize_onnx(source, images, path, per_channel=per_channel)
        tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for name, kernel in weights_of(path).items():
            scale = tensors[name.replace("_quantized", "_scale")]
            assert scale.size == (len(kernel) if per_channel else 1)


def test_per_channel_is_nearer(
    page: SimpleNamespace, source: Path, images: Floats, tmp_path: Path
) -> None:
    exact = {t.name: numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    errors = {}
    for per_channel in (True, False):
        path = tmp_path / f"{per_channel}.onnx"
        page.quantize_onnx(source, images, path, per_channel=per_channel)
        tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        errors[per_channel] = 0.0
        for name, kernel in weights_of(path).items():
            scale = tensors[name.replace("_quantized", "_scale")].reshape(-1, 1, 1, 1)
            difference = kernel * scale - exact[name.removesuffix("_quantized")]
            errors[per_channel] += float((difference**2).sum())
    assert errors[True] < 0.8 * errors[False]


def test_torchscript_activations_have_seven_bits(
    page: SimpleNamespace, model: nn.Module, images: Floats
) -> None:
    """Scales double when the same range is covered by half the levels."""
    scales = {}
    for reduce in (True, False):
        module = page.quantize_torchscript(model, images, reduce_range=reduce)
        node = next(
            n for n in module.inlined_graph.nodes() if n.kind() == "aten::quantize_per_tensor"
        )
        scales[reduce] = _constant(module, node)
    assert scales[True] / scales[False] == pytest.approx(255 / 127, rel=0.1)


def _constant(module: torch.jit.ScriptModule, node: torch._C.Node) -> float:
    """Return the scale that a quantize_per_tensor node is given."""
    buffers = dict(module.named_buffers())
    return float(next(value for name, value in buffers.items() if name.endswith("_scale_0")))


def test_the_model_is_not_changed(page: SimpleNamespace, model: nn.Module, images: Floats) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = torch.backends.quantized.engine
    page.quantize_torchscript(model, images)
    assert torch.backends.quantized.engine == engine
    assert list(before) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_fresh_process_needs_pytorch_only(files: dict[str, Path]) -> None:
    images = probe_images(5, seed=3)
    np.save(files[".pt"].with_name("in.npy"), images)
    program = (
        "import sys; sys.modules['labkit'] = None; import numpy, torch\n"
        "x = torch.from_numpy(numpy.load(sys.argv[2]))\n"
        "print(torch.jit.load(sys.argv[1])(x).argmax(1).tolist())"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(files[".pt"])]
    child = subprocess.run(
        [*command, str(files[".pt"].with_name("in.npy"))],
        capture_output=True,
        text=True,
        check=True,
    )
    files[".pt"].with_name("in.npy").unlink()
    assert child.stdout.strip() == str(load_runner(files[".pt"])(images).argmax(1).tolist())


def test_loading_and_quantizing_are_silent(files: dict[str, Path]) -> None:
    """PyTorch warns from C++, past Python's filters: only the process's stderr tells."""
    program = (
        "import sys; from labkit.runtime import load_runner, probe_images\n"
        "load_runner(sys.argv[1])(probe_images(2))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(files[".pt"])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (child.stdout, child.stderr) == ("", "")


def test_quantizers_print_nothing(
    page: SimpleNamespace,
    model: nn.Module,
    source: Path,
    images: Floats,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    page.quantize_torchscript(model, images)
    page.quantize_onnx(source, images, tmp_path / "m.onnx")
    page.quantize_openvino(source, images, tmp_path / "m.xml")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_logging_of_others_is_left_as_it_was(
    page: SimpleNamespace, source: Path, images: Floats, tmp_path: Path
) -> None:
    """A handler on NNCF's logger, as pytest's own, serves other loggers too."""
    page.quantize_openvino(source, images, tmp_path / "first.xml")  # what importing NNCF changes
    handler = logging.NullHandler(logging.DEBUG)
    logging.getLogger("nncf").addHandler(handler)
    try:
        page.quantize_openvino(source, images, tmp_path / "m.xml")
    finally:
        logging.getLogger("nncf").removeHandler(handler)
    assert (handler.level, logging.getLogger().level) == (logging.DEBUG, logging.WARNING)


def test_equal_inputs_give_equal_files(
    page: SimpleNamespace, source: Path, images: Floats, tmp_path: Path
) -> None:
    """The .xml is left out: within one process OpenVINO numbers the names of operators on."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        page.quantize_onnx(source, images, tmp_path / name / "m.onnx")
        page.quantize_openvino(source, images, tmp_path / name / "m.xml")
    for name in ("m.onnx", "m.bin"):
        first, second = ((tmp_path / folder / name) for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name


def test_calibration_decides_the_scales(
    page: SimpleNamespace, model: nn.Module, images: Floats, tmp_path: Path
) -> None:
    """Scales from dark images cut off what brighter ones need."""
    expected = model(torch.from_numpy(images)).numpy()
    errors = []
    for name, seen in (("same", images), ("dark", 0.02 * images)):
        path = tmp_path / f"{name}.pt"
        export.save_torchscript(page.quantize_torchscript(model, seen), path)
        errors.append(logit_error(load_runner(path)(images), expected))
    assert errors[1] > 3 * errors[0]


def test_a_failure_leaves_the_former_file(
    page: SimpleNamespace,
    source: Path,
    images: Floats,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("m.onnx", "m.xml", "m.bin"):
        (tmp_path / name).write_text("former")

    def broken(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setitem(page.quantize_onnx.__globals__, "quantize_static", broken)
    monkeypatch.setattr("openvino.save_model", broken)
    with pytest.raises(OSError, match="disk full"):
        page.quantize_onnx(source, images, tmp_path / "m.onnx")
    with pytest.raises(OSError, match="disk full"):
        page.quantize_openvino(source, images, tmp_path / "m.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.onnx", "m.xml"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"former"}


def test_accuracy_of_logits_survives_batching(files: dict[str, Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    for path in files.values():
        runner = load_runner(path)
        np.testing.assert_allclose(
            predict(runner, pixels, 7), predict(runner, pixels, 30), atol=1e-4
        )


def test_keep_float_names_the_lab_network(page: SimpleNamespace, model: nn.Module) -> None:
    assert set(page.KEEP_FLOAT) <= {name for name, _ in model.named_children()}
