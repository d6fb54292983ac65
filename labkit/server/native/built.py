"""What was built for the libraries and the Python at hand, and where it lies in the cache."""

import hashlib
import platform
import shutil
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from labkit.server.fetch import triton_cache

_HERE = Path(__file__).parent
RECIPE = (_HERE / "recipe.py", _HERE / "sources.sha256")  # sources, patches and flags
LIBRARIES = ("torch", "openvino")  # whose headers the backends are compiled against
LINK = "libraries"  # beside a backend; in its run path
STUB = "triton_python_backend_stub"


def backends_folder() -> Path | None:
    """Return where the native backends for this environment's libraries belong.

    None where one of the libraries is not installed.
    """
    try:
        versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    except metadata.PackageNotFoundError:
        return None
    return triton_cache() / f"backends-{_key(*versions)}"


def stub_folder() -> Path:
    """Return where the Python stub for the running Python belongs."""
    python = ".".join(map(str, sys.version_info[:2]))
    return triton_cache() / f"stub-python{python}-{_key(sys.implementation.cache_tag or python)}"


def built_backends() -> Path | None:
    """Return the folder of the native backends for this environment; None where none is built."""
    folder = backends_folder()
    return folder if folder is not None and folder.is_dir() else None


def built_stub() -> Path | None:
    """Return the stub that was built for the running Python; None where none is."""
    stub = stub_folder() / STUB
    return stub if stub.is_file() else None


def _key(*facts: str) -> str:
    """Return 12 hexadecimal digits that change with the recipe, its sources, and `facts`.

    And with the C library: a cache may be shared with a system whose own is older.
    """
    known = [_recipe(), platform.machine(), *platform.libc_ver(), *facts]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


@cache
def _recipe() -> str:
    digest = hashlib.sha256()
    for file in RECIPE:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def copy_native(built: Path, backends: Path) -> None:
    """Put the native backends into a server's backend folder.

    Each finds its engine's libraries through a link beside it: those of the running environment,
    and for ONNX Runtime those that were stored with the build.
    """
    for name, libraries in engine_libraries(built).items():
        folder = backends / name
        folder.mkdir()
        library = f"libtriton_{name}.so"
        shutil.copy2(built / name / library, folder / library)
        (folder / LINK).symlink_to(libraries)


def engine_libraries(built: Path) -> dict[str, Path]:
    """Return backend → the folder of its engine's shared libraries."""
    return {
        "onnxruntime": built / "onnxruntime" / LINK,
        "openvino": _package("openvino") / "libs",
        "pytorch": _package("torch") / "lib",
    }


def engine_package(backend: str) -> Path | None:
    """Return the package of a backend's engine; None where it is stored with the build."""
    return {"openvino": _package("openvino"), "pytorch": _package("torch")}.get(backend)


def _package(name: str) -> Path:
    return Path(str(metadata.distribution(name).locate_file(name)))
