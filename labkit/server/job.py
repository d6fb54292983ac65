"""What the supervisor is to run: command, environment, and how to remove what stays behind."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.server import container
from labkit.server.find import TritonBinary
from labkit.server.ports import LOOPBACK
from labkit.server.run_folder import assemble_backends, link_models

METRICS_INTERVAL_MS = 500  # Triton ends between two collections only; its default is 2,000

# Numeric libraries in the stubs start no thread pools of their own; the engines' threads are set
# from each model's configuration.
SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A command with its whole environment, and the command that removes what outlives it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    remove_command: Sequence[str] = ()


def local_job(
    binary: TritonBinary,
    native: bool,
    run_folder: Path,
    models: Sequence[Path],
    ports: Mapping[str, int],
    flags: Sequence[str],
) -> Job:
    """Describe a run of the server on this machine.

    Args:
        binary: The server.
        native: With the native backends that were built here, instead of the stand-ins.
        run_folder: The server's private folder, empty.
        models: Folders of the models to serve.
        ports: Endpoint (`http`, `grpc`, `metrics`) → port.
        flags: Further flags of tritonserver; the last of two that disagree wins.
    """
    backends = assemble_backends(run_folder, binary, native)
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
    return Job(command, _environment(binary.libraries, run_folder))


def container_job(
    run_folder: Path, models: Sequence[Path], ports: Mapping[str, int], flags: Sequence[str]
) -> Job:
    """Describe a run of the official container; arguments as for `local_job`.

    Raises:
        TritonNotFound: There is no container engine.
        ServerError: The image cannot be fetched.
    """
    engine = container.require_engine()
    container.pull_if_missing(engine)
    folders = container.resolve(models)
    return Job(
        container.run_command(engine, run_folder.name, folders, ports, flags),
        dict(os.environ),
        container.remove_command(engine, run_folder.name),
    )


def _environment(libraries: Path, run_folder: Path) -> dict[str, str]:
    """Return the environment in which the server and its stubs find their libraries."""
    environment = dict(os.environ)
    for name in SINGLE_THREADED:
        environment.setdefault(name, "1")
    before = {
        # What the run folder links to comes first: it replaces a libpython that the wheel bundles.
        "LD_LIBRARY_PATH": [str(run_folder / "lib"), str(libraries)],
        "PATH": [str(Path(sys.prefix) / "bin")],  # the stub becomes the Python found here
    }
    for name, folders in before.items():
        environment[name] = os.pathsep.join([*folders, *filter(None, [environment.get(name)])])
    return environment | {"PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
