"""Run a model file in this process, whatever its format: one type for all, threads explicit."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labkit.data import IMAGE_SHAPE, preprocess
from labkit.errors import LabError
from labkit.torchscript import open_torchscript, quiet_torchscript

Floats = NDArray[np.float32]

WARM_UP_CALLS = 3  # TorchScript specializes during its first two calls


class RunnerError(LabError):
    """A model file that cannot be loaded, or input that no runner takes."""


class Runner(Protocol):
    """A loaded model: images in, logits out, on a known number of threads."""

    name: str
    threads: int

    def __call__(self, images: Floats) -> Floats:
        """Map images (N, 3, 32, 32) float32 in [0, 1] to logits (N, 10) float32."""
        ...


@contextmanager
def quiet_quantizers() -> Iterator[None]:
    """Hold back what ONNX Runtime's and NNCF's quantizers log, which is advice, and progress bars.

    NNCF's progress bars have no switch and go to rich's global console.
    """
    import rich

    root = logging.getLogger()
    console, level = rich.get_console(), root.level
    former = vars(console)
    root.setLevel(logging.ERROR)
    # Not nncf.set_log_level: that also silences handlers which others have put there.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # looks for CUDA
    rich.reconfigure(quiet=True, force_jupyter=False)
    try:
        yield
    finally:
        root.setLevel(level)
        console.__dict__ = former


class TorchScriptRunner:
    """Runs a TorchScript file with PyTorch on the CPU."""

    def __init__(self, path: Path, threads: int = 1, optimize: bool = False) -> None:
        """Load the file.

        Args:
            path: A file written by `torch.jit.save`.
            threads: Threads of one call.
            optimize: Repack the weights for this CPU, which cannot be saved (see 03_export).
        """
        import torch

        self.name, self.threads, self._torch = path.name, threads, torch
        try:
            module = open_torchscript(path)
            if optimize:
                with quiet_torchscript():
                    module = torch.jit.optimize_for_inference(module)
        except RuntimeError as error:
            raise RunnerError(f"{path.name} is not a TorchScript file: {_first(error)}") from error
        self._module: Callable[[Any], Any] = module

    def __call__(self, images: Floats) -> Floats:
        """Map images (N, 3, 32, 32) to logits (N, 10)."""
        torch = self._torch
        if torch.get_num_threads() != self.threads:  # process-wide: another runner may differ
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self._module(torch.from_numpy(_checked(images))).numpy()


class OnnxRunner:
    """Runs an ONNX file with ONNX Runtime's CPU provider."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load the file; `threads` are those of one operator, as in Triton's configuration."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        self.name, self.threads = path.name, threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise RunnerError(f"{path.name} does not load: {_first(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Floats) -> Floats:
        """Map images (N, 3, 32, 32) to logits (N, 10)."""
        return self._session.run(None, {self._input: _checked(images)})[0]


class OpenVinoRunner:
    """Runs an OpenVINO IR with the CPU plugin."""

    def __init__(self, path: Path, threads: int = 1, precision: str | None = "f32") -> None:
        """Load the file.

        Args:
            path: The `.xml`; the `.bin` lies beside it.
            threads: Threads of one call, all in one stream.
            precision: Of what is not quantized. None for OpenVINO's own choice, bf16 on a
                processor that multiplies in it, which would compare unlike things.
        """
        import openvino

        self.name, self.threads = path.name, threads
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        try:
            self._model = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise RunnerError(f"{path.name} does not load: {_first(error)}") from error
        self._request = self._model.create_infer_request()

    def __call__(self, images: Floats) -> Floats:
        """Map images (N, 3, 32, 32) to logits (N, 10)."""
        # A copy: the request's own output buffer is overwritten by the next call.
        return self._request.infer({0: _checked(images)}, share_inputs=True)[0].copy()


_RUNNERS: dict[str, Callable[..., Runner]] = {
    ".pt": TorchScriptRunner,
    ".onnx": OnnxRunner,
    ".xml": OpenVinoRunner,
}


def load_runner(path: str | Path, threads: int = 1, **options: Any) -> Runner:
    """Load a model file into the runtime that its suffix names.

    Args:
        path: `.pt` TorchScript, `.onnx` ONNX Runtime, `.xml` OpenVINO.
        threads: Threads of one call, at least 1.
        options: Passed to the runner: `optimize` for `.pt`, `precision` for `.xml`.

    Raises:
        RunnerError: no such file, an unknown suffix, no positive thread count, or the runtime
            refuses the file.
    """
    path = Path(path)
    if path.suffix not in _RUNNERS:
        raise RunnerError(f"{path.name}: no runtime for this suffix; known: {', '.join(_RUNNERS)}")
    if threads < 1:
        raise RunnerError(f"{path.name}: got threads={threads}, expected at least 1")
    if not path.is_file():
        raise RunnerError(f"{path.name} does not exist in {path.parent}")
    return _RUNNERS[path.suffix](path, threads, **options)


def predict(runner: Runner, pixels: NDArray[np.uint8], batch: int = 250) -> Floats:
    """Return the logits (N, 10) of images given as bytes (N, 3, 32, 32), `batch` at a time."""
    if len(pixels) == 0:
        raise RunnerError("got 0 images, expected at least 1")
    parts = [
        runner(preprocess(pixels[start : start + batch])) for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts)


def accuracy(
    runner: Runner, pixels: NDArray[np.uint8], labels: NDArray[np.int64], batch: int = 250
) -> float:
    """Return the share, in [0, 1], of images (N, 3, 32, 32) uint8 classified as `labels` (N,)."""
    return top1(predict(runner, pixels, batch), labels)


def top1(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Return the share, in [0, 1], of rows of logits (N, 10) that are largest at their label."""
    return float((logits.argmax(1) == labels).mean())


def agreement(logits: Floats, reference: Floats) -> float:
    """Return the share, in [0, 1], of images (N, 10) given the same class by both models."""
    return top1(logits, reference.argmax(1))


def logit_error(logits: Floats, reference: Floats) -> float:
    """Return the root mean square difference of logits, relative to the reference's spread.

    Finer than accuracy, which only moves when a decision flips: 0 is equal, 1 is noise.
    """
    return float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())


def throughput(
    runner: Runner, batch: int = 32, seconds: float = 1.0, warm_up: int = WARM_UP_CALLS
) -> float:
    """Return the images per second of a runner that is called back to back for about `seconds`.

    `warm_up` calls before do not count.

    Absolute rates depend on what else the machine does: to compare runners use
    `labkit.compare.compare`, which interleaves them.
    """
    images = probe_images(batch)
    for _ in range(warm_up):
        runner(images)
    calls, start = 0, time.perf_counter()
    while True:
        runner(images)
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return calls * batch / elapsed


def probe_images(batch: int, seed: int = 0) -> Floats:
    """Return seeded noise (batch, 3, 32, 32) in [0, 1]; dense nets take their usual time for it."""
    if batch < 1:
        raise RunnerError(f"got batch={batch}, expected at least 1")
    return np.random.default_rng(seed).random((batch, *IMAGE_SHAPE), dtype=np.float32)


# Names as in /proc/cpuinfo. These three multiply 8-bit numbers into 32-bit sums in one
# instruction; a CPU without them goes through 16 bits, which can saturate (see 04_quantize).
EXACT_INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})  # multiply bfloat16 (see 02_train)
CPU_FEATURES = frozenset({"avx2", "avx512f"}) | EXACT_INT8_FEATURES | BF16_FEATURES


def cpu_features() -> frozenset[str]:
    """Return which of `CPU_FEATURES` this CPU has.

    From /proc/cpuinfo; where there is none (macOS, Windows), as far as PyTorch knows.
    """
    info = Path("/proc/cpuinfo")
    if info.is_file():
        return _known_flags(info.read_text())
    import torch

    ask = getattr(torch.cpu, "get_capabilities", dict)  # PyTorch 2.6 has none
    capabilities: dict[str, bool] = ask()
    # PyTorch writes avx512_f where the kernel writes avx512f.
    found = {str(name).replace("avx512_f", "avx512f") for name, has in capabilities.items() if has}
    return CPU_FEATURES & found


def _known_flags(cpuinfo: str) -> frozenset[str]:
    """Return the known flags in the text of /proc/cpuinfo."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return CPU_FEATURES & frozenset(flags.partition(":")[2].split())


def _checked(images: Floats) -> Floats:
    """Return `images` contiguous; refuse what is not float32 instead of converting it silently."""
    if images.dtype != np.float32:
        raise RunnerError(
            f"got images of {images.dtype}, expected float32 in [0, 1]: use labkit.data.preprocess"
        )
    return np.ascontiguousarray(images)


def _first(error: Exception) -> str:
    """Return the first line of a message that may be pages long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
