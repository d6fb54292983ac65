"""A server that loads models when it is asked to, and what it says then."""

import http.client
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from labkit.server import TritonServer
from labkit.server.refused import refused_here

MODES = ["--model-control-mode=explicit", "--log-verbose=0"]


class ExplicitServer(TritonServer):
    """Starts with no model loaded; the repository may be filled later."""

    def _wait_until_ready(self, models: list[str]) -> None:
        super()._wait_until_ready([])

    def _refuse_foreign_code(self, folders: list[Path]) -> None:
        """The tests' own models."""

    def call(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Return status, body and headers of a POST where there is a body, else of a GET."""
        connection = http.client.HTTPConnection(self.http, timeout=120)
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def load(self, model: str) -> tuple[int, str]:
        """Load a model; return the status, and the message without what every message has."""
        status, body, _ = self.call(f"/v2/repository/models/{model}/load", b"{}")
        message = json.loads(body)["error"] if status != 200 else ""
        message = re.sub(
            rf"^load failed for model '{model}': (version \d+ is at .*?: )?", "", message
        )
        return status, message.strip().rstrip(";").strip()

    def config(self, model: str) -> dict[str, Any]:
        """Return a loaded model's configuration."""
        return json.loads(self.call(f"/v2/models/{model}/config")[1])


def server_of_accepted(
    repository: Path, names: Collection[str], runtime: str
) -> tuple[ExplicitServer, dict[str, Any]]:
    """Return a server of those models that are not refused before it starts, and the others.

    Its log is beside the repository.
    """
    refused = refused_here([repository / name for name in names], runtime)
    server = ExplicitServer(
        repository,
        models=[name for name in names if name not in refused],
        extra_args=MODES,
        runtime=runtime,
        log_path=repository.with_name(f"{repository.name}-{runtime}.log"),
    )
    return server, refused
