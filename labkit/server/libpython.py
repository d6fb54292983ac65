"""The running Python's shared library, which Triton's Python stub embeds, and its headers."""

import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from labkit.server.errors import TritonNotFound
from labkit.server.fetch import triton_cache

log = logging.getLogger(__name__)

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NAME = f"libpython{PYTHON}.so.1.0"
PACKAGE = f"libpython{PYTHON}"  # Debian's and Ubuntu's
APT_TIMEOUT_S = 300


def find_libpython() -> Path | None:
    """Return the shared library of the running Python, or None where there is none.

    Looked for where this Python was installed, where the system keeps its libraries, and in the
    cache, where `fetch_libpython` puts it.
    """
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        folders += [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"]
    folders += ["/usr/lib64", "/usr/lib", "/usr/local/lib", str(_cached())]
    found = (Path(folder) / NAME for folder in folders if folder)
    return next((path for path in found if path.is_file()), None)


def require_headers() -> list[Path]:
    """Return the folders of the running Python's headers, fetched where the system lacks them.

    Raises:
        TritonNotFound: they are not there and cannot be fetched; the message names the commands.
    """
    own = Path(sysconfig.get_path("include"))
    if (own / "Python.h").is_file():
        return [own]
    unpacked = triton_cache() / f"headers-{PYTHON}"
    if not unpacked.is_dir():
        fetch_package(f"libpython{PYTHON}-dev", lambda found: found.rename(unpacked))
    include = unpacked / "usr" / "include"
    # Debian keeps pyconfig.h in a folder of the machine's name, which Python.h includes by path.
    return [include / f"python{PYTHON}", include]


def require_libpython() -> Path:
    """Return the shared library of the running Python, fetched where the system lacks it.

    Raises:
        TritonNotFound: it is not there and cannot be fetched; the message names the commands.
    """
    return find_libpython() or fetch_libpython()


def fetch_libpython() -> Path:
    """Fetch the library as Debian's or Ubuntu's package into the cache, without root.

    Raises:
        TritonNotFound: there is no apt, or it does not have the package.
    """

    def keep(unpacked: Path) -> None:
        library = next(unpacked.rglob(NAME), None)
        if library is None:
            raise TritonNotFound(missing(f"the package {PACKAGE} does not hold it"))
        _cached().mkdir(parents=True, exist_ok=True)
        library.resolve().rename(_cached() / NAME)

    fetch_package(PACKAGE, keep)
    return _cached() / NAME


def fetch_package(package: str, keep: Callable[[Path], object]) -> None:
    """Fetch a package of Debian's or Ubuntu's and unpack it in a scratch folder, without root.

    apt works with lists of its own: the system's may be empty, and only root may renew them.

    Args:
        package: Its name.
        keep: Takes the unpacked folder, and moves what is needed out of it.

    Raises:
        TritonNotFound: there is no apt, or it does not have the package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise TritonNotFound(missing("this system has no apt to fetch it with", package))
    log.warning("fetching %s, once", package)
    try:
        triton_cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=triton_cache()) as scratch:
            _download_package(package, Path(scratch))
            keep(Path(scratch, "unpacked"))
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        raise TritonNotFound(missing(f"apt could not fetch it ({said[-300:]})", package)) from error


def _download_package(package: str, scratch: Path) -> None:
    """Put a package's files into `scratch/unpacked`."""
    for folder in ("lists/partial", "cache/archives/partial", "unpacked"):
        (scratch / folder).mkdir(parents=True)
    options = [f"Dir::State::lists={scratch}/lists", f"Dir::Cache={scratch}/cache"]
    options += ["Debug::NoLocking=1", "APT::Sandbox::User=", "Dpkg::Use-Pty=0"]
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    for command in (
        [*apt, "update"],
        [*apt, "download", package],
        ["sh", "-c", "exec dpkg -x ./*.deb unpacked"],
    ):
        subprocess.run(
            command,
            cwd=scratch,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT_S,
            check=True,
        )


def missing(why: str, package: str = PACKAGE) -> str:
    """Return the sentence for a Python without its shared library, or without its headers."""
    if package.endswith("-dev"):
        what, fedora, place = "Python.h", "python3-devel", str(triton_cache() / f"headers-{PYTHON}")
    else:
        what, fedora = NAME, "python3-libs"
        place = f"FOLDER, and copy {what} from it to {_cached()}"
    return (
        f"Triton's Python stub needs {what}, and {why}. With root: apt-get install {package} "
        f"(Fedora: dnf install {fedora}); without: apt-get download {package} && "
        f"dpkg -x {package}_*.deb {place}"
    )


def _cached() -> Path:
    """Return the folder in the cache for libraries that the system lacks."""
    return triton_cache() / "lib"
