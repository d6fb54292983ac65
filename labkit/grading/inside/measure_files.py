"""Inside the sandbox: runs a student's model files and answers with raw logits.

Reads requests from standard input, a JSON object a line, and answers each with one
line. Every request is handled in a child process of its own: a model that crashes, loops or takes
over its process takes nothing else with it. Labels and expected answers are never here; who
controls this program controls logits, and logits are worth what they predict.

Requests:
    {"do": "logits", "file": …, "images": …, "slices": [[first, last], …], "out": …}
    {"do": "weights", "file": …}
    {"do": "batch_norms", "file": …}
    {"do": "look_into", "file": …, "images": …}  with the images in the request
    {"do": "check", "repository": …, "models": […], "cores": …}
    {"do": "serve", "repository": …, "models": […], "config_name": …, "images": …, "count": …,
     "out": …, "clients": for a load, 0 for none}
Each may have "limit_s", and "alone" where no process but those that were started here is within
reach: then none of them outlives its request. Images are a file of uint8 (N, 3, 32, 32); "out"
becomes float32 (N, 10).

What a model says when it fails could carry the images out: once it runs, only the kind of error is
told. Beside `network.py` the grader believes neither, see `ModelSandbox.ask`.
"""

import base64
import builtins
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from labkit.grading.inside.count_weights import count_weights  # sent along

PR_SET_DUMPABLE = 4  # linux/prctl.h
SHM = Path("/dev/shm")
THREADS = 2
BATCH = 250
SERVED_BATCH = 50
LOAD_S = 1.5
Request = dict[str, Any]


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    import_engines()
    # A child that a model has taken over cannot read or change this process.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(in_child(json.loads(line), answers.fileno())) + "\n")


def import_engines() -> None:
    """Import what every request needs, once, before the first fork."""
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401
    import torch  # noqa: F401

    import labkit.network
    import labkit.runtime  # noqa: F401


