"""Fetch Triton's sources, verify each file that is compiled or included, and patch them."""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import requests

from labkit.server.errors import BuildError
from labkit.server.native.recipe import Archive, Patch
from labkit.workspace import project_root

HOST = "https://github.com"
TIMEOUT_S = (10, 60)  # to connect, to read
REACH_S = 5.0
FOLDER_VARIABLE = "LABKIT_NATIVE_SOURCES"
HASHES = Path(__file__).with_name("sources.sha256")


def sources_folder() -> Path | None:
    """Return the folder of archives that LABKIT_NATIVE_SOURCES names; None where it is not set."""
    named = os.environ.get(FOLDER_VARIABLE)
    return project_root() / Path(named).expanduser() if named else None


def unreachable(archives: Iterable[Archive]) -> str | None:
    """Say why the sources cannot be had, within seconds; None where they can."""
    if folder := sources_folder():
        absent = [archive.file for archive in archives if not (folder / archive.file).is_file()]
        return f"{folder} lacks {', '.join(absent)}" if absent else None
    try:
        requests.head(HOST, timeout=REACH_S)
    except requests.RequestException:
        return f"{HOST} cannot be reached"
    return None


def unpack_sources(archives: Iterable[Archive], folder: Path) -> None:
    """Put the verified files of the archives into `folder/<name>/…`.

    An archive's own bytes may differ by how it was packed, so its files are verified, and only
    those that are listed are taken.

    Raises:
        BuildError: an archive cannot be had or read, or one of its files is not the listed one.
    """
    expected = expected_files()
    for archive in archives:
        wanted = {name: digest for name, digest in expected.items() if _of(name) == archive.name}
        for name, content in _members(archive, wanted).items():
            if hashlib.sha256(content).hexdigest() != expected[name]:
                raise BuildError(
                    f"{name} of {archive.repository} is not the file that was reviewed "
                    f"(commit {archive.commit[:12]}): nothing is built from it; try again, or "
                    f"place the archive by hand (see {FOLDER_VARIABLE} in the README)"
                )
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def expected_files() -> dict[str, str]:
    """Return path → SHA-256 of every file that is compiled or included."""
    lines = HASHES.read_text().splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}


def apply(patches: Iterable[Patch], folder: Path) -> None:
    """Change the sources; a patch that finds another number of places than it knows is an error.

    Raises:
        BuildError: a patch does not fit.
    """
    for patch in patches:
        path = folder / patch.file
        text = path.read_text()
        if (found := text.count(patch.old)) != patch.places:
            raise BuildError(
                f"{patch.file} has {patch.old!r} {found} times, expected {patch.places}: the patch "
                "for it does not fit, so nothing is built"
            )
        path.write_text(text.replace(patch.old, patch.new))


def _members(archive: Archive, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return path → content of the wanted files of an archive, which has one folder at its top."""
    missing, found = set(wanted), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_read(archive)), mode="r:gz") as tar:
            for member in tar:
                name = f"{archive.name}/{member.name.partition('/')[2]}"
                if name in missing and (stream := tar.extractfile(member)):
                    found[name] = stream.read()
                    missing.remove(name)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BuildError(
            f"the archive of {archive.repository} is cut off or no archive ({error}): try again"
        ) from error
    if missing:
        raise BuildError(
            f"the archive of {archive.repository} lacks {', '.join(sorted(missing)[:3])}: it is "
            f"another one than commit {archive.commit[:12]}"
        )
    return found


def _read(archive: Archive) -> bytes:
    """Return the bytes of an archive: from the folder that is named, else downloaded."""
    if folder := sources_folder():
        try:
            return (folder / archive.file).read_bytes()
        except OSError as error:
            raise BuildError(
                f"{FOLDER_VARIABLE} names {folder}, where {archive.file} cannot be read "
                f"({error.strerror}): place it there, from {HOST}/{archive.address}"
            ) from error
    address = f"{HOST}/{archive.address}"
    try:
        answer = requests.get(address, timeout=TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise BuildError(
            f"{address} cannot be downloaded ({error}): try again, or download the archives on "
            f"another machine, name each NAME-COMMIT.tar.gz (this one: {archive.file}), and set "
            f"{FOLDER_VARIABLE} to their folder"
        ) from error
    return answer.content


def _of(name: str) -> str:
    return name.partition("/")[0]
