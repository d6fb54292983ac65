"""What a stranger has written: files by name, size and kind, never by link; text made printable."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from labkit.errors import LabError
from labkit.grading.limits import MIB

JSON_MIB, MODEL_MIB = 16, 100
MAX_NESTING = 100  # lists and objects in each other; the lab's own JSON has a dozen at most


class UnfitFile(LabError):
    """A file that is missing, or is not what a stage leaves."""


def open_plain(folder: Path, name: str) -> IO[bytes]:
    """Open a regular file below a trusted folder for reading; no link on the way is followed.

    Args:
        folder: StageOutputs by the grader.
        name: Path below it, `/` between its parts; the names are the grader's, the files are not.

    Raises:
        UnfitFile: it does not exist, or it or a folder on the way is a link, a device or a pipe.
    """
    *parents, last = PurePosixPath(name).parts
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parents:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        # Non-blocking: a named pipe would wait for a writer that never comes.
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
    except FileNotFoundError:
        raise UnfitFile(f"{name} was not made") from None
    except OSError as error:
        raise UnfitFile(f"{name} is no plain file ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UnfitFile(f"{name} is no plain file")
    return os.fdopen(file, "rb")


def read_plain(folder: Path, name: str, limit_mib: float) -> bytes:
    """Return the bytes of a regular file, see `open_plain`.

    Raises:
        UnfitFile: also when it is larger than `limit_mib`.
    """
    with open_plain(folder, name) as stream:
        content = stream.read(int(limit_mib * MIB) + 1)
    if len(content) > limit_mib * MIB:
        raise UnfitFile(f"{name} is larger than {limit_mib:g} MiB")
    return content


def copy_plain(folder: Path, name: str, target: Path) -> str:
    """Copy a regular file out of a stranger's folder; return its SHA-256.

    Raises:
        UnfitFile: see `read_plain`; JSON and text may be smaller than model files.
    """
    small = PurePosixPath(name).suffix in (".json", ".pbtxt", ".txt", ".ipynb", ".html")
    content = read_plain(folder, name, JSON_MIB if small else MODEL_MIB)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes, name: str) -> Any:
    """Parse a stranger's JSON.

    Raises:
        UnfitFile: it is not JSON, or built to break a parser or whatever walks through it later.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise UnfitFile(f"{name} is not valid JSON ({type(error).__name__})") from None
    if _nested_deeper(value, MAX_NESTING):
        raise UnfitFile(f"{name} is nested more than {MAX_NESTING} levels deep")
    return value


def _nested_deeper(value: Any, limit: int) -> bool:
    """Return whether lists and objects lie in each other more than `limit` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        nested = [node for node in level if isinstance(node, list | dict)]
        if not nested:
            return False
        level = [child for node in nested for child in _children(node)]
    return True


def _children(node: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def load_json(path: Path) -> Any:
    """Read a JSON file that `copy_plain` has taken in.

    Raises:
        UnfitFile: it is missing or not JSON.
    """
    return parse_json(read_plain(path.parent, path.name, JSON_MIB), path.name)


MAX_NAME, SHOWN_END = 100, 20  # characters of a file's name, and of these its end
MAX_MESSAGE, MAX_CLASS = 300, 60  # characters of what an error says, and of its class


def short_name(name: str) -> str:
    """Return a stranger's file name, safe to print; of a long one its start and its end."""
    kept = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - SHOWN_END]}…{name[-SHOWN_END:]}"
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in kept)


def short_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return the start of a stranger's text as one line that can be printed anywhere."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
