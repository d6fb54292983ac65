"""Copying a folder or zip that was handed in: plain files only, under names that stay inside.

Nothing is trusted: links are not followed, and what is left out is noted. Every limit counts the
bytes that were really copied, not what headers claim.
"""

import errno
import hashlib
import io
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from labkit.errors import LabError
from labkit.grading.limits import MIB
from labkit.grading.untrusted import UnfitFile, open_plain, short_name

MAX_DEPTH = 12  # names in a path
MAX_NAME_BYTES, MAX_PATH_BYTES = 200, 500

# Left out without a word: what tools leave behind, and what is no part of anybody's work.
IGNORED = frozenset(
    {"__MACOSX", ".ipynb_checkpoints", "__pycache__", ".git", ".venv", "node_modules", ".DS_Store",
     "site-packages"}
)  # fmt: skip
DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Entry:
    """A plain file of a submission: its name, `/` between the parts, and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]


def left_out(name: str, why: str) -> str:
    """Return the note about a file that is not taken in."""
    return f"left out: {short_name(name)} ({why})"


def _name_problem(name: str) -> str:
    """Return why a relative path is not taken over; empty where it is fine."""
    parts = name.split("/")
    if name.startswith("/") or DRIVE.match(name):
        return "an absolute path"
    if ".." in parts:
        return "a path with `..`"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return "a control character in its name"
    if len(parts) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders deep"
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES or len(name.encode()) > MAX_PATH_BYTES:
        return "a name that is too long"
    return ""


def _is_ignored(name: str) -> bool:
    """Return whether a path is, or lies in, something that is left out without a word."""
    return any(part in IGNORED or part.startswith("._") for part in name.split("/"))


def folder_entries(root: Path, inside: str, notes: list[str]) -> Iterator[Entry]:
    """Yield the plain files below `root / inside`; what is left out is noted."""
    try:
        children = sorted(os.scandir(root / inside), key=lambda child: child.name)
    except OSError as error:
        notes.append(left_out(inside, f"it cannot be read: {error.strerror}"))
        return
    for child in children:
        raw = f"{inside}/{child.name}" if inside else child.name
        name = _folder_name(raw)
        if _is_ignored(name):
            continue
        mode = child.stat(follow_symlinks=False).st_mode
        if problem := _name_problem(name):
            notes.append(left_out(raw, problem))
        elif stat.S_ISDIR(mode):
            yield from folder_entries(root, raw, notes)
        elif stat.S_ISREG(mode):
            yield Entry(name, partial(open_plain, root, raw))
        else:
            notes.append(left_out(raw, "a link" if stat.S_ISLNK(mode) else "no plain file"))


def file_entries(path: Path, name: str, notes: list[str]) -> Iterator[Entry]:
    """Yield one plain file under a name of its own; nothing, and a note, where it cannot be."""
    own = _folder_name(name)
    if problem := _name_problem(own):
        notes.append(left_out(name, problem))
    elif not _is_ignored(name):
        yield Entry(own, partial(open_plain, path.parent, path.name))


def _folder_name(raw: str) -> str:
    """Return a file's name as that of a zip's entry: what is no UTF-8 in it is replaced.

    A zip from Windows, unpacked elsewhere, leaves such bytes, and backslashes between folders.
    """
    readable = os.fsencode(raw).decode(errors="replace")
    return unicodedata.normalize("NFC", readable.replace("\\", "/"))


def zip_entries(archive: zipfile.ZipFile, notes: list[str]) -> Iterator[Entry]:
    """Yield the plain files of a zip; what is left out is noted."""
    for info in archive.infolist():
        raw = _zip_name(info)
        if _is_ignored(raw):
            continue
        if problem := _name_problem(raw) or _zip_problem(info):
            notes.append(left_out(raw, problem))
        elif not (raw.endswith("/") or stat.S_ISDIR(info.external_attr >> 16)):
            name = "/".join(part for part in raw.split("/") if part not in ("", "."))
            yield Entry(name, partial(archive.open, info))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return an entry's name as it is in the archive; zipfile cuts it at a NUL.

    macOS writes UTF-8 without saying so, in its decomposed form.
    """
    # Some programs for Windows write backslashes between folders.
    name = info.orig_filename.replace("\\", "/")
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):  # it is in another encoding, and stays as zipfile reads it
            name = name.encode("cp437").decode()
    return unicodedata.normalize("NFC", name)


