"""What the supervisor is to run: command, environment, and how to remove what stays behind."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.server import container
from labkit.server.find import require_triton
from labkit.server.ports import LOOPBACK
from labkit.server.run_folder import assemble_backends, link_models

METRICS_INTERVAL_MS = 500  # Triton ends between two collections only; its default is 2,000

# Numeric libraries in the stubs start no thread pools of their own; the stand-ins set the engines'
# threads from each model's configuration.
SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def wheel_job(
    run_folder: Path, models: Sequence[Path], ports: Mapping[str, int], flags: Sequence[str]
) -> dict[str, Any]:
    """Describe a run of the wheel's binary with the stand-in backends.

    Args:
        run_folder: The server's private folder, empty.
        models: Folders of the models to serve.
        ports: Endpoint (`http`, `grpc`, `metrics`) → port.
        flags: Further flags of tritonserver; the last of two that disagree wins.

    Raises:
        TritonNotFound: The wheel is missing or incomplete.
    """
    binary = require_triton()
    backends = assemble_backends(run_folder, binary)
    command = [
        str(binary.executable),
        f"--model-repository={link_models(run_folder, models)}",
        f"--backend-directory={backends}",  # no slash at its end: Python models would not load
        f"--cache-directory={binary.caches}",
        f"--backend-config=python,shm-region-prefix-name={run_folder.name}-",
        *(f"--{name}-address={LOOPBACK}" for name in ports),
        *(f"--{name}-port={port}" for name, port in ports.items()),
        "--allow-gpu-metrics=false",
        f"--metrics-interval-ms={METRICS_INTERVAL_MS}",
        "--pinned-memory-pool-byte-size=0",
        *flags,
    ]
    environment = _environment(binary.libraries, run_folder)
    return {"command": command, "environment": environment, "remove_command": []}


def container_job(
    run_folder: Path, models: Sequence[Path], ports: Mapping[str, int], flags: Sequence[str]
) -> dict[str, Any]:
    """Describe a run of the official container; arguments as for `wheel_job`.

    Raises:
        TritonNotFound: There is no container engine.
        ServerError: The image cannot be fetched.
    """
    engine = container.require_engine()
    container.pull_if_missing(engine)
    folders = container.resolve(models)
    return {
        "command": container.run_command(engine, run_folder.name, folders, ports, flags),
        "environment": dict(os.environ),
        "remove_command": container.remove_command(engine, run_folder.name),
    }


def _environment(libraries: Path, run_folder: Path) -> dict[str, str]:
    """Return the environment in which the wheel's binary and its stubs find their libraries."""
    environment = dict(os.environ)
    for name in SINGLE_THREADED:
        environment.setdefault(name, "1")
    before = {
        "LD_LIBRARY_PATH": [str(libraries), str(run_folder / "lib")],
        "PATH": [str(Path(sys.prefix) / "bin")],  # the stub becomes the Python found here
    }
    for name, folders in before.items():
        environment[name] = os.pathsep.join([*folders, *filter(None, [environment.get(name)])])
    return environment | {"PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
