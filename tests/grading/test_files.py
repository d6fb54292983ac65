"""Files out of a stranger's folder: no link, device or pipe is ever followed or waited for."""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.grading import untrusted
from labkit.grading.limits import MIB
from labkit.grading.untrusted import (
    UnfitFile,
    copy_plain,
    load_json,
    open_plain,
    parse_json,
    read_plain,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one honest file, beside a secret that links may point at."""
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.pt").write_bytes(b"secret")
    folder = tmp_path / "run"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "model.pt").write_bytes(b"weights")
    return folder


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_plain_file_is_read(folder: Path) -> None:
    assert read_plain(folder, "inner/model.pt", 1) == b"weights"
    with open_plain(folder, "inner/model.pt") as stream:
        assert stream.read(3) == b"wei"


def link_to_file(folder: Path) -> str:
    (folder / "link.json").symlink_to("../secret.json")
    return "link.json"


def link_on_the_way(folder: Path) -> str:
    (folder / "artifacts").symlink_to("../outside")
    return "artifacts/model.pt"


def link_to_itself(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return "loop"


def broken_link(folder: Path) -> str:
    (folder / "broken").symlink_to("nowhere")
    return "broken"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.json")
    return "pipe.json"


def listening_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket may have some 100 characters only
        try:
            listener.bind("socket.json")
        finally:
            os.chdir(here)
    return "socket.json"


def a_folder(folder: Path) -> str:
    return "inner"


def a_file_as_folder(folder: Path) -> str:
    return "inner/model.pt/checkpoint.pt"


@pytest.mark.parametrize(
    "make",
    [
        link_to_file, link_on_the_way, link_to_itself, broken_link, pipe, listening_socket,
        a_folder, a_file_as_folder,
    ],
)  # fmt: skip
def test_what_is_no_plain_file_is_refused_by_name(folder: Path, make: Callable[..., str]) -> None:
    name = make(folder)
    before = open_descriptors()
    with pytest.raises(UnfitFile) as caught:
        read_plain(folder, name, 1)
    assert str(caught.value).startswith(f"{name} is no plain file")
    assert str(folder) not in str(caught.value)  # students read this
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["checkpoint.pt", "nowhere/checkpoint.pt"])
def test_a_missing_file_was_not_made(folder: Path, name: str) -> None:
    before = open_descriptors()
    with pytest.raises(UnfitFile, match=f"^{name} was not made$"):
        open_plain(folder, name)
    assert open_descriptors() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(folder: Path) -> None:
    (folder / "inner" / "model.pt").chmod(0)
    with pytest.raises(UnfitFile, match="no plain file"):
        open_plain(folder, "inner/model.pt")


def test_what_is_larger_than_the_limit_is_refused_without_reading_it_all(folder: Path) -> None:
    with (folder / "large.json").open("wb") as stream:
        stream.truncate(10_000 * MIB)  # holes: takes no room on the disk
    with pytest.raises(UnfitFile, match=r"^large\.json is larger than 1 MiB$"):
        read_plain(folder, "large.json", 1)
    (folder / "exact").write_bytes(b"x" * MIB)
    assert len(read_plain(folder, "exact", 1)) == MIB


def test_a_copy_has_the_bytes_and_their_sha256(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "evidence" / "ada" / "model.pt"
    digest = copy_plain(folder, "inner/model.pt", target)
    assert target.read_bytes() == b"weights"
    assert digest == hashlib.sha256(b"weights").hexdigest()


def test_json_may_be_smaller_than_model_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "JSON_MIB", 1)
    monkeypatch.setattr(untrusted, "MODEL_MIB", 2)
    for name in ("a.json", "a.pt"):
        (folder / name).write_bytes(b" " * (MIB + 1))
    with pytest.raises(UnfitFile, match="larger than 1 MiB"):
        copy_plain(folder, "a.json", tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    copy_plain(folder, "a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size == MIB + 1


def test_json_is_parsed_whatever_its_top_is() -> None:
    for value in ({"a": [1, 2.5, None]}, [], "text", 7, None, {"a": {"b": {"c": [[[1]]]}}}):
        assert parse_json(json.dumps(value).encode(), "x.json") == value


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"{'a': 1}", b"\xff\xfe\x00", b"\x00" * 9, b"nan", b"1" * 5_000,
        b"[" * 100_000, b"[" * 900 + b"]" * 900, b'{"a":' * 300 + b"1" + b"}" * 300, b"[1,]",
        b"\xed\xa0",
    ],
    ids=lambda content: repr(content[:9]),
)  # fmt: skip
def test_json_that_would_break_a_parser_is_refused(content: bytes) -> None:
    with pytest.raises(UnfitFile, match=r"^history\.json is "):
        parse_json(content, "history.json")


def test_a_kept_file_is_loaded_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "query.json").write_text('{"n": 1}')
    assert load_json(tmp_path / "query.json") == {"n": 1}
    with pytest.raises(UnfitFile, match=r"^tune\.json was not made$"):
        load_json(tmp_path / "tune.json")
