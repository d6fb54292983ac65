"""The small files that differ between a container and this machine: the gateway's site/ folder."""

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.errors import LabError
from labkit.server.ports import LOOPBACK
from labkit.workspace import write_text

# Anything that nginx reads as one plain word.
KEY = re.compile(r"[A-Za-z0-9_-]{8,200}")
ADDRESS = re.compile(r"[A-Za-z0-9.-]+:([0-9]{1,5})")
VALUE = re.compile(r"[0-9]+[a-z]*(/[sm])?")

# Name of a setting → what stands before its value in site/limits.conf, for HTTP and for gRPC.
SETTINGS: dict[str, tuple[str, ...]] = {
    "body_cap": ("client_max_body_size ",),  # such as 8m
    "rate": ("rate=",),  # such as 1000r/s, for each key
    "burst": ("burst=",),  # requests at once above the rate
    "header_timeout": ("client_header_timeout ",),
    "body_timeout": ("client_body_timeout ",),
    "send_timeout": ("send_timeout ",),
    "keepalive_timeout": ("keepalive_timeout ",),
    "connect_timeout": ("proxy_connect_timeout ", "grpc_connect_timeout "),
    "read_timeout": ("proxy_read_timeout ", "grpc_read_timeout "),
    "retry_timeout": ("proxy_next_upstream_timeout ", "grpc_next_upstream_timeout "),
}
# Name of a setting → its value in site/upstream_*.conf.
SERVER_SETTINGS: dict[str, str] = {
    "max_fails": "1",
    "fail_timeout": "1s",
    "max_conns": "256",  # requests under way at one replica
}

# On a reload nginx closes idle connections at once, perhaps under a request that is on its way.
# Since this version it can wait for a while, and ends each connection after its next answer.
KEEP_CONNECTIONS = "keepalive_min_timeout 5s;"
KEEPS_CONNECTIONS = (1, 27, 4)


class SiteError(LabError):
    """An address or a setting that the gateway cannot take."""


def write_place(site: Path, keys: Mapping[str, str], version: tuple[int, ...]) -> None:
    """Write main.conf, http.conf and keys.conf: paths below the gateway's folder, and the keys.

    Args:
        site: The folder.
        keys: Name → key.
        version: Of nginx.
    """
    # Started by root, nginx would work as `nobody`, who cannot read a private folder.
    user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
    write_text(
        site / "main.conf",
        f"{user}worker_processes 2;\npid logs/nginx.pid;\nerror_log logs/error.log notice;\n",
    )
    temporary = "".join(
        f"{name}_temp_path temp/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    gentle = f"{KEEP_CONNECTIONS}\n" if version >= KEEPS_CONNECTIONS else ""
    write_text(site / "http.conf", f"access_log logs/access.log json;\n{temporary}{gentle}")
    write_text(site / "keys.conf", "".join(f'"{key}" {name};\n' for name, key in keys.items()))


def write_limits(site: Path, original: Path, settings: Mapping[str, str]) -> None:
    """Write limits.conf: the container's, with other values where the settings say so.

    Args:
        site: The folder.
        original: The container's limits.conf.
        settings: Name of a setting → value.

    Raises:
        SiteError: A setting is not known, or its value is not one.
    """
    text = original.read_text()
    for name, value in settings.items():
        if name not in SETTINGS and name not in SERVER_SETTINGS:
            known = ", ".join([*SETTINGS, *SERVER_SETTINGS])
            raise SiteError(f"got the setting {name!r}, expected one of {known}")
        if not VALUE.fullmatch(value):
            raise SiteError(f"got {name}={value!r}, expected a number with its unit, such as 8m")
        for before in SETTINGS.get(name, ()):
            text, count = re.subn(rf"(?m)(^|\s)({before})[^; ]+", rf"\g<1>\g<2>{value}", text)
            if count != 1:
                raise SiteError(f"{original} has {count} places for {name}, expected one")
    write_text(site / "limits.conf", text)


def write_upstreams(
    site: Path, http: Sequence[str], grpc: Sequence[str], settings: Mapping[str, str]
) -> None:
    """Write upstream_http.conf and upstream_grpc.conf: a line for each replica.

    Args:
        site: The folder.
        http: `host:port` of each HTTP endpoint.
        grpc: `host:port` of each gRPC endpoint.
        settings: Name of a setting → value; those of limits.conf are left alone.

    Raises:
        SiteError: An address is not `host:port`, or there is none.
    """
    numbers = {**SERVER_SETTINGS, **{n: v for n, v in settings.items() if n in SERVER_SETTINGS}}
    flags = " ".join(f"{name}={value}" for name, value in numbers.items())
    texts = {}
    for protocol, addresses in (("http", http), ("grpc", grpc)):
        if isinstance(addresses, str) or not addresses:
            raise SiteError(f"got {protocol}={addresses!r}, expected a list of host:port")
        for address in addresses:
            match = ADDRESS.fullmatch(address)
            if match is None or not 1 <= int(match[1]) <= 65535:
                raise SiteError(f"got the replica {address!r}, expected host:port")
        lines = [f"server {address} {flags};\n" for address in addresses]
        texts[protocol] = "".join(lines)
    for protocol, text in texts.items():
        write_text(site / f"upstream_{protocol}.conf", text)


def write_listeners(site: Path, ports: Mapping[str, int]) -> None:
    """Write listen_http.conf and listen_grpc.conf: a loopback port each.

    Args:
        site: The folder.
        ports: `http` and `grpc` → port.
    """
    write_text(site / "listen_http.conf", f"listen {LOOPBACK}:{ports['http']};\n")
    write_text(site / "listen_grpc.conf", f"listen {LOOPBACK}:{ports['grpc']} http2;\n")
