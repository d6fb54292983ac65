"""Addresses, and the page of metrics."""

import http.client
import re
import urllib.error
import urllib.request
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from labkit.client.errors import ClientError, Unreachable

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}  # Triton's defaults


class Sample(NamedTuple):
    """One line of the metrics page."""

    name: str
    labels: dict[str, str]
    value: float


def host_and_port(url: str) -> str:
    """Return `host:port` without scheme or trailing slash.

    Raises:
        ClientError: there is no port in it.
    """
    bare = re.sub(r"^(http|grpc)://", "", url.strip()).rstrip("/")
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^/:\s]+):\d{1,5}(/\S*)?", bare):
        raise ClientError(f"got the address {url!r}; expected host:port, such as 127.0.0.1:8000")
    return bare


def metrics(url: str, timeout_s: float = 10.0) -> list[Sample]:
    """Read the metrics page (Prometheus text), by default on port 8002.

    Raises:
        Unreachable: nothing answers there, or not with metrics.
    """
    address = f"http://{host_and_port(url)}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(address, timeout=timeout_s) as reply:
            page = reply.read().decode()
            families = list(text_string_to_metric_families(page))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(
            f"no metrics at {address} ({reason(error)}); expected Triton's metrics port, "
            f"{PORTS['metrics']} by default"
        ) from error

    def shown(name: str) -> str:  # the parser adds "_total" to counters; Triton's page has none
        return name if name in page else name.removesuffix("_total")

    return [Sample(shown(s.name), dict(s.labels), s.value) for f in families for s in f.samples]


def reason(error: Exception) -> str:
    """Say in a few words why a connection gave no answer."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return "what answers there speaks something else"
