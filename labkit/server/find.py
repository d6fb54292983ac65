"""Find the Triton binary that the `nvidia-pytriton` wheel carries, without importing the wheel."""

import ctypes
import importlib.metadata
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from labkit.server.errors import TritonNotFound

WHEEL = "nvidia-pytriton"


@dataclass(frozen=True)
class TritonBinary:
    """The pieces of a Triton installation that a server is put together from.

    Attributes:
        executable: The `tritonserver` program.
        libraries: Folder of the shared libraries it was linked against.
        python_backend: Folder with `libtriton_python.so`.
        stub: The Python backend's stub for the running Python's minor version.
        caches: Folder of the response cache implementations.
        wheel_version: Version of the wheel.
        libpython: Shared library of the running Python, which the stub embeds; None when this
            Python was built or packaged without one.
    """

    executable: Path
    libraries: Path
    python_backend: Path
    stub: Path
    caches: Path
    wheel_version: str
    libpython: Path | None

    @property
    def problem(self) -> str | None:
        """Why this binary cannot serve here, with the remedy; None when it can."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        if not self.executable.is_file() or not self.libraries.is_dir():
            return (
                f"{WHEEL} {self.wheel_version} is installed but {self.executable} or "
                f"{self.libraries} is missing: install the wheel again"
            )
        if not self.stub.is_file():
            carried = sorted(path.name for path in self.stub.parents[1].glob("3.*"))
            return (
                f"{WHEEL} {self.wheel_version} has no Python stub for {python}, only for "
                f"{', '.join(carried)}: use Python 3.11 or 3.12"
            )
        if self.libpython is None:
            return (
                f"no libpython{python}.so.1.0, which Triton's Python stub embeds: install it "
                f"(Debian and Ubuntu: apt-get install libpython{python})"
            )
        return None


def find_triton() -> TritonBinary | None:
    """Return the wheel's Triton, or None when the wheel is not installed for this Python."""
    try:
        wheel = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    site_packages = Path(str(wheel.locate_file("")))
    triton = site_packages / "pytriton" / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return TritonBinary(
        executable=triton / "bin" / "tritonserver",
        libraries=site_packages / "nvidia_pytriton.libs",
        python_backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / python / "triton_python_backend_stub",
        caches=triton / "caches",
        wheel_version=wheel.version,
        libpython=_find_libpython(),
    )


def require_triton() -> TritonBinary:
    """Return the wheel's Triton, ready to serve.

    Raises:
        TritonNotFound: The wheel is missing or incomplete; the message says what to do.
    """
    binary = find_triton()
    if binary is None:
        raise TritonNotFound(
            f"the {WHEEL} wheel, which carries the tritonserver binary, is not installed for "
            f"{sys.executable}; run `make env` (the wheel exists for Linux x86-64 only), or use "
            "the container: runtime='container'"
        )
    if binary.problem:
        raise TritonNotFound(binary.problem)
    return binary


def _find_libpython() -> Path | None:
    """Return the shared library of the running Python: its own, else the system's loader's."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"]
    for folder in filter(None, folders):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return Path(name)  # the loader finds it by name
