"""Native backends: sources from a folder or over HTTP, verified; builds that end half-way."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.server.errors import BuildError, TritonNotFound
from labkit.server.native import build, built, recipe, sources

ARCHIVE = recipe.Archive("somebody/thing", "c0ffee")
FILES = {"thing/src/a.cc": b"int a;\n", "thing/include/a.h": b"extern int a;\n"}


def packed(files: dict[str, bytes] = FILES, top: str = "thing-c0ffee") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in {**files, "thing/not-listed.sh": b"exit 1"}.items():
            entry = tarfile.TarInfo(f"{top}/{name.partition('/')[2]}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items()]
    (tmp_path / "hashes").write_text("".join(lines))
    monkeypatch.setattr(sources, "HASHES", tmp_path / "hashes")
    monkeypatch.delenv(sources.FOLDER_VARIABLE, raising=False)


def test_the_tracked_list_names_every_source_that_is_compiled() -> None:
    units = [backend.unit for backend in recipe.BACKENDS]
    units += [recipe.COMMON, recipe.UTILITIES, *recipe.STUB]
    compiled = {f"{unit.folder}/{name}.cc" for unit in units for name in unit.sources}
    lines = built.RECIPE[1].read_text().splitlines()
    names = [line.split(maxsplit=1)[1] for line in lines]
    assert compiled <= set(names)
    assert {backend.version_script for backend in recipe.BACKENDS} <= set(names)
    assert {patch.file for patch in recipe.PATCHES} <= set(names)
    assert {name.partition("/")[0] for name in names} == {a.name for a in recipe.ARCHIVES}
    assert len(names) == len(set(names)) and all(len(line.split()[0]) == 64 for line in lines)


def test_only_listed_files_are_taken_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(packed())
    monkeypatch.setenv(sources.FOLDER_VARIABLE, str(tmp_path))
    assert sources.unreachable([ARCHIVE]) is None
    sources.unpack_sources([ARCHIVE], tmp_path / "out")
    taken = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert taken == set(FILES)
    (tmp_path / ARCHIVE.file).unlink()
    assert f"lacks {ARCHIVE.file}" in str(sources.unreachable([ARCHIVE]))
    with pytest.raises(BuildError, match=f"{ARCHIVE.file} cannot be read.*place it there"):
        sources.unpack_sources([ARCHIVE], tmp_path / "out")


class Host(BaseHTTPRequestHandler):
    """Answers as the real host does: a redirect, then the archive."""

    content = b""
    length: int | None = None

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        if self.path == f"/{ARCHIVE.address}":
            self.send_response(302)
            self.send_header("Location", "/moved")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/moved" else 404)
        self.send_header("Content-Length", str(self.length or len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Host]]:
    class Mine(Host):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(sources, "HOST", f"http://127.0.0.1:{server.server_port}")
        yield Mine
        server.shutdown()


def test_archives_are_downloaded_through_a_redirect(host: type[Host], tmp_path: Path) -> None:
    host.content = packed()
    assert sources.unreachable([ARCHIVE]) is None
    sources.unpack_sources([ARCHIVE], tmp_path / "out")
    assert (tmp_path / "out/thing/src/a.cc").read_bytes() == FILES["thing/src/a.cc"]


def test_a_host_that_cannot_be_reached_is_known_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "HOST", "http://127.0.0.1:9")
    assert "cannot be reached" in str(sources.unreachable([ARCHIVE]))


@pytest.mark.parametrize(
    ("content", "length", "said"),
    [
        (packed(), 10_000_000, "cannot be downloaded"),
        (packed()[:150], None, "cut off or no archive"),
        (b"<html>not found</html>", None, "cut off or no archive"),
        (packed({"thing/src/a.cc": b"int a;\n"}), None, "lacks thing/include/a.h"),
        (packed(FILES | {"thing/src/a.cc": b"evil"}), None, "is not the file that was reviewed"),
    ],
    ids=["ends early", "cut off", "no archive", "another", "wrong bytes"],
)
def test_bad_archives_are_refused_in_a_sentence(
    host: type[Host], tmp_path: Path, content: bytes, length: int | None, said: str
) -> None:
    host.content, host.length = content, length
    with pytest.raises(BuildError, match=said) as error:
        sources.unpack_sources([ARCHIVE], tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1


def test_a_patch_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.cc").write_text("old old")
    with pytest.raises(BuildError, match="'old' 2 times, expected 1"):
        sources.apply([recipe.Patch("a.cc", "old", "new", 1)], tmp_path)
    assert (tmp_path / "a.cc").read_text() == "old old"
    sources.apply([recipe.Patch("a.cc", "old", "new", 2)], tmp_path)
    assert (tmp_path / "a.cc").read_text() == "new new"


# --- building, with a compiler that is a script

COMPILER = """#!/bin/sh
{before}
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo made > "$2"; fi
    shift
done
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that makes what it is asked to; the stub is built from one made-up source."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "triton").mkdir(parents=True)
    program = tmp_path / "g++"
    write(program)
    monkeypatch.setenv("CXX", str(program))
    unit = recipe.Unit("stub", "thing/src", ("a",))

    def make(compiler: build.Compiler, out: Path) -> None:
        compiler.run([build._compile(compiler.folder, unit, [])])
        compiler.run([build.Step("link", ["-o", f"out/{built.STUB}"])])

    monkeypatch.setattr(build, "_build_stub", make)
    monkeypatch.setattr(build, "_build_backends", make)
    monkeypatch.setattr(build, "unsupported", lambda: None)
    return program


def write(program: Path, before: str = "") -> None:
    program.write_text(COMPILER.format(before=before))
    program.chmod(0o755)