def _zip_problem(info: zipfile.ZipInfo) -> str:
    """Return why an entry cannot be extracted, whatever its name; empty where it can."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "no plain file"
    if info.flag_bits & 0x1:
        return "encrypted"
    # The other methods expand a chunk without bounds; ordinary zips use these two.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "an unusual compression"
    return ""


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


class Damaged(Rejected):
    """An archive that cannot be read."""


class _Staging:
    """A folder that files are copied into, and what is left of the room in it."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        self.folder, self.notes = folder, notes
        self.digests: dict[str, str] = {}
        self.from_zips: set[str] = set()  # of the zips that lay among other files
        self._room = MAX_TOTAL_BYTES

    def copy(self, entries: Iterable[Entry], below: str = "") -> None:
        """Write files below a folder in it.

        Raises:
            Rejected: they are too many or too large.
        """
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if problem := _name_problem(name):  # `below` is somebody's name of a zip or folder
                self.notes.append(left_out(name, problem))
                continue
            if name in self.digests:
                self.notes.append(left_out(name, "a second file of this name"))
                continue
            if len(self.digests) == MAX_FILES:
                raise _too_much(f"more than {MAX_FILES:,} files", f"{MAX_FILES:,}")
            target = self.folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with entry.open() as stream, target.open("xb") as copy:
                    self.digests[name], size = _copy_bytes(stream, copy, name, self._room)
            except (FileExistsError, NotADirectoryError):
                self.notes.append(left_out(name, "a file and a folder of this name"))
                continue
            except (UnfitFile, PermissionError) as error:
                self.notes.append(left_out(name, f"it cannot be read: {error}"))
                continue
            self._room -= size

    def open_zips(self) -> None:
        """Put the content of every zip in the place of it; zips in these stay closed.

        Raises:
            Rejected: see `copy`.
        """
        for name in [name for name in self.digests if name.lower().endswith(".zip")]:
            below, before = name[: -len(".zip")], set(self.digests)
            try:
                self.take_zip(self.folder, name, below)
            except Damaged as error:
                self.notes.append(left_out(name, str(error)))
                continue
            del self.digests[name]
            (self.folder / name).unlink()
            for inner in set(self.digests) - before:
                if inner.lower().endswith(".zip"):
                    self.notes.append(left_out(inner, "a zip in a zip that was in a zip or folder"))

    def take_zip(self, root: Path, name: str, below: str = "") -> None:
        """Extract the plain files of a zip.

        Raises:
            Damaged: it cannot be read.
            Rejected: see `copy`.
        """
        before = set(self.digests)
        try:
            with _opened(root, name) as archive:
                self.copy(zip_entries(archive, self.notes), below)
        finally:  # also what came out before it turned out to be damaged
            if below:
                self.from_zips |= self.digests.keys() - before


@contextmanager
def _opened(root: Path, name: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip for as long as its content is read.

    Raises:
        Damaged: it cannot be read.
        Rejected: it has too many entries.
    """
    try:
        with open_plain(root, name) as stream:
            if _directory_bytes(stream) > MAX_DIRECTORY_BYTES:
                raise Rejected(
                    f"{short_name(name)} has too many entries, expected at most "
                    f"{MAX_FILES:,}: pack only the notebooks and the files that they need"
                )
            with zipfile.ZipFile(stream) as archive:
                yield archive
    except (*DAMAGE, UnfitFile) as error:
        raise _damaged(name, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the start of the file
            raise
        raise _damaged(name, error) from error


def names_in_zip(path: Path) -> list[str]:
    """Return the names of a zip's entries, as `zip_entries` reads them; none if it is damaged."""
    try:
        with _opened(path.parent, path.name) as archive:
            return [name for info in archive.infolist() if not _is_ignored(name := _zip_name(info))]
    except (Rejected, OSError):
        return []


def take(
    paths: Mapping[str, Path], is_zip: bool, staging: Path, notes: list[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """Copy what was handed in: a folder or zip (under the name ""), or several files or folders.

    A zip in it is opened once, under the same limits.

    Returns:
        File → SHA-256, and the files that came out of a zip among other files.

    Raises:
        Rejected: it is damaged, too many files, or too large.
    """
    place = _Staging(staging, notes)
    for name, path in paths.items():
        if path.is_dir():
            place.copy(folder_entries(path, "", notes), _folder_name(name))
        elif is_zip:
            place.take_zip(path.parent, path.name)
        elif name.lower().endswith(".zip"):
            try:
                place.take_zip(path.parent, path.name, _folder_name(name)[: -len(".zip")])
            except Damaged as error:
                if len(paths) == 1:
                    raise
                notes.append(left_out(name, str(error)))
        else:
            place.copy(file_entries(path, name, notes))
    place.open_zips()
    _normalise_modes(staging)
    return place.digests, frozenset(place.from_zips)


def _damaged(name: str, error: Exception) -> Damaged:
    """Return the rejection of an archive that cannot be read."""
    reason = f"{type(error).__name__}: {short_name(str(error))}"
    return Damaged(
        f"{short_name(name)} is damaged or no zip ({reason}), "
        "expected an ordinary zip: pack the notebooks again and open it once before handing it in"
    )


def _directory_bytes(stream: IO[bytes]) -> int:
    """Return the size of a zip's table of contents, before zipfile loads it as a whole.

    The end record holds it at byte 12; a comment of up to 64 KiB may follow. Some programs write
    the 64-bit variant, too: its record holds the size at byte 40, and lies before a locator with
    its place at byte 8. Of all that may be meant the largest counts.
    """
    length = stream.seek(0, io.SEEK_END)
    start = stream.seek(max(0, length - 2**16 - 200))
    tail = stream.read()
    sizes = [0]
    for end in re.finditer(b"PK\x05\x06", tail):
        sizes.append(_number(tail, end.start() + 12, 4) % 0xFFFFFFFF)  # that says: see the other
    places = [start + record.start() for record in re.finditer(b"PK\x06\x06", tail)]
    places += [_number(tail, at.start() + 8, 8) for at in re.finditer(b"PK\x06\x07", tail)]
    for place in places:
        stream.seek(min(place, length))
        sizes.append(_number(stream.read(48), 40, 8))
    stream.seek(0)
    return max(sizes)


def _number(record: bytes, at: int, length: int) -> int:
    """Return a number of a zip's record."""
    return int.from_bytes(record[at : at + length], "little")


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
