"""A real Prometheus on this machine: it scrapes replicas, keeps what they say, and raises alerts.

The rules are those of `docker/monitoring/alerts.yml`. Only what differs without Docker is made
here: where the replicas are, and how often they are asked.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prometheus_api import (
    Alert,
    PrometheusClient,
    PrometheusError,
    Series,
    Value,
)

from labkit.client import host_and_port
from labkit.operate.programs import Program, ProgramError, find_program
from labkit.server.ports import LOOPBACK, free_port
from labkit.workspace import project_root, write_json, write_text

__all__ = ["Alert", "Prometheus", "PrometheusClient", "PrometheusError", "Series", "Value"]

JOB = "triton"  # the alerts ask for this label, as docker/monitoring/prometheus.yml gives it
ATTEMPTS = 3  # a free port can be taken between the choice and the start
DISCOVERY_LIMIT_S = 30.0  # Prometheus acts on its targets every 5 s
DISCOVERY_S = 0.5  # how soon a change of the targets is seen at the latest


def rules_file() -> Path:
    """Return the project's recording rules and alerts."""
    return project_root() / "docker" / "monitoring" / "alerts.yml"


def with_hold(rules: str, hold_s: float) -> str:
    """Return rules in which every alert fires after another time than the one written there.

    Args:
        rules: Text of a rules file.
        hold_s: How long an alert's expression must hold before it fires; 0: at once.
    """
    return re.sub(r"(?m)^(\s+for:)\s*\S+$", rf"\1 {duration(hold_s)}", rules)


def duration(seconds: float) -> str:
    """Return seconds as Prometheus writes them, to the millisecond.

    Raises:
        PrometheusError: they are negative, or no number.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise PrometheusError(f"got {seconds} s, expected a duration of 0 s or more")
    return f"{round(seconds * 1000)}ms"


def configuration(folder: Path, scrape_interval_s: float) -> dict[str, Any]:
    """Describe a Prometheus that reads `rules.yml` and `targets.json` of a folder.

    The counterpart of `docker/monitoring/prometheus.yml`: the same job and the same rules, with a
    list of addresses in a file in the place of Docker's DNS.
    """
    interval = duration(scrape_interval_s)
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [
            {
                "job_name": JOB,
                "metrics_path": "/metrics",
                "file_sd_configs": [
                    {
                        "files": [str(folder / "targets.json")],
                        "refresh_interval": duration(DISCOVERY_S),
                    }
                ],
            }
        ],
    }


@dataclass
class Prometheus(PrometheusClient):
    """Prometheus on a free port of the loopback address, for the length of a `with` block.

    Attributes:
        targets: Metrics addresses of the replicas, `127.0.0.1:PORT`.
        folder: Private: configuration, samples and log; they stay when the block ends.
        scrape_interval_s: How often the replicas are asked, and the rules computed; at least 0.1.
        hold_s: In the place of each alert's `for`; None leaves the rules as they are.
        rules: Another rules file than the project's.
        url: `127.0.0.1:PORT` of its pages and its API, once it runs.
    """

    targets: Sequence[str]
    folder: Path
    scrape_interval_s: float = 1.0
    hold_s: float | None = None
    rules: Path | None = None
    url: str = field(default="", init=False)
    _program: Program | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            raise PrometheusError(
                f"got targets={self.targets!r}, expected a list: [{self.targets!r}]"
            )
        if not self.scrape_interval_s >= 0.1:
            raise PrometheusError(
                f"got scrape_interval_s={self.scrape_interval_s}, expected at least 0.1: more "
                "often would measure the asking"
            )
        self.folder = Path(self.folder).absolute()

    @property
    def running(self) -> bool:
        """Whether the program is alive."""
        return self._program is not None and self._program.running

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until it answers and has asked every target once, about 5 s.

        Raises:
            MissingProgram: This machine has no Prometheus; the message says how to get it.
            ProgramError: It runs already, ended at once, or was not ready in time.
        """
        if self.running:
            raise ProgramError(f"Prometheus already runs, at {self.url}: stop it first")
        binary = find_program("prometheus")
        self._write_files()
        for attempt in range(1, ATTEMPTS + 1):
            self.url = f"{LOOPBACK}:{free_port()}"
            self._program = self._describe(binary)
            try:
                self._program.start()
            except ProgramError as error:
                if attempt == ATTEMPTS or "address already in use" not in str(error):
                    raise
            else:
                break
        try:
            self._wait_for_targets()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it; what it collected stays in the folder."""
        program, self._program = self._program, None
        if program is not None:
            program.stop()

    def watch(self, targets: Sequence[str]) -> None:
        """Scrape other replicas, or the same ones at other addresses, within about 5 s.

        So long does Prometheus gather changes of its targets before it acts on them.
        """
        self.targets = list(targets)
        write_json(
            self.folder / "targets.json",
            [{"targets": [host_and_port(address) for address in self.targets]}],
        )

    def _wait_for_targets(self) -> None:
        """Wait for the first scrape of each target, up or down."""
        assert self._program is not None
        wanted = set(map(host_and_port, self.targets))
        self._program.wait_for(
            lambda: wanted <= {row.labels["instance"] for row in self.query("up")},
            "asking its targets",
            DISCOVERY_LIMIT_S,
        )

    def _write_files(self) -> None:
        rules = (self.rules or rules_file()).read_text(encoding="utf-8")
        if self.hold_s is not None:
            rules = with_hold(rules, self.hold_s)
        write_text(self.folder / "rules.yml", rules)
        self.watch(self.targets)
        # JSON is YAML too.
        write_json(
            self.folder / "prometheus.yml", configuration(self.folder, self.scrape_interval_s)
        )

    def _describe(self, binary: Path) -> Program:
        return Program(
            name="prometheus",
            command=[
                binary,
                f"--config.file={self.folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.folder / 'samples'}",
                f"--web.listen-address={self.url}",
                "--log.level=warn",
            ],
            log_path=self.folder / "prometheus.log",
            ready=self.ready,
            # One core at a time: the load and the servers need the others.
            environment={"GOMAXPROCS": "1"},
        )
