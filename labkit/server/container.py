"""Triton in its official container, where the wheel cannot run or native backends are wanted."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labkit.server.errors import ServerError, TritonNotFound
from labkit.server.ports import LOOPBACK
from labkit.workspace import project_root

logger = logging.getLogger(__name__)

ENGINES = ("docker", "podman")
INSIDE_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
SHARED_MEMORY_SIZE = "1g"  # the engines' default of 64 MB is too little for Python models


def find_engine() -> str | None:
    """Return the path of a container engine, or None."""
    return next(filter(None, map(shutil.which, ENGINES)), None)


def require_engine() -> str:
    """Return the path of a container engine.

    Raises:
        TritonNotFound: Neither Docker nor Podman is on the PATH.
    """
    engine = find_engine()
    if engine is None:
        raise TritonNotFound(
            f"runtime='container' needs a container engine, and none of {', '.join(ENGINES)} is on "
            "the PATH: install Docker, or on Linux x86-64 use runtime='auto'"
        )
    return engine


def image() -> str:
    """Return the pinned image of Triton, from docker/.env; TRITON_IMAGE in the environment wins.

    Raises:
        ServerError: The project's docker/.env is not there or names no image.
    """
    chosen = os.environ.get("TRITON_IMAGE")
    if chosen:
        return chosen
    pins = project_root() / "docker" / ".env"
    if pins.is_file():
        for line in pins.read_text().splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "TRITON_IMAGE" and value.strip():
                return value.strip()
    raise ServerError(f"{pins} names no TRITON_IMAGE: set TRITON_IMAGE in the environment")


def pull_if_missing(engine: str) -> None:
    """Fetch the image where it is not there yet, before any start timeout counts.

    Raises:
        ServerError: The image cannot be fetched.
    """
    name = image()
    if subprocess.run([engine, "image", "inspect", name], capture_output=True).returncode == 0:
        return
    logger.warning("fetching %s, several GB; this happens once", name)
    if subprocess.run([engine, "pull", name]).returncode != 0:
        raise ServerError(f"{Path(engine).name} could not fetch {name}; its own words are above")


def run_command(
    engine: str,
    name: str,
    models: Mapping[str, Path],
    ports: Mapping[str, int],
    flags: Sequence[str],
) -> list[str]:
    """Return the command that serves model folders, each mounted read-only, on loopback ports.

    Args:
        engine: Path of docker or podman.
        name: Name of the container, by which it can be removed.
        models: Model name → its folder on this machine.
        ports: Endpoint (`http`, `grpc`, `metrics`) → port on this machine's loopback address.
        flags: Further flags of tritonserver.
    """
    command = [engine, "run", "--rm", "--name", name, f"--shm-size={SHARED_MEMORY_SIZE}"]
    for endpoint, inside in INSIDE_PORTS.items():
        command.append(f"--publish={LOOPBACK}:{ports[endpoint]}:{inside}")
    for model, folder in models.items():
        command.append(f"--mount=type=bind,source={folder},target=/models/{model},readonly")
    return [*command, image(), "tritonserver", "--model-repository=/models", *flags]


def remove_command(engine: str, name: str) -> list[str]:
    """Return the command that removes a container that outlived its client."""
    return [engine, "rm", "--force", name]


def resolve(folders: Iterable[Path]) -> dict[str, Path]:
    """Return model name → absolute folder, as an engine's mounts want them."""
    return {folder.name: folder.resolve() for folder in folders}
