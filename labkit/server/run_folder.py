"""A server's private folder: the assembled backends, and the sign of who owns what it left behind.

The folder's name is also the prefix of the server's shared-memory files. Its `lock` is held by the
supervisor and by every process of the server, so a lock that can be taken means that all are gone.
"""

import fcntl
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import labkit
from labkit.server.find import TritonBinary
from labkit.server.libpython import PYTHON
from labkit.server.native.built import copy_native
from labkit.server.supervisor import remove_files

PREFIX = "labkit-triton-"
STAND_INS = ("onnxruntime", "openvino", "pytorch")

# Triton's stub ignores PYTHONPATH. The stand-ins must come from the labkit that starts the server,
# installed or not, and from no other one.
PREAMBLE = f"""\
import sys
sys.path.insert(0, {str(Path(labkit.__file__).parents[1])!r})
import labkit
sys.path.pop(0)
"""


def make_run_folder() -> tuple[Path, int]:
    """Make a run folder and take its lock.

    Returns:
        The folder, and the file descriptor that holds the lock.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_base()))
        lock_fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        if (folder / "lock").exists():  # else a cleaner was faster than the lock
            return folder, lock_fd
        os.close(lock_fd)


def remove_abandoned() -> list[Path]:
    """Remove run folders and shared memory of this user's servers whose processes are all gone."""
    removed = []
    for folder in _base().glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # just being made, just removed, or no folder of ours
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its server lives
        else:
            remove_files(folder)
            removed.append(folder)
        finally:
            os.close(lock_fd)
    return removed


def assemble_backends(folder: Path, binary: TritonBinary, native: bool) -> Path:
    """Put the Python backend and the native backends, or the stand-ins, together in a run folder.

    Triton refuses a backend library that is a link out of its folder, and may change the mode of
    the stub: so all are copies, and the cache stays as it is.
    """
    backends = folder / "backends"
    (folder / "lib").mkdir()
    _add_python_backend(backends / "python", binary)
    if binary.libpython is not None:
        names = [binary.libpython.name]
        # The wheel's stub for Python 3.13 asks for a bundled copy, which lacks parts of Python.
        names += [path.name for path in binary.libraries.glob(f"libpython*.{PYTHON[2:]}.so.1.0")]
        for name in names:
            (folder / "lib" / name).symlink_to(binary.libpython)
    if native:
        assert binary.native is not None
        copy_native(binary.native, backends)
        return backends
    sources = Path(labkit.__file__).parent / "backends"
    for name in STAND_INS:
        (backends / name).mkdir()
        model = (sources / name / "model.py").read_text()
        (backends / name / "model.py").write_text(PREAMBLE + model)
    return backends


def _add_python_backend(python: Path, binary: TritonBinary) -> None:
    """Put the Python backend together: library, stub, and the module that models import."""
    python.mkdir(parents=True)
    for file in binary.python_backend.iterdir():
        if file.is_file():
            shutil.copy2(file, python / file.name)
    shutil.copy2(binary.stub, python / "triton_python_backend_stub")
    if not binary.stub_fits_numpy:
        utils = python / "triton_python_backend_utils.py"
        fix = Path(labkit.__file__).parent / "backends" / "numpy2.py"
        utils.write_text(utils.read_text() + "\n\n" + fix.read_text())


def link_models(folder: Path, models: Iterable[Path]) -> Path:
    """Show only these models to the server: a repository of links, at a path without spaces.

    Triton starts its stubs through a shell and does not quote the paths.
    """
    shown = folder / "models"
    shown.mkdir()
    for model in models:
        (shown / model.name).symlink_to(model, target_is_directory=True)
    return shown


def _base() -> Path:
    """Return the temporary folder, unless its path needs quotes, which Triton does not give it."""
    chosen = tempfile.gettempdir()
    return Path(chosen if shlex.quote(chosen) == chosen else "/tmp")
