"""The network of a run, as notebook 02 has defined it: a class in a file, and its weights."""

from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.runtime import Floats

if TYPE_CHECKING:
    from torch import nn

NETWORK_FILE = "network.py"  # beside the checkpoint
CLASS = "CifarNet"


class NetworkError(LabError):
    """A network's file or its weights are missing, damaged, or do not belong together."""


def load_network(checkpoint: Path) -> "nn.Module":
    """Rebuild a trained network: run `network.py` beside the checkpoint, then fill in the weights.

    The class is code of whoever trained it, and runs with the rights of this process; the
    checkpoint itself is data, read with `weights_only=True`.

    Args:
        checkpoint: A dictionary with `config`, the keyword arguments of `CifarNet`, and `weights`.

    Returns:
        The network in evaluation mode.

    Raises:
        NetworkError: a file is missing or damaged, or the weights are those of another class.
    """
    content = _read(checkpoint)
    network_class = _load_class(checkpoint.with_name(NETWORK_FILE))
    try:
        model = network_class(**content["config"])
        model.load_state_dict(content["weights"])
    except Exception as error:  # the class is a student's own, and may fail in any way
        raise NetworkError(
            f"{checkpoint.name} does not fit the {CLASS} of {NETWORK_FILE} ({error}): "
            "run notebook 02_train again"
        ) from error
    return model.eval()


def _read(checkpoint: Path) -> dict[str, Any]:
    import torch

    if not checkpoint.is_file():
        raise NetworkError(f"there is no {checkpoint.name}: run notebook 02_train first")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise NetworkError(
            f"{checkpoint.name} is damaged or not a checkpoint: run notebook 02_train again"
        ) from error
    if not isinstance(content, dict) or not {"config", "weights"} <= set(content):
        raise NetworkError(
            f"{checkpoint.name} holds no `config` and `weights`: run notebook 02_train again"
        )
    return content


def _load_class(path: Path) -> Any:
    """Run a file as a module of its own and return its class `CifarNet`."""
    if not path.is_file():
        raise NetworkError(f"there is no {path.name} beside the checkpoint: run 02_train first")
    module = ModuleType("network")
    module.__file__ = str(path)
    try:
        # Not imported: Python takes what it compiled before where a file changed within a second
        # and kept its size.
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
        return getattr(module, CLASS)
    except Exception as error:
        raise NetworkError(
            f"{path.name} does not run by itself ({type(error).__name__}: {error}): the cell that "
            f"defines {CLASS} in notebook 02_train must hold everything that the class needs"
        ) from error


class NetworkRunner:
    """Runs a checkpoint with PyTorch on the CPU, in float32; see `labkit.runtime.Runner`."""

    def __init__(self, checkpoint: Path, threads: int = 1) -> None:
        """Load the network; `threads` are those of one call."""
        self.name, self.threads = checkpoint.name, threads
        self._model = load_network(checkpoint)

    def __call__(self, images: Floats) -> Floats:
        """Map images (N, 3, 32, 32) float32 in [0, 1] to logits (N, 10)."""
        import torch

        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self._model(torch.from_numpy(images)).numpy()