def in_child(request: Request, answers: int) -> dict[str, Any]:
    """Handle a request in a forked child; its result, or what went wrong, as JSON.

    Args:
        request: See the module.
        answers: The descriptor for the answers to all requests.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        # A model that takes over the child reads no other request, and answers none.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, answers)
        try:
            answer = {"result": HANDLERS[request["do"]](request)}
        except BaseException as error:
            answer = {"error": told(error)}
        with os.fdopen(writing, "w") as stream:
            stream.write(json.dumps(answer))
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + request.get("limit_s", 120.0)
    text = read_until(reading, deadline)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if request.get("alone"):  # a loaded file may have started processes of their own session
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        for path in SHM.iterdir():  # not seen from outside
            with contextlib.suppress(OSError, RecursionError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if text is None:
        return {"error": f"no answer after {request.get('limit_s', 120.0):g} s"}
    try:
        return json.loads(text)
    except ValueError:
        return {"error": "the process that ran it ended without an answer"}


def told(error: BaseException) -> str:
    """Return what is said of an error: a text that is not our own may carry the images out."""
    if isinstance(error, NotLoaded):
        return str(error)[:500]
    kind = type(error).__name__
    own = kind if getattr(builtins, kind, None) is type(error) else "an error of its own"
    return f"it raised {own} when it was run"


class NotLoaded(Exception):
    """A file that could not be loaded; no image had been shown to it."""


def read_until(descriptor: int, deadline: float) -> str | None:
    """Read a pipe to its end; None when that takes too long."""
    parts: list[bytes] = []
    os.set_blocking(descriptor, False)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while time.monotonic() < deadline:
            part = stream.read(1 << 16)
            if part == b"":
                return b"".join(parts).decode(errors="replace")
            if part is None:
                time.sleep(0.005)
            else:
                parts.append(part)
    return None


def load_images(path: str) -> np.ndarray:
    """Return images uint8 (N, 3, 32, 32)."""
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, 32, 32)


def logits(request: Request) -> dict[str, Any]:
    """Run a model file on slices of the images, each slice as one call of at most BATCH images."""
    from labkit.network import NetworkRunner
    from labkit.runtime import load_runner, predict

    pixels, path = load_images(request["images"]), Path(request["file"])
    load = NetworkRunner if path.name == "checkpoint.pt" else load_runner
    try:
        runner = load(path, threads=THREADS)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotLoaded(f"{type(error).__name__}: {first}") from None
    parts = [predict(runner, pixels[first:last], BATCH) for first, last in request["slices"]]
    together = np.concatenate(parts).astype(np.float32)
    together.tofile(request["out"])
    return {"shape": list(together.shape)}


def look_into(request: Request) -> dict[str, Any]:
    """Return the names in an ONNX file, and what it answers; None where it refuses the images."""
    import onnx
    import onnxruntime

    graph = onnx.load(request["file"], load_external_data=False).graph
    ends = [graph.input[0], graph.output[0]]
    dims = [end.type.tensor_type.shape.dim for end in ends]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    given = request["images"]
    data = np.frombuffer(base64.b64decode(given["$array"]), dtype=given["dtype"])
    images, found = data.reshape(given["shape"]), None
    with contextlib.suppress(Exception):  # such as a batch that the file does not take
        session = onnxruntime.InferenceSession(
            request["file"], options, providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {ends[0].name: images})[0].tolist()
    return {
        "inputs": [end.name for end in graph.input],
        "outputs": [end.name for end in graph.output],
        "axes": [dim[0].dim_param if dim else "" for dim in dims],
        "logits": found,
    }


def batch_norms(request: Request) -> int:
    """Count the batch norms that are left in a TorchScript file."""
    import torch

    from labkit.export import torchscript_operators

    return torchscript_operators(torch.jit.load(request["file"]))["aten::batch_norm"]


def check(request: Request) -> list[str]:
    """Return what `labkit check` finds wrong."""
    from labkit.repository_check import ERROR, check_repository

    found = check_repository(Path(request["repository"]), request["models"], request["cores"])
    return [str(finding)[:300] for finding in found if finding.severity == ERROR][:20]


def serve(request: Request) -> dict[str, Any]:
    """Serve models with a real Triton; ask each for `count` images; note which did not load."""
    failed: dict[str, str] = {}
    answered: dict[str, float] = {}  # model → images per second, 0 where no load was asked for
    models = list(request["models"])
    if not serve_together(request, models, failed, answered):
        for model in models:  # the server itself died: find out with which of them
            left = model not in failed and model not in answered
            if left and not serve_together(request, [model], failed, answered):
                failed[model] = "the server crashed when it loaded or ran this model"
    return {"failed": failed, "rates": {name: found for name, found in answered.items() if found}}


def serve_together(
    request: Request, models: list[str], failed: dict[str, str], answered: dict[str, float]
) -> bool:
    """Serve models in one server, without those that do not load; say whether it lived."""
    from labkit.client import Unreachable
    from labkit.server import ModelLoadError, ServerError, TritonServer

    while wanted := [model for model in models if model not in failed]:
        server = TritonServer(
            request["repository"], models=wanted, config_name=request.get("config_name")
        )
        try:
            with server:
                for model in wanted:
                    ask(server.http, model, request, failed)
                    if model not in failed:
                        load = rate(server.http, model, request) if request.get("clients") else 0
                        answered[model] = load
            return True
        except ModelLoadError as error:
            new = {name: why[:300] for name, why in error.models.items() if name in wanted}
            if not new:
                return False
            failed |= new
        except (ServerError, Unreachable):
            return False
    return True


def rate(address: str, model: str, request: Request) -> float:
    """Return images per second of a short load: each client asks for one at a time."""
    from concurrent.futures import ThreadPoolExecutor

    from labkit.client import LabClient
    from labkit.data import preprocess

    image = preprocess(load_images(request["images"])[:1])
    end = time.monotonic() + LOAD_S

    def client(number: int) -> int:
        with LabClient(address) as own:
            own.infer(model, image)
            count = 0
            while time.monotonic() < end:
                own.infer(model, image)
                count += 1
        return count

    with ThreadPoolExecutor(request["clients"]) as pool:
        return sum(pool.map(client, range(request["clients"]))) / LOAD_S


def ask(address: str, model: str, request: Request, failed: dict[str, str]) -> None:
    """Send the images to one model, and keep its logits."""
    from labkit.client import ClientError, LabClient, Unreachable
    from labkit.data import preprocess

    images = preprocess(load_images(request["images"])[: request["count"]])
    try:
        with LabClient(address) as client:
            parts = [
                client.infer(model, images[start : start + SERVED_BATCH])
                for start in range(0, len(images), SERVED_BATCH)
            ]
    except Unreachable:  # it has ended the server
        raise
    except (ClientError, ValueError) as error:
        composed = any(Path(request["repository"], model).glob("*/*.pt"))
        first = "it raised an error of its own" if composed else str(error).splitlines()[0]
        failed[model] = first[:300]
        return
    np.concatenate(parts).astype(np.float32).tofile(f"{request['out']}/{model}.f32")


HANDLERS = {
    "logits": logits,
    "look_into": look_into,
    "weights": lambda request: count_weights(Path(request["file"])),
    "batch_norms": batch_norms,
    "check": check,
    "serve": serve,
}

if __name__ == "__main__":
    main()
