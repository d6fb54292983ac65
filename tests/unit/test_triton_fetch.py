"""The server's wheel: from where, verified, unpacked once; libpython; and a quiet command line."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.server import TritonNotFound, fetch, libpython, wheels
from labkit.workspace import sha256


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("LABKIT_CACHE", str(folder))
    monkeypatch.setattr(fetch, "unsupported", lambda: None)
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny wheel in the place of the pinned one."""
    path = tmp_path / "tiny-1-py3-none-manylinux_2_35_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        program = zipfile.ZipInfo("pytriton/tritonserver/bin/tritonserver")
        program.external_attr = 0o100777 << 16
        archive.writestr(program, "#!/bin/sh\n")
        archive.writestr("nvidia_pytriton.libs/libx.so", "library")
        archive.writestr("pytriton/__init__.py", "raise SystemExit('must never be imported')")
    pinned = replace(fetch.WHEEL, name="tiny", version="1", file=path.name, sha256=sha256(path))
    monkeypatch.setattr(fetch, "WHEEL", pinned)
    return path


def no_pip(wheel: wheels.Wheel, scratch: Path) -> str:
    return "no network here"


def test_a_wheel_placed_by_hand_needs_no_network(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_pip_download", no_pip)
    wheel.rename(cache / wheel.name)
    folder = fetch.fetch_server()
    assert folder.is_relative_to(cache)
    program = folder / "tritonserver" / "bin" / "tritonserver"
    assert os.access(program, os.X_OK)
    assert sorted(path.name for path in folder.iterdir()) == [
        "nvidia_pytriton.libs",
        "tritonserver",
    ]
    assert fetch.fetch_server() == folder
    assert (cache / wheel.name).exists()  # it is the person's
    assert [path.name for path in (cache / "triton").iterdir() if path.is_dir()] == [folder.name]


def test_a_broken_download_is_refused_by_its_checksum(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(pinned: wheels.Wheel, scratch: Path) -> str:
        (scratch / pinned.file).write_bytes(wheel.read_bytes()[:100])
        return ""

    monkeypatch.setattr(wheels, "_pip_download", half)
    with pytest.raises(TritonNotFound, match=r"SHA-256 .* expected .*run `labkit triton fetch`"):
        fetch.fetch_server()
    assert not fetch.runtime_folder().exists()
    assert [path for path in (cache / "triton").iterdir() if path.is_dir()] == []


def test_without_network_the_way_out_is_named(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_pip_download", no_pip)
    with pytest.raises(TritonNotFound) as error:
        fetch.fetch_server()
    said = str(error.value)
    assert "no network here" in said and f"place {wheel.name} in {cache}" in said
    assert "pip download --no-deps --only-binary :all: tiny==1" in said


def test_an_index_that_never_answers_is_asked_twice(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end of the test
            while True:
                asked.append(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "0.5")  # 15 s by itself
        with pytest.raises(TritonNotFound, match="could not be downloaded"):
            fetch.fetch_server()
    assert len(asked) == 2
    for connection in asked:
        connection.close()


def test_two_that_fetch_at_once_download_once(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads, together = [], threading.Barrier(2)

    def slow(pinned: wheels.Wheel, scratch: Path) -> str:
        downloads.append(scratch)
        (scratch / pinned.file).write_bytes(wheel.read_bytes())
        return ""

    def run(found: list[Path]) -> None:
        together.wait()
        found.append(fetch.fetch_server())

    monkeypatch.setattr(wheels, "_pip_download", slow)
    found: list[Path] = []
    threads = [threading.Thread(target=run, args=(found,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2 and len(set(found)) == 1
    assert len(downloads) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(fetch, "unsupported", lambda: None)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(TritonNotFound, match="set LABKIT_CACHE to another folder"):
        fetch.fetch_server()


@pytest.mark.parametrize(
    ("system", "machine", "libc", "said"),
    [
        ("Darwin", "arm64", ("", ""), "install Docker or Podman"),
        ("Linux", "aarch64", ("glibc", "2.36"), "for Linux x86-64, and this is Linux aarch64"),
        ("Linux", "x86_64", ("glibc", "2.31"), "this system has glibc 2.31"),
        ("Linux", "x86_64", ("", ""), "no glibc"),
        ("Linux", "x86_64", ("glibc", "2.41"), None),
    ],
)
def test_what_the_server_needs_is_said_before_a_download(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    libc: tuple[str, str],
    said: str | None,
) -> None:
    monkeypatch.setattr(fetch.platform, "system", lambda: system)
    monkeypatch.setattr(fetch.platform, "machine", lambda: machine)
    monkeypatch.setattr(fetch.platform, "libc_ver", lambda: libc)
    problem = fetch.unsupported()
    assert problem is None if said is None else said in str(problem)


APT = """#!/bin/sh
case "$*" in
    *" update") exit {update} ;;
    *" download "*) touch libpython.deb ;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p unpacked/usr/lib && cd unpacked/usr/lib && echo library > {name}.0 && ln -s {name}.0 {name}
"""


def test_libpython_is_fetched_as_a_package_without_root(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("apt-get", APT.format(update=0)),
        ("dpkg", DPKG.format(name=libpython.NAME)),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    found = libpython.fetch_libpython()
    assert found.is_relative_to(cache) and found.read_text() == "library\n"
    monkeypatch.setattr(libpython.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(libpython.sys, "base_prefix", str(tmp_path))
    (programs / "apt-get").write_text(APT.format(update=100))
    if libpython.find_libpython() == found:  # else the system has one where all look
        assert libpython.require_libpython() == found
    with pytest.raises(TritonNotFound) as error:
        libpython.fetch_package("libother", lambda unpacked: None)
    said = str(error.value)
    assert "With root: apt-get install libother" in said and "without: apt-get download" in said


def test_headers_are_the_systems_or_fetched_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "include"
    own.mkdir()
    monkeypatch.setattr(libpython.sysconfig, "get_path", lambda name: str(own))
    fetched: list[str] = []

    def fetch_package(package: str, keep: Callable[[Path], object]) -> None:
        fetched.append(package)
        unpacked = tmp_path / "unpacked"
        (unpacked / "usr" / "include").mkdir(parents=True)
        (cache / "triton").mkdir(exist_ok=True)
        keep(unpacked)

    monkeypatch.setattr(libpython, "fetch_package", fetch_package)
    headers = libpython.require_headers()
    include = cache / "triton" / f"headers-{libpython.PYTHON}" / "usr" / "include"
    assert headers == [include / f"python{libpython.PYTHON}", include] and include.is_dir()
    assert libpython.require_headers() == headers
    assert fetched == [f"libpython{libpython.PYTHON}-dev"]
    (own / "Python.h").touch()
    assert libpython.require_headers() == [own]


def test_without_headers_and_apt_fedoras_command_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libpython.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TritonNotFound, match=r"needs Python\.h.*dnf install python3-devel"):
        libpython.require_headers()


def test_without_apt_the_commands_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TritonNotFound, match=f"no apt.*apt-get install {libpython.PACKAGE}"):
        libpython.fetch_libpython()


def test_the_command_says_what_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "labkit", "triton"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"server    {fetch.SERVER_VERSION}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("runtime   ")