def left(tmp_path: Path) -> list[str]:
    """What a build has left that is no result, log or lock."""
    return [p.name for p in (tmp_path / "cache" / "triton").iterdir() if p.name.startswith(".")]


def test_what_is_built_is_used_and_not_built_again(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert built.built_stub() is None and built.built_backends() is None
    said: list[str] = []
    first = build.build_all(said.append)
    assert [line.split(":")[0] for line in first] == ["stub", "backends"]
    assert "stub [1/1] stub: 1 sources of thing/src" in said
    assert built.built_stub() == built.stub_folder() / built.STUB
    assert built.built_backends() == built.backends_folder()
    write(compiler, "exit 1")
    assert all("there already" in line for line in build.build_all(said.append))
    monkeypatch.setenv("CXX", "no-such-compiler")  # and what is there needs none
    assert all("there already" in line for line in build.build_all(said.append))
    assert left(tmp_path) == []


def test_another_version_of_a_library_is_another_build(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build_all(lambda line: None)
    monkeypatch.setattr(built.metadata, "version", lambda name: "9.9")
    assert built.built_backends() is None
    monkeypatch.setattr(built, "_recipe", lambda: "another recipe")
    assert built.built_stub() is None


def test_what_an_older_system_cannot_load_is_not_taken_from_a_shared_cache(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build_all(lambda line: None)
    assert built.built_backends() and built.built_stub()
    monkeypatch.setattr(built.platform, "libc_ver", lambda: ("glibc", "2.1"))
    assert built.built_backends() is None and built.built_stub() is None


def test_a_compile_error_names_its_log_and_leaves_nothing(compiler: Path, tmp_path: Path) -> None:
    write(compiler, "echo 'a.cc:1:2: error: no such thing'; exit 1")
    with pytest.raises(BuildError) as error:
        build.build_all(lambda line: None)
    said = str(error.value)
    assert "a.cc:1:2: error: no such thing" in said and len(said.splitlines()) == 1
    log = tmp_path / "cache" / "triton" / "build-stub.log"
    assert str(log) in said and "no such thing" in log.read_text()
    assert built.built_stub() is None and left(tmp_path) == []


def test_a_full_disk_is_said_so(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(compiler, "echo 'fatal error: a.o: No space left on device'; exit 1")
    with pytest.raises(BuildError, match="is full: about 1000 MB are needed"):
        build.build_all(lambda line: None)
    monkeypatch.setattr(build, "DISK_MB", 10**9)
    with pytest.raises(BuildError, match="MB free, and building needs"):
        build.build_all(lambda line: None)
    assert built.built_stub() is None and left(tmp_path) == []


def test_a_missing_compiler_is_a_sentence(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"no no-such-compiler here: apt-get install g\+\+"):
        build.build_all(lambda line: None)
    assert "apt-get install g++" in str(build.cannot_build())
    done = subprocess.run(
        [sys.executable, "-m", "labkit", "triton", "build", "--if-possible"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "not built, the stand-ins serve" in done.stdout


def test_one_part_that_cannot_be_built_does_not_keep_the_other(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(compiler: build.Compiler, out: Path) -> None:
        raise TritonNotFound("Triton's Python stub needs Python.h")

    monkeypatch.setattr(build, "_build_stub", fail)
    with pytest.raises(BuildError, match=r"needs Python\.h; backends: .*backends-"):
        build.build_all(lambda line: None)
    assert built.built_stub() is None and built.built_backends() == built.backends_folder()
    result = CliRunner().invoke(app, ["triton", "build", "--if-possible"])
    assert result.exit_code == 0 and "Python stub: not built, the wheel's serves" in result.output


def test_a_pytorch_without_its_header_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "fetch_server", lambda: None)
    monkeypatch.setattr(build, "require_libpython", lambda: tmp_path)
    monkeypatch.setattr(build, "require_headers", list)
    monkeypatch.setattr(build, "unpack_sources", lambda archives, folder: None)
    monkeypatch.setattr(build, "_unpack_wheel", lambda wheel, scratch, folder, rename: None)
    monkeypatch.setattr(build, "engine_package", lambda backend: tmp_path / "torch")
    compiler = build.Compiler("g++", tmp_path, tmp_path / "log", lambda line: None)
    with pytest.raises(BuildError, match=r"dlpack\.h is missing: install PyTorch anew"):
        build._build_stub(compiler, tmp_path)


def test_two_builds_at_once_build_once(compiler: Path, tmp_path: Path) -> None:
    write(compiler, f"echo run >> {tmp_path}/runs; sleep 0.2")
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(build.build_all(lambda line: None)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    assert (tmp_path / "runs").read_text().count("run") == 4  # compiled and linked, twice


SCRIPT = """
import sys
from pathlib import Path
from labkit.server.native import build, built, recipe
def make(compiler, out):
    compiler.run([build.Step("slow", ["-o", "slow.o"])])
build._build_stub = build._build_backends = make
build.unsupported = lambda: None
build.build_all(lambda line: None)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_that_is_used(
    compiler: Path, tmp_path: Path, how: signal.Signals
) -> None:
    started = tmp_path / "started"
    write(compiler, f"echo $$ > {started}; sleep 60")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not started.exists() or not started.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    process.wait(30)
    assert built.built_stub() is None
    if how is signal.SIGINT:
        assert left(tmp_path) == []
        with pytest.raises(ProcessLookupError):
            os.kill(int(started.read_text()), 0)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.read_text()), signal.SIGKILL)
    write(compiler)
    build.build_all(lambda line: None)
    assert built.built_stub() is not None and left(tmp_path) == []
