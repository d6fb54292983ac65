"""Turn the trained network into files that a server loads: TorchScript, ONNX, TensorRT."""

import copy
import io
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from labkit.data import IMAGE_SHAPE
from labkit.errors import LabError
from labkit.runtime import Floats, agreement, quiet_torchscript
from labkit.signature import MAX_IR_VERSION
from labkit.workspace import atomic_path

INPUT, OUTPUT, BATCH_AXIS = "input", "logits", "batch"
OPSET = 17  # the newest one that PyTorch's TorchScript-based exporter is complete for
PARITY_BATCHES = (1, 7, 64)
PARITY_TOLERANCE = 1e-3  # of a logit; float32 sums in another order differ by about 1e-5
_BOOKKEEPING = {"prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::TupleConstruct"}


class ExportError(LabError):
    """A model that cannot be exported, or whose export does not compute the same."""


class TensorRTUnavailable(LabError):
    """No TensorRT engine can be built on this machine; the message says why."""


def trace(model: nn.Module) -> torch.jit.ScriptModule:
    """Record what `forward` does with one example batch, as a TorchScript module.

    Args:
        model: In eval mode; maps (N, 3, 32, 32) float32 in [0, 1] to logits (N, 10).

    Raises:
        ExportError: the model is in training mode, where a trace would keep updating statistics.
    """
    _require_eval(model)
    example = torch.zeros(2, *IMAGE_SHAPE)  # two, so that nothing can specialize on a batch of one
    with quiet_torchscript(), torch.no_grad():
        return torch.jit.trace(model, (example,))


class _ChannelsLast(nn.Module):
    """A network whose images and weights lie pixel by pixel in memory, as CPU kernels like it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def forward(self, input: Tensor) -> Tensor:
        return self.model(input.contiguous(memory_format=torch.channels_last))


def optimize(model: nn.Module) -> torch.jit.ScriptModule:
    """Trace a model for inference only: weights frozen, batch norms folded, channels last.

    Nothing in it depends on the CPU it was made on. `torch.jit.optimize_for_inference` goes
    further, into a layout private to one CPU, and its result cannot be saved.

    Raises:
        ExportError: the model is in training mode, or a batch norm is left after folding.
    """
    _require_eval(model)
    traced = trace(_ChannelsLast(model).eval())
    with quiet_torchscript():
        frozen = torch.jit.freeze(traced)
    left = torchscript_operators(frozen)["aten::batch_norm"]
    if left:
        raise ExportError(
            f"got {left} batch norms after folding, expected 0: each must follow a convolution "
            "directly, before the activation"
        )
    return frozen


def save_torchscript(module: torch.jit.ScriptModule, path: Path) -> None:
    """Write a TorchScript module, all or nothing."""
    # By way of memory: saved to a path, the archive would hold the temporary name of the file.
    buffer = io.BytesIO()
    with quiet_torchscript():
        torch.jit.save(module, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def export_onnx(model: nn.Module, path: Path) -> onnx.ModelProto:
    """Write a model as ONNX: `input` (batch, 3, 32, 32) to `logits` (batch, 10), any batch.

    Returns:
        What was written.

    Raises:
        ExportError: the model is in training mode, or the file is not what a server needs.
    """
    _require_eval(model)
    axes = {INPUT: {0: BATCH_AXIS}, OUTPUT: {0: BATCH_AXIS}}
    with quiet_torchscript(), atomic_path(path) as temporary:
        torch.onnx.export(
            model,
            (torch.zeros(2, *IMAGE_SHAPE),),
            str(temporary),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # the other exporter writes opset 18 and needs a further package
        )
        return check_onnx(temporary)


def check_onnx(path: Path) -> onnx.ModelProto:
    """Load an ONNX file and hold it to what Triton's ONNX Runtime needs.

    Raises:
        ExportError: the checker or shape inference fails, or names, batch axis or IR version
            are not as they must be.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error
    if model.ir_version > MAX_IR_VERSION:
        raise ExportError(
            f"{path.name}: got IR version {model.ir_version}, expected at most {MAX_IR_VERSION}"
        )
    for kind, value, name in (
        ("input", model.graph.input[0], INPUT),
        ("output", model.graph.output[0], OUTPUT),
    ):
        axis = value.type.tensor_type.shape.dim[0].dim_param
        if (value.name, axis) != (name, BATCH_AXIS):
            raise ExportError(
                f"{path.name}: got {kind} {value.name!r} with batch axis {axis!r}, "
                f"expected {name!r} with {BATCH_AXIS!r}"
            )
    return model


