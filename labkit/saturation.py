"""8-bit arithmetic from the inside: the numbers that are multiplied, and a CPU without VNNI.

Without VNNI, x86 multiplies unsigned by signed bytes with `vpmaddubsw`: two products at a time are
added into 16 signed bits, and what does not fit is cut off at 32,767. With VNNI, four products are
added into 32 bits, which always fits. A CPU that has VNNI can still be told to do without.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from labkit.errors import LabError
from labkit.runtime import Floats, load_runner

# What PyTorch's and OpenVINO's 8-bit kernels read, once, when they are first used. ONNX Runtime
# has no such switch.
WITHOUT_VNNI = {
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",  # PyTorch's engines fbgemm and x86
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # PyTorch's engines onednn and x86, and OpenVINO
}


class SaturationError(LabError):
    """A model file without the layer asked for, or a child process that failed."""


class Operands(NamedTuple):
    """The numbers that one convolution multiplies, as its kernel meets them.

    Attributes:
        activations: (P, K) uint8: P positions of the output, K = height · width · channels inputs
            of each, channels last, so that neighbours are multiplied together.
        weights: (O, K) int8: one row for each output channel.
    """

    activations: NDArray[np.uint8]
    weights: NDArray[np.int8]


def layer_operands(path: Path, module: str, images: Floats, positions: int = 256) -> Operands:
    """Return what a convolution of a quantized ONNX file multiplies, for real images.

    Args:
        path: An ONNX file in QDQ form, with unsigned activations whose zero point is 0.
        module: The convolution, by the name of its module, such as `stages.stage3b.conv`.
        images: (N, 3, 32, 32) float32 in [0, 1].
        positions: How many output positions to keep, spread evenly over all images.

    Raises:
        SaturationError: the file has no such convolution, or it is not quantized.
    """
    import onnxruntime

    model = onnx.load(path)
    maker = {output: node for node in model.graph.node for output in node.output}
    name = "/" + module.replace(".", "/") + "/Conv"
    conv = next((node for node in model.graph.node if node.name == name), None)
    sources = [maker.get(tensor) for tensor in conv.input[:2]] if conv else []
    if not sources or any(s is None or s.op_type != "DequantizeLinear" for s in sources):
        raise SaturationError(f"{path.name}: got no quantized convolution for module {module!r}")
    activations, weights = (source.input[0] for source in sources if source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    kernel = numpy_helper.to_array(tensors[weights])  # (O, C, h, w)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(activations, onnx.TensorProto.UINT8, None)
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    seen = session.run([activations], {session.get_inputs()[0].name: images})[0]  # (N, C, H, W)
    rows = _patches(seen, kernel.shape[2])
    keep = np.linspace(0, len(rows) - 1, min(positions, len(rows))).astype(int)
    return Operands(rows[keep], kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1))


def _patches(tensor: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Lay out what each position of a same-padded convolution sees, channels last."""
    margin = size // 2
    padded = np.pad(tensor, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded,
        (size, size),
        axis=(2, 3),  # type: ignore[call-overload]  # numpy 1.26's stubs know one axis only
    )
    return windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, size * size * tensor.shape[1])


def run_without_vnni(paths: Sequence[Path], images: Floats, timeout_s: float = 120) -> list[Floats]:
    """Run models in a child process whose 8-bit kernels are told to use AVX2 only.

    The kernels choose their instructions once per process, so this cannot be done in place.

    Args:
        paths: Each `.pt` or `.xml`.
        images: (N, 3, 32, 32) float32 in [0, 1], the same for all.
        timeout_s: After so long the child is killed.

    Returns:
        The output of each model.

    Raises:
        SaturationError: a runtime has no such switch, or the child fails.
    """
    if wrong := [path.name for path in paths if path.suffix not in (".pt", ".xml")]:
        raise SaturationError(f"got {wrong[0]}, expected .pt or .xml: no other runtime can be told")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "images.npy", Path(folder) / "outputs.npz"
        np.save(source, images)
        command = [sys.executable, "-m", "labkit.saturation", str(source), str(target)]
        try:
            child = subprocess.run(
                [*command, *map(str, paths)],
                env={**os.environ, **WITHOUT_VNNI},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SaturationError(f"no answer without VNNI within {timeout_s:.0f} s") from None
        if child.returncode != 0:
            last = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise SaturationError(f"running without VNNI failed: {last}")
        with np.load(target) as outputs:
            return [outputs[f"arr_{index}"] for index in range(len(paths))]


def _main(source: str, target: str, *paths: str) -> None:
    """Run models on saved images; the body of the child process."""
    images = np.load(source)
    parts = [images[start : start + 100] for start in range(0, len(images), 100)]
    runners = map(load_runner, paths)
    np.savez(target, *[np.concatenate([run(part) for part in parts]) for run in runners])


if __name__ == "__main__":
    _main(*sys.argv[1:])
