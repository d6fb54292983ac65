"""The parts of the Triton server in the cache, and why they might not serve here."""

import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from labkit.server.errors import TritonNotFound
from labkit.server.fetch import SERVER_VERSION, fetch_server, runtime_folder, unsupported
from labkit.server.libpython import PYTHON, find_libpython, missing, require_libpython
from labkit.server.native.built import built_backends, built_stub


@dataclass(frozen=True)
class TritonBinary:
    """The pieces of a Triton installation that a server is put together from.

    Attributes:
        executable: The `tritonserver` program.
        libraries: Folder of the shared libraries it was linked against.
        python_backend: Folder with `libtriton_python.so`.
        stub: The Python backend's stub for the running Python: the one built on this machine where
            there is one, else the wheel's.
        stub_is_built: Whether it was built here: for this Python and its numpy.
        caches: Folder of the response cache implementations.
        version: Of the server.
        libpython: Shared library of the running Python, which the stub embeds; None where this
            machine has none yet.
        native: Folder of the native backends that were built for this environment's libraries;
            None where there are none.
    """

    executable: Path
    libraries: Path
    python_backend: Path
    stub: Path
    stub_is_built: bool
    caches: Path
    version: str
    libpython: Path | None
    native: Path | None

    @property
    def stub_fits_numpy(self) -> bool:
        """Whether the stub exchanges numpy arrays rightly; the wheel's predates numpy 2."""
        return self.stub_is_built or int(metadata.version("numpy").split(".")[0]) < 2

    @property
    def problem(self) -> str | None:
        """Why this binary cannot serve here, with the remedy; None when it can."""
        if not self.executable.is_file() or not self.libraries.is_dir():
            return f"{runtime_folder()} is not whole: remove it, then run `labkit triton fetch`"
        if not self.stub.is_file():
            return no_stub()
        if self.libpython is None:
            return missing("it was not fetched yet (labkit triton fetch)")
        return None


def find_triton() -> TritonBinary | None:
    """Return the Triton in the cache, or None where it was not fetched yet."""
    folder = runtime_folder()
    if not folder.is_dir():
        return None
    triton = folder / "tritonserver"
    built = built_stub()
    return TritonBinary(
        executable=triton / "bin" / "tritonserver",
        libraries=folder / "nvidia_pytriton.libs",
        python_backend=triton / "backends" / "python",
        stub=built or triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub",
        stub_is_built=built is not None,
        caches=triton / "caches",
        version=SERVER_VERSION,
        libpython=find_libpython(),
        native=built_backends(),
    )


def require_triton() -> TritonBinary:
    """Return a Triton that is ready to serve, fetching what is missing.

    Raises:
        TritonNotFound: it cannot run here, or cannot be fetched; the message says what to do.
    """
    if problem := unsupported():
        raise TritonNotFound(problem)
    if sys.version_info[:2] not in WHEEL_STUBS and built_stub() is None:
        raise TritonNotFound(no_stub())  # before anything is downloaded
    fetch_server()
    require_libpython()
    binary = find_triton()
    if binary is None or binary.problem:
        raise TritonNotFound(binary.problem if binary else f"{runtime_folder()} has gone")
    return binary


WHEEL_STUBS = ((3, 11), (3, 12), (3, 13))  # minor versions that the lab takes and the wheel knows


def no_stub() -> str:
    """Return the sentence for a Python that the wheel has no stub for."""
    known = ", ".join(f"{major}.{minor}" for major, minor in WHEEL_STUBS)
    return (
        f"Triton's wheel has a Python stub for {known}, and this is Python {PYTHON}: use one of "
        "those, or build the stub for this one with `labkit triton build` (needs g++)"
    )
