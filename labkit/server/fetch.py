"""Bring the Triton server into the user's cache: one pinned wheel, verified, its server unpacked.

Several checkouts share it. Nothing of the wheel is ever imported, and it is no package of the
environment: only its program is used, and its own requirements would bind numpy below 2.
"""

import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.server.errors import TritonNotFound
from labkit.server.wheels import Wheel, obtain, unpack
from labkit.workspace import cache_dir

SERVER_VERSION = "2.51.0"  # release 24.10
WHEEL = Wheel(
    "nvidia-pytriton",
    "0.7.0",
    "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl",
    "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    megabytes=55,
)
GLIBC = (2, 35)  # that it was built for
PARTS = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")  # the rest stays in the wheel
DISK_MB = 300  # while unpacking


def triton_cache() -> Path:
    """Return the folder of everything about the server in the user's cache; not created here."""
    return cache_dir() / "triton"


def runtime_folder() -> Path:
    """Return where the pinned server is, or will be, unpacked; another pin, another folder."""
    return triton_cache() / f"server-{SERVER_VERSION}-{WHEEL.sha256[:12]}"


def unsupported() -> str | None:
    """Say why the pinned server cannot run on this system, and what to do; None when it can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return (
            "the Triton binary is for Linux x86-64, and this is "
            f"{platform.system()} {platform.machine()}: install Docker or Podman, and the official "
            "container serves"
        )
    kind, found = platform.libc_ver()
    needed = ".".join(map(str, GLIBC))
    if kind != "glibc":
        return f"this system has no glibc (musl, as on Alpine?); Triton needs glibc {needed}"
    if tuple(map(int, found.split("."))) < GLIBC:
        return (
            f"this system has glibc {found}; Triton's binary needs {needed} or newer (Debian 12, "
            "Ubuntu 22.04, Fedora 36)"
        )
    return None


def fetch_server() -> Path:
    """Make sure that the pinned server is unpacked in the cache.

    The wheel comes from the cache folder, where a person may have placed it, else from the package
    index that pip is set up for. Two processes that fetch at once do it once.

    Returns:
        The folder that holds `tritonserver/` and `nvidia_pytriton.libs/`.

    Raises:
        TritonNotFound: it cannot run here, cannot be downloaded, or is not the pinned file; the
            message says what to do.
    """
    folder = runtime_folder()
    if folder.is_dir():
        return folder
    if problem := unsupported():
        raise TritonNotFound(problem)
    try:
        with locked(triton_cache() / "fetch.lock"):
            if not folder.is_dir():  # else another process was faster
                with tempfile.TemporaryDirectory(prefix=".fetch-", dir=triton_cache()) as scratch:
                    wheel = obtain(WHEEL, Path(scratch), "labkit triton fetch")
                    unpack(wheel, Path(scratch) / "server", _server_part)
                    (Path(scratch) / "server").rename(folder)
    except OSError as error:
        raise TritonNotFound(
            f"the Triton server could not be unpacked into {triton_cache()} "
            f"({error.strerror or error}): {DISK_MB} MB are needed there; make room, or set "
            "LABKIT_CACHE to another folder"
        ) from error
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made where it is missing; wait while another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _server_part(name: str) -> str | None:
    """Return where a file of the wheel belongs below the runtime folder."""
    return name.removeprefix("pytriton/") if name.startswith(PARTS) else None
