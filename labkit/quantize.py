"""Turn the FP32 network into 8-bit ones, with three toolkits, each for its own runtime.

All three do the same thing: they watch the activations of some images to choose a scale for every
tensor ("calibration"), and round weights and activations to 8 bits. What they must not see is the
validation or the test set: a scale chosen on the images that judge it proves nothing.

On x86 CPUs without VNNI, an 8-bit multiplication goes through a sum of two products in 16 bits,
which saturates at 32,767 while two products of full range reach 2 · 255 · 127 = 64,770. Each
toolkit has its own way out, and each costs one bit: PyTorch takes it from the activations, ONNX
Runtime and NNCF take it from the weights. The files made here must serve on any CPU, so the way
out is taken by default.
"""

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import rich
import torch
from torch import nn

from labkit.data import IMAGE_SHAPE
from labkit.errors import LabError
from labkit.export import INPUT, OUTPUT
from labkit.runtime import Floats, quiet_torchscript
from labkit.workspace import atomic_path

# Layers that stay in float32, by the name of their module. The first convolution divides by the
# square roots of small eigenvalues, so it blows up the rounding of its input; the last layer's
# rounding would fall on the logits themselves. Together they are about 1 % of the arithmetic.
KEEP_FLOAT = ("normalize", "whiten", "classifier")
CALIBRATION_BATCH = 32  # images per step


class QuantizationError(LabError):
    """A model that cannot be quantized as asked."""


def quantize_torchscript(
    model: nn.Module,
    images: Floats,
    reduce_range: bool = True,
    per_channel: bool = True,
    keep_float: Sequence[str] = KEEP_FLOAT,
    engine: str | None = None,
) -> torch.jit.ScriptModule:
    """Quantize with PyTorch: static, traced; input and output stay float32.

    The file holds the numbers only; when it is loaded, the weights are packed for the loading
    process's `torch.backends.quantized.engine`. On x86-64 the default, `x86`, is right and
    nothing need be set; on ARM it must be `qnnpack`.

    Args:
        model: In eval mode, FP32, not yet folded; it is not changed.
        images: Calibration images (N, 3, 32, 32) float32 in [0, 1].
        reduce_range: Use 7 bits for the activations, so that no 16-bit sum saturates.
        per_channel: One scale for each output channel of a weight, else one for all.
        keep_float: Names of modules that are not quantized.
        engine: For which kernels, one of `torch.backends.quantized.supported_engines`; None for
            `x86` where it is supported, else `qnnpack`.

    Raises:
        QuantizationError: no images, training mode, an unknown module or engine.
    """
    from torch.ao.quantization import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
    from torch.ao.quantization.qconfig import QConfig
    from torch.ao.quantization.qconfig_mapping import QConfigMapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    _check_images(images)
    if model.training:
        raise QuantizationError("got a model in training mode, expected eval: call model.eval()")
    if unknown := set(keep_float) - {name for name, _ in model.named_modules()}:
        raise QuantizationError(f"keep_float names unknown modules: {', '.join(sorted(unknown))}")
    engines = torch.backends.quantized.supported_engines
    engine = engine or ("x86" if "x86" in engines else "qnnpack")
    if engine not in engines:
        raise QuantizationError(f"got engine {engine!r}, expected one of {', '.join(engines)}")
    observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    settings = QConfig(
        activation=HistogramObserver.with_args(
            dtype=torch.quint8, quant_min=0, quant_max=127 if reduce_range else 255
        ),
        weight=observer.with_args(dtype=torch.qint8, qscheme=scheme),
    )
    mapping = QConfigMapping().set_global(settings)
    for name in keep_float:
        mapping.set_module_name(name, None)
    batches = torch.from_numpy(images).split(CALIBRATION_BATCH)
    with quiet_torchscript(), torch.no_grad(), _engine(engine):
        observed = prepare_fx(copy.deepcopy(model), mapping, (batches[0],))
        for batch in batches:
            observed(batch)
        return torch.jit.trace(convert_fx(observed), (batches[0][:2],))


