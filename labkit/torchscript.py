"""TorchScript files, opened without PyTorch's notices that they are superseded."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# How PyTorch's notices begin that TorchScript, its ONNX exporter and eager quantization are
# superseded.
_SUPERSEDED = (
    r"`?torch\.(jit|ao|quantize_per_tensor)\b",
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence the notices that TorchScript and eager quantization are superseded.

    Triton's PyTorch backend loads TorchScript and nothing else, so the lab uses these functions
    knowingly, and a student can do nothing about the notice. Only that family of notices is
    silenced: TracerWarning, which tells of a wrong trace, still shows.
    """
    with warnings.catch_warnings():
        for message in _SUPERSEDED:
            for category in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.filterwarnings("ignore", message, category)
        yield


def open_torchscript(path: Path) -> Any:
    """Load a file that `torch.jit.save` wrote, for inference on the CPU.

    Raises:
        RuntimeError: PyTorch cannot read it.
    """
    import torch

    with quiet_torchscript():
        # Quantized tensors warn once per process, from C++ past Python's filters when a file is
        # loaded; made here, the first one warns where it is silenced.
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.qint8)
        return torch.jit.load(path, map_location="cpu").eval()