def torchscript_operators(module: torch.jit.ScriptModule) -> Counter[str]:
    """Count the operators of a TorchScript module, leaving out its bookkeeping."""
    kinds = (node.kind() for node in module.inlined_graph.nodes())
    return Counter(kind for kind in kinds if kind not in _BOOKKEEPING)


def onnx_operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of an ONNX graph."""
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from PyTorch, for one batch size.

    Attributes:
        batch: Images in the call.
        max_abs_diff: Largest difference of a logit.
        agreement: Share of images given the same class, in [0, 1].
        tolerance: What `max_abs_diff` may be at most.
    """

    batch: int
    max_abs_diff: float
    agreement: float
    tolerance: float


def parity(
    model: nn.Module,
    candidate: Callable[[Floats], Floats],
    images: Floats,
    batches: Iterable[int] = PARITY_BATCHES,
    tolerance: float = PARITY_TOLERANCE,
    name: str = "the exported model",
) -> list[Parity]:
    """Hold an exported model against PyTorch at several batch sizes.

    Args:
        model: The original, in eval mode.
        candidate: A runner, images (N, 3, 32, 32) to logits (N, 10).
        images: At least as many as the largest batch, float32 in [0, 1].
        batches: Batch sizes to try.
        tolerance: Largest allowed difference of a logit.
        name: What the error message calls the candidate.

    Raises:
        ExportError: too few images, another shape, or a difference above the tolerance.
    """
    _require_eval(model)
    rows = []
    for batch in batches:
        if batch > len(images):
            raise ExportError(f"parity at batch {batch}: got {len(images)} images, expected more")
        part = images[:batch]
        with torch.inference_mode():
            expected = model(torch.from_numpy(part)).numpy()
        got = candidate(part)
        if got.shape != expected.shape:
            raise ExportError(
                f"{name} at batch {batch}: got shape {got.shape}, expected {expected.shape}"
            )
        # NaN compares false with everything, so ask for what must hold, not for what must not.
        difference = float(np.abs(got - expected).max())
        if not difference <= tolerance:
            raise ExportError(
                f"{name} at batch {batch}: got logits up to {difference:.2g} away from PyTorch's, "
                f"expected at most {tolerance:.2g}; was the model exported in eval mode?"
            )
        rows.append(Parity(batch, difference, agreement(got, expected), tolerance))
    return rows


def build_tensorrt(onnx_path: Path, plan_path: Path, max_batch: int = 64) -> None:
    """Build a TensorRT engine for batches of 1 to `max_batch`.

    The plan fits this GPU model and this TensorRT version only: build it where it is served.

    Raises:
        TensorRTUnavailable: no `tensorrt` package, or no NVIDIA GPU.
        ExportError: TensorRT cannot parse the model or build the engine.
    """
    if max_batch < 1:
        raise ExportError(f"got max_batch={max_batch}, expected at least 1")
    if not has_nvidia_gpu():
        raise TensorRTUnavailable("no TensorRT engine: this machine has no NVIDIA GPU")
    try:
        import tensorrt as trt
    except ImportError:
        raise TensorRTUnavailable(
            "no TensorRT engine: the package tensorrt is not installed; install the version that "
            "the server uses, then run this notebook again"
        ) from None
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # 0: since TensorRT 10 the batch axis is always explicit
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(f"TensorRT cannot parse {onnx_path.name}: {errors}")
    profile = builder.create_optimization_profile()
    smallest, usual, largest = ((n, *IMAGE_SHAPE) for n in (1, min(32, max_batch), max_batch))
    profile.set_shape(INPUT, smallest, usual, largest)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT built no engine from {onnx_path.name}; its log says why")
    with atomic_path(plan_path) as temporary:
        temporary.write_bytes(bytes(plan))


def has_nvidia_gpu() -> bool:
    """Return whether NVIDIA's driver sees a GPU; PyTorch's CPU build could not tell."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    listing = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def parity_to_json(rows: Mapping[str, list[Parity]]) -> dict[str, list[dict[str, Any]]]:
    """Return parity tables as plain lists, dicts and numbers."""
    return {name: [asdict(row) for row in table] for name, table in rows.items()}


def _require_eval(model: nn.Module) -> None:
    """Refuse a model in training mode."""
    if model.training:
        raise ExportError("got a model in training mode, expected eval mode: call model.eval()")
