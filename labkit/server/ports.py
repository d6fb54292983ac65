"""Loopback ports: free ones, and who holds those that are not."""

import socket
from collections.abc import Mapping

import psutil

from labkit.server.errors import PortInUse, ServerError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port that nothing on the loopback address holds at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def choose_ports(wanted: Mapping[str, int | None]) -> dict[str, int]:
    """Return a port for every endpoint: the one asked for, else a free one.

    Args:
        wanted: Endpoint → port, or None for any free port.

    Raises:
        ServerError: A port is out of range, or two endpoints ask for the same one.
        PortInUse: A port that was asked for is held; the message names the holder.
    """
    given = {name: port for name, port in wanted.items() if port is not None}
    for name, port in given.items():
        if not 1 <= port <= 65535:
            raise ServerError(
                f"got {name} port {port}, expected 1 to 65535, or None for a free one"
            )
    if len(set(given.values())) < len(given):
        raise ServerError(f"got {given}, expected a different port for each endpoint")
    held = [name for name, port in given.items() if not can_listen(port)]
    if held:
        raise port_in_use({name: given[name] for name in held})
    ports = dict(given)
    for name in wanted:
        while name not in ports:
            port = free_port()
            if port not in ports.values():
                ports[name] = port
    return ports


def port_in_use(ports: Mapping[str, int]) -> PortInUse:
    """Return the error that names who holds each of these ports."""
    lines = [f"{name} port {port} is held by {holder_of(port)}" for name, port in ports.items()]
    return PortInUse(
        f"{'; '.join(lines)}. Stop that process, or ask for other ports (None: free ones)"
    )


def holder_of(port: int) -> str:
    """Say which process listens on a TCP port, with its id and command line."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS shows other processes' sockets to root only
        return "another process (its name is not readable by this user)"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or tuple(connection.laddr)[1:2] != (port,):
            continue
        if connection.pid is None:
            break
        try:
            command = " ".join(psutil.Process(connection.pid).cmdline())
        except psutil.Error:
            command = "(command line not readable)"
        return f"process {connection.pid}: {command[:200]}"
    return "a process of another user, or one that has just ended"


def can_listen(port: int) -> bool:
    """Say whether a server could listen on this port of the loopback address now.

    Raises:
        ServerError: This user may not listen on it, whoever else does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton does
        try:
            probe.bind((LOOPBACK, port))
        except PermissionError as error:
            raise ServerError(
                f"got port {port}, which this user may not listen on; expected 1024 or above"
            ) from error
        except OSError:
            return False
    return True
