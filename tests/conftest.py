"""Which tests may be skipped: where CI names a need in LABKIT_REQUIRE, its absence is a failure.

A test says what it needs with a marker (``triton``, ``native``, ``data``, ``browser``, ``compose``,
``docker``, ``gpu``, ``sandbox``, ``nginx``, ``prometheus``); the folder adds its own.
``LABKIT_REQUIRE=triton,data`` turns a skip into a failure when everything the test needs is
promised there, so that CI cannot be green because nothing ran.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

# Before the first import of torch: in several processes on few cores, threads that spin until their
# turn comes take most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NEEDS = frozenset(
    {
        "triton",
        "native",
        "data",
        "browser",
        "compose",
        "docker",
        "gpu",
        "sandbox",
        "nginx",
        "prometheus",
    }
)
FOLDER_NEEDS = {
    "server": frozenset({"triton"}),
    "notebooks": frozenset({"triton", "data"}),
    "browser": frozenset({"browser"}),
}


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests that
    # send it need the usual behaviour wherever they run.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "native: needs what `labkit triton build` makes")
    config.addinivalue_line("markers", "compose: needs docker-compose, no engine")
    config.addinivalue_line("markers", "docker: needs a running container engine")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    config.addinivalue_line("markers", "sandbox: confines programs with bubblewrap")
    config.addinivalue_line("markers", "nginx: starts a real nginx")
    config.addinivalue_line("markers", "prometheus: runs a real Prometheus, or its promtool")


def promised() -> frozenset[str]:
    """What this machine must have, from LABKIT_REQUIRE."""
    names = {name.strip() for name in os.environ.get("LABKIT_REQUIRE", "").split(",")} - {""}
    if unknown := names - NEEDS:
        raise pytest.UsageError(
            f"LABKIT_REQUIRE names {', '.join(sorted(unknown))}; known: {', '.join(sorted(NEEDS))}"
        )
    return frozenset(names)


def folder_needs(path: Path) -> frozenset[str]:
    return next((FOLDER_NEEDS[part] for part in path.parts if part in FOLDER_NEEDS), frozenset())


def make_failure(report: pytest.TestReport | pytest.CollectReport, needs: frozenset[str]) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"LABKIT_REQUIRE promises {', '.join(sorted(needs))}, yet: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marks = NEEDS & {mark.name for mark in item.iter_markers()}
    needs = marks | folder_needs(item.path.relative_to(item.config.rootpath))
    if report.skipped and not hasattr(report, "wasxfail") and needs and needs <= promised():
        make_failure(report, needs)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that skips itself is judged by its folder."""
    report = yield
    needs = folder_needs(collector.path.relative_to(collector.config.rootpath))
    if report.skipped and needs and needs <= promised():
        make_failure(report, needs)
    return report
