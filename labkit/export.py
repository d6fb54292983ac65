"""What exporting needs beside the calls in 03 and 04: files written whole, parity, TensorRT."""

import io
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from labkit.data import IMAGE_SHAPE
from labkit.errors import LabError
from labkit.runtime import Floats, agreement
from labkit.torchscript import quiet_torchscript
from labkit.workspace import atomic_path

PARITY_BATCHES = (1, 7, 64)
PARITY_TOLERANCE = 1e-3  # of a logit; float32 sums in another order differ by about 1e-5
_BOOKKEEPING = {"prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::TupleConstruct"}


class ExportError(LabError):
    """A model that cannot be exported, or whose export does not compute the same."""


class TensorRTUnavailable(LabError):
    """No TensorRT engine can be built on this machine; the message says why."""


def save_torchscript(module: torch.jit.ScriptModule, path: Path) -> None:
    """Write a TorchScript module, all or nothing."""
    # By way of memory: saved to a path, the archive would hold the temporary name of the file.
    buffer = io.BytesIO()
    with quiet_torchscript():
        torch.jit.save(module, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def save_openvino(model: Any, path: Path) -> None:
    """Write an OpenVINO model in float32 and bytes: `path` (.xml), and the .bin beside it.

    Raises:
        ExportError: `path` does not end in `.xml`.
    """
    import openvino

    if path.suffix != ".xml":
        raise ExportError(f"got {path.name}, expected a name that ends in .xml")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        openvino.save_model(model, written, compress_to_fp16=False)
        # The weights first: whoever finds the .xml finds its .bin.
        for suffix in (".bin", ".xml"):
            written.with_suffix(suffix).replace(path.with_suffix(suffix))


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
    profile.set_shape("input", smallest, usual, largest)
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
