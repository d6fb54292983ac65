"""The plain files in a folder or zip that was handed in, under names that stay inside.

Nothing is trusted: links are not followed, and what is left out is noted.
"""

import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from labkit.grading.files import open_plain
from labkit.grading.printable import short_name

MAX_DEPTH = 12  # names in a path
MAX_NAME_BYTES, MAX_PATH_BYTES = 200, 500

# Left out without a word: what tools leave behind, and what is no part of anybody's work.
IGNORED = frozenset(
    {"__MACOSX", ".ipynb_checkpoints", "__pycache__", ".git", ".venv", "node_modules", ".DS_Store"}
)
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
    if "\\" in name:
        return "a path with a backslash"
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
        if _is_ignored(raw):
            continue
        mode = child.stat(follow_symlinks=False).st_mode
        if problem := _name_problem(raw):
            notes.append(left_out(raw, problem))
        elif stat.S_ISDIR(mode):
            yield from folder_entries(root, raw, notes)
        elif stat.S_ISREG(mode):
            name = unicodedata.normalize("NFC", raw)
            yield Entry(name, partial(open_plain, root, raw))
        else:
            notes.append(left_out(raw, "a link" if stat.S_ISLNK(mode) else "no plain file"))


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
    name = info.orig_filename
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
