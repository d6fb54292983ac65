"""Copying a folder or zip that was handed in: plain files only, and no more than fits.

Every limit counts the bytes that were really copied, not what headers claim.
"""

import errno
import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from labkit.errors import LabError
from labkit.grading.entries import Entry, folder_entries, left_out, zip_entries
from labkit.grading.files import UnfitFile, open_plain
from labkit.grading.limits import MIB
from labkit.grading.printable import short_name

MAX_FILES = 2_000
MAX_TOTAL_BYTES = 200 * MIB
MAX_FILE_BYTES = 100 * MIB
MAX_DIRECTORY_BYTES = 8 * MIB  # a zip's table of contents: room for some 50,000 entries
CHUNK_BYTES = 1 << 20
# What zipfile raises for archives that are damaged, or use what ordinary archives do not.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error, OverflowError,
)  # fmt: skip


class Rejected(LabError):
    """A submission of which nothing can be taken in."""


def take_folder(folder: Path, staging: Path, notes: list[str]) -> dict[str, str]:
    """Copy the plain files of a folder; return the SHA-256 of each."""
    return _copy(folder_entries(folder, "", notes), staging, notes)


def take_zip(path: Path, staging: Path, notes: list[str]) -> dict[str, str]:
    """Extract the plain files of a zip; return the SHA-256 of each."""
    try:
        with open_plain(path.parent, path.name) as stream:
            if _directory_bytes(stream) > MAX_DIRECTORY_BYTES:
                raise Rejected(
                    f"{short_name(path.name)} has too many entries, expected at most "
                    f"{MAX_FILES:,}: pack only the notebooks and the files that they need"
                )
            with zipfile.ZipFile(stream) as archive:
                return _copy(zip_entries(archive, notes), staging, notes)
    except (*DAMAGE, UnfitFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the start of the file
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> Rejected:
    """Return the rejection of an archive that cannot be read."""
    reason = f"{type(error).__name__}: {short_name(str(error))}"
    return Rejected(
        f"{short_name(path.name)} is damaged or no zip ({reason}), "
        "expected an ordinary zip: pack the notebooks again and open it once before handing it in"
    )


def _directory_bytes(stream: IO[bytes]) -> int:
    """Return the size of a zip's table of contents, before zipfile loads it as a whole.

    The end record holds it at byte 12; a comment of up to 64 KiB may follow. The 64-bit variant is
    for archives of more than 4 GiB or 65,535 entries, and counts as too large.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - 2**16 - 100))
    tail = stream.read()
    stream.seek(0)
    if b"PK\x06\x07" in tail:
        return MAX_DIRECTORY_BYTES + 1
    ends = [match.start() for match in re.finditer(b"PK\x05\x06", tail)]
    return max((int.from_bytes(tail[end + 12 : end + 16], "little") for end in ends), default=0)


def _copy(entries: Iterator[Entry], staging: Path, notes: list[str]) -> dict[str, str]:
    """Write files into the staging folder; return the SHA-256 of each by name.

    Raises:
        Rejected: they are too many or too large.
    """
    digests: dict[str, str] = {}
    room = MAX_TOTAL_BYTES
    for entry in entries:
        if entry.name in digests:
            notes.append(left_out(entry.name, "a second file of this name"))
            continue
        if len(digests) == MAX_FILES:
            raise _too_much(f"more than {MAX_FILES:,} files", f"{MAX_FILES:,}")
        target = staging / entry.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as stream, target.open("xb") as copy:
                digests[entry.name], size = _copy_bytes(stream, copy, entry.name, room)
        except (FileExistsError, NotADirectoryError):
            notes.append(left_out(entry.name, "a file and a folder of this name"))
            continue
        except (UnfitFile, PermissionError) as error:
            notes.append(left_out(entry.name, f"it cannot be read: {error}"))
            continue
        room -= size
    _normalise_modes(staging)
    return digests


def _copy_bytes(stream: IO[bytes], copy: IO[bytes], name: str, room: int) -> tuple[str, int]:
    """Copy a file piece by piece; return its SHA-256 and size in bytes.

    Raises:
        Rejected: it is larger than a file may be, or than the room that is left.
    """
    digest = hashlib.sha256()
    size = 0
    while chunk := stream.read(CHUNK_BYTES):
        size += len(chunk)
        if size > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES / MIB:g} MiB"
            raise _too_much(f"{short_name(name)} with more than {limit}", f"{limit} a file")
        if size > room:
            limit = f"{MAX_TOTAL_BYTES / MIB:g} MiB"
            raise _too_much(f"more than {limit}", f"{limit} in all")
        digest.update(chunk)
        copy.write(chunk)
    return digest.hexdigest(), size


def _too_much(got: str, limit: str) -> Rejected:
    """Return the rejection of a submission beyond a limit."""
    return Rejected(
        f"got {got}, expected at most {limit}: hand in the notebooks and the files that they need, "
        "without data sets, models and environments"
    )


def _normalise_modes(folder: Path) -> None:
    """Give everything below a folder the usual permissions."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