def quantize_onnx(
    source: Path,
    images: Floats,
    target: Path,
    reduce_range: bool = True,
    per_channel: bool = True,
    keep_float: Sequence[str] = KEEP_FLOAT,
) -> None:
    """Quantize with ONNX Runtime: static, in QDQ form, unsigned activations and signed weights.

    QDQ writes QuantizeLinear/DequantizeLinear pairs around ordinary operators; ONNX Runtime fuses
    them into integer kernels when it loads the file. Shape inference and graph optimization
    (constants, batch norms) run first.

    Args:
        source: The FP32 ONNX file.
        images: Calibration images (N, 3, 32, 32) float32 in [0, 1].
        target: Where the quantized file goes.
        reduce_range: Use 7 bits for the weights, so that no 16-bit sum saturates.
        per_channel: One scale for each output channel of a weight, else one for all.
        keep_float: Names of modules whose operators are not quantized.

    Raises:
        QuantizationError: no images, or a module that has no operator in the file.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _check_images(images)
    with tempfile.TemporaryDirectory() as folder, _quiet_root_logger():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        excluded = [node.name for node in _nodes_of(onnx.load(prepared), keep_float)]
        with atomic_path(target) as temporary:
            quantize_static(
                prepared,
                temporary,
                _CalibrationReader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
            )


def quantize_openvino(
    source: Path,
    images: Floats,
    target: Path,
    reduce_range: bool = True,
    keep_float: Sequence[str] = KEEP_FLOAT,
) -> None:
    """Quantize with NNCF: `target` (.xml) and the .bin beside it, any batch size.

    Weights are per channel; biases are corrected for the mean error that rounding causes, which
    the other two toolkits do not do.

    Args:
        source: The FP32 ONNX file.
        images: Calibration images (N, 3, 32, 32) float32 in [0, 1].
        target: Where the `.xml` goes.
        reduce_range: Use half the range for all weights, so that no 16-bit sum saturates.
        keep_float: Names of modules whose operators are not quantized.

    Raises:
        QuantizationError: no images, another suffix, or a module that has no operator in the file.
    """
    import openvino

    _check_images(images)
    if target.suffix != ".xml":
        raise QuantizationError(f"got target {target.name}, expected a name that ends in .xml")
    # Not Core().read_model: it leaves biases as computed shapes, where NNCF finds none to correct.
    model = openvino.convert_model(source)
    excluded = _openvino_names(model, _nodes_of(onnx.load(source), keep_float))
    quantized = _nncf_quantize(model, images, reduce_range, excluded)
    quantized.inputs[0].get_tensor().set_names({INPUT})
    quantized.outputs[0].get_tensor().set_names({OUTPUT})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        written = Path(folder) / target.name
        openvino.save_model(quantized, written, compress_to_fp16=False)
        # The weights first: whoever finds the .xml finds its .bin.
        for suffix in (".bin", ".xml"):
            written.with_suffix(suffix).replace(target.with_suffix(suffix))


def _nncf_quantize(model: Any, images: Floats, reduce_range: bool, excluded: list[str]) -> Any:
    """Run NNCF without its progress bars and its logging."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # looks for CUDA
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # Not nncf.set_log_level: that also silences handlers which others have put there.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if reduce_range else OverflowFix.DISABLE,
        # From the smallest to the largest value seen. NNCF's default, the mean over the images of
        # their extremes, cuts off more than it gains here: twice the error of the logits.
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    with _quiet_rich():
        return nncf.quantize(
            model,
            nncf.Dataset([{INPUT: image[None]} for image in images]),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            fast_bias_correction=False,  # layer after layer: seconds for a network of this size
            ignored_scope=nncf.IgnoredScope(names=excluded),
            advanced_parameters=advanced,
        )


class _CalibrationReader:
    """Hands calibration images to ONNX Runtime, one batch at a time."""

    def __init__(self, images: Floats) -> None:
        self._batches = iter(np.array_split(images, -(-len(images) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, Floats] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _nodes_of(model: onnx.ModelProto, modules: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the operators that the modules were exported to; `/whiten/Conv` comes of `whiten`.

    Raises:
        QuantizationError: a module has none.
    """
    nodes: list[onnx.NodeProto] = []
    for module in modules:
        prefix = "/" + module.replace(".", "/") + "/"
        found = [node for node in model.graph.node if node.name.startswith(prefix)]
        if not found:
            raise QuantizationError(f"keep_float: no operator of module {module!r} in the file")
        nodes += found
    return nodes


def _openvino_names(model: Any, nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return what OpenVINO calls these ONNX operators.

    Mostly the same; but it calls the last one by the output's name, and splits a convolution with
    a bias into `…/WithoutBiases` and an addition.
    """
    known = {operator.get_friendly_name() for operator in model.get_ops()}
    return [
        name
        for node in nodes
        for name in (node.name, f"{node.name}/WithoutBiases", *node.output)
        if name in known
    ]


def _check_images(images: Floats) -> None:
    """Refuse calibration images that would give meaningless scales."""
    if len(images) == 0 or images.shape[1:] != IMAGE_SHAPE or images.dtype != np.float32:
        raise QuantizationError(
            f"got calibration images {images.dtype} {images.shape}, expected float32 "
            f"(N, {', '.join(map(str, IMAGE_SHAPE))}) with N ≥ 1: use labkit.data.preprocess"
        )
    if images.min() < 0 or images.max() > 1:
        raise QuantizationError(
            f"got calibration images from {images.min():.3g} to {images.max():.3g}, expected "
            "[0, 1]: normalization is inside the model"
        )


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Choose PyTorch's quantized kernels, and put the former choice back."""
    former = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = former


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hold back what ONNX Runtime's quantizer writes to the root logger, which is advice only."""
    root = logging.getLogger()
    former = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(former)


@contextmanager
def _quiet_rich() -> Iterator[None]:
    """Silence NNCF's progress bars, which have no switch and go to rich's global console."""
    console = rich.get_console()
    former = vars(console)
    rich.reconfigure(quiet=True, force_jupyter=False)
    try:
        yield
    finally:
        console.__dict__ = former
