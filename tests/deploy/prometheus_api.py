"""Ask a Prometheus: what an expression is now, what it was over time, which alerts there are."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabError

ANSWER_LIMIT_S = 10.0


class PrometheusError(LabError):
    """Prometheus did not answer a question, or refused it; the message has its words."""


class Value(NamedTuple):
    """What an expression is at one moment, for one set of labels."""

    labels: dict[str, str]
    value: float


class Series(NamedTuple):
    """What an expression was over time.

    Attributes:
        labels: Which of its lines this is.
        times_s: Shape (n,), seconds since 1970, without the moments that have no value.
        values: Shape (n,); not a number where the expression was none.
    """

    labels: dict[str, str]
    times_s: NDArray[np.float64]
    values: NDArray[np.float64]


class Alert(NamedTuple):
    """An alert that is pending (its expression holds, not yet for long enough) or firing."""

    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]
    value: float


class PrometheusClient:
    """Questions to a Prometheus, such as the one of `docker compose` at `127.0.0.1:9090`.

    Attributes:
        url: `host:port` of its API; empty while it is not known.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ready(self) -> bool:
        """Say whether it answers questions by now."""
        try:
            with _open(f"http://{self.url}/-/ready"):
                return True
        except OSError:
            return False

    def query(self, expression: str, at_s: float | None = None) -> list[Value]:
        """Return what an expression is, now or at a time in seconds since 1970.

        Raises:
            PrometheusError: It does not answer, or refuses the expression; the message says why.
        """
        when = {} if at_s is None else {"time": f"{at_s:.3f}"}
        data = self._ask("query", {"query": expression, **when})
        if data["resultType"] in ("scalar", "string"):
            return [Value({}, float(data["result"][1]))]
        if data["resultType"] != "vector":
            raise PrometheusError(
                f"got {expression!r}, which is a {data['resultType']}; expected one value for each "
                "set of labels: use series(), or a function such as rate(…[1m])"
            )
        return [Value(_labels(row["metric"]), float(row["value"][1])) for row in data["result"]]

    def series(
        self, expression: str, start_s: float, end_s: float, step_s: float = 1.0
    ) -> list[Series]:
        """Return what an expression was from one time to another, in seconds since 1970.

        Raises:
            PrometheusError: It does not answer, or refuses the expression; the message says why.
        """
        question = {
            "query": expression,
            "start": f"{start_s:.3f}",
            "end": f"{end_s:.3f}",
            "step": f"{step_s:.3f}",
        }
        rows = self._ask("query_range", question)["result"]
        points = [np.asarray(row["values"], dtype=np.float64) for row in rows]  # Shape: (n, 2)
        return [
            Series(_labels(row["metric"]), at[:, 0], at[:, 1])
            for row, at in zip(rows, points, strict=True)
        ]

    def alerts(self) -> list[Alert]:
        """Return the alerts that are pending or firing.

        Raises:
            PrometheusError: It does not answer.
        """
        return [
            Alert(
                alert["labels"]["alertname"],
                alert["state"],
                {k: v for k, v in alert["labels"].items() if k != "alertname"},
                alert["annotations"],
                float(alert["value"]),
            )
            for alert in self._ask("alerts", {})["alerts"]
        ]

    def _ask(self, what: str, question: Mapping[str, str]) -> dict[str, Any]:
        """Return the data of one answer of the API."""
        if not self.url:
            raise PrometheusError(
                "Prometheus is not started: use `with Prometheus(…) as prometheus:`"
            )
        address = f"http://{self.url}/api/v1/{what}?{urllib.parse.urlencode(question)}"
        try:
            with _open(address) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise PrometheusError(f"Prometheus refused {dict(question)}: {_words(said)}") from error
        except (OSError, ValueError) as error:
            raise PrometheusError(
                f"Prometheus at {self.url} does not answer ({error}); does its `with` block run?"
            ) from error


def _open(address: str) -> Any:
    """Open an address, never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(address, timeout=ANSWER_LIMIT_S)


def _labels(metric: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metric.items() if name != "__name__"}


def _words(answer: str) -> str:
    """Return the message in an error's JSON body, or what is there instead."""
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer.strip()[:300] or "no reason given"
