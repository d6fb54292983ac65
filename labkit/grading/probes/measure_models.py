"""Inside the sandbox: runs a student's model files and answers with raw logits.

Run by path. Reads requests from standard input, a JSON object a line, and answers each with one
line. Every request is handled in a child process of its own: a model that crashes, loops or takes
over its process takes nothing else with it. Labels and expected answers are never here; who
controls this program controls logits, and logits are worth what they predict.

Requests:
    {"do": "logits", "file": …, "images": …, "slices": [[first, last], …], "out": …}
    {"do": "batch_norms", "file": …}
    {"do": "check", "repository": …, "models": […], "cores": …}
    {"do": "serve", "repository": …, "models": […], "config_name": …, "images": …, "count": …,
     "out": …}
Each may have "limit_s". Images are a file of uint8 (N, 3, 32, 32); "out" becomes float32 (N, 10).
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PR_SET_DUMPABLE = 4  # linux/prctl.h
THREADS = 2
BATCH = 250
SERVED_BATCH = 50
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
        answers.write(json.dumps(in_child(json.loads(line))) + "\n")


def import_engines() -> None:
    """Import what every request needs, once, before the first fork."""
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401
    import torch  # noqa: F401

    import labkit.runtime
    import labkit.train  # noqa: F401


def in_child(request: Request) -> dict[str, Any]:
    """Handle a request in a forked child; its result, or what went wrong, as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        try:
            answer = {"result": HANDLERS[request["do"]](request)}
        except BaseException as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {first}"[:500]}
        with os.fdopen(writing, "w") as stream:
            stream.write(json.dumps(answer))
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + request.get("limit_s", 120.0)
    text = read_until(reading, deadline)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if text is None:
        return {"error": f"no answer after {request.get('limit_s', 120.0):g} s"}
    try:
        return json.loads(text)
    except ValueError:
        return {"error": "the process that ran it ended without an answer"}


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
    import torch

    from labkit import train
    from labkit.runtime import load_runner, predict

    pixels, path = load_images(request["images"]), Path(request["file"])
    torch.set_num_threads(THREADS)
    if path.name == "checkpoint.pt":
        model, _ = train.load_checkpoint(path)

        def answer(part: np.ndarray) -> np.ndarray:
            return train.predict(model, part, BATCH)
    else:
        runner = load_runner(path, threads=THREADS)

        def answer(part: np.ndarray) -> np.ndarray:
            return predict(runner, part, BATCH)

    parts = [answer(pixels[first:last]) for first, last in request["slices"]]
    together = np.concatenate(parts).astype(np.float32)
    together.tofile(request["out"])
    return {"shape": list(together.shape)}


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
    models = list(request["models"])
    answered = serve_together(request, models, failed)
    if answered is None:  # the server itself died: find out with which models, one at a time
        for model in models:
            if model not in failed and serve_together(request, [model], failed) is None:
                failed[model] = "the server crashed when it loaded this model"
    return {"failed": failed}


def serve_together(request: Request, models: list[str], failed: dict[str, str]) -> bool | None:
    """Serve models in one server, leaving out those that do not load; None when it crashes."""
    from labkit.server import ModelLoadError, ServerError, TritonServer

    while wanted := [model for model in models if model not in failed]:
        server = TritonServer(
            request["repository"], models=wanted, config_name=request.get("config_name")
        )
        try:
            with server:
                for model in wanted:
                    ask(server.http, model, request, failed)
            return True
        except ModelLoadError as error:
            new = {name: why[:300] for name, why in error.models.items() if name in wanted}
            if not new:
                return None
            failed |= new
        except ServerError:
            return None
    return True


def ask(address: str, model: str, request: Request, failed: dict[str, str]) -> None:
    """Send the images to one model, and keep its logits."""
    from labkit.client import ClientError, LabClient
    from labkit.data import preprocess

    images = preprocess(load_images(request["images"])[: request["count"]])
    try:
        with LabClient(address) as client:
            parts = [
                client.infer(model, images[start : start + SERVED_BATCH])
                for start in range(0, len(images), SERVED_BATCH)
            ]
    except (ClientError, ValueError) as error:
        failed[model] = str(error).splitlines()[0][:300]
        return
    np.concatenate(parts).astype(np.float32).tofile(f"{request['out']}/{model}.f32")


HANDLERS = {"logits": logits, "batch_norms": batch_norms, "check": check, "serve": serve}

if __name__ == "__main__":
    main()
