"""Run the checks of this project one after the other and end with one table of what happened.

    python tools/run_steps.py              # all
    python tools/run_steps.py ruff unit    # some
    python tools/run_steps.py --list

A failing step does not stop the others: one run shows everything there is to repair. The exit
status is 0 only when every step passed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType

PYTHON = sys.executable
GRACE_S = 30.0
PYTEST = (PYTHON, "-m", "pytest", "-q")


@dataclass(frozen=True)
class Step:
    """One command, with the limit after which it counts as failed."""

    name: str
    title: str
    command: tuple[str, ...]
    limit_s: float = 900.0
    may_fail: bool = False  # reported, but what depends on it decides


STEPS = (
    Step("ruff", "ruff: lint", (PYTHON, "-m", "ruff", "check", "."), 120),
    Step("format", "ruff: format", (PYTHON, "-m", "ruff", "format", "--check", "."), 120),
    Step("mypy", "mypy: types of the library", (PYTHON, "-m", "mypy"), 300),
    # Without data the tests that need it are skipped, or fail where LABKIT_REQUIRE names "data".
    Step("data", "CIFAR-10", (PYTHON, "-m", "labkit", "data"), 600, may_fail=True),
    Step("unit", "unit tests", (*PYTEST, "-n", "2", "tests/unit")),
    Step("server", "tests with a real Triton", (*PYTEST, "tests/server")),
    Step("notebooks", "the notebooks and the chain", (*PYTEST, "tests/notebooks"), 1200),
    Step("grading", "grading, with a hostile class", (*PYTEST, "tests/grading"), 2700),
    Step("deploy", "packaging, Docker, gateway, monitoring", (*PYTEST, "tests/deploy")),
    Step("drills", "failure drills, the short ones", (*PYTEST, "tests/drills")),
    Step("browser", "JupyterLab in a browser", (*PYTEST, "tests/browser"), 600),
)


def run(step: Step) -> tuple[bool, float]:
    """Run one step; its output goes straight through. Returns (passed, seconds)."""
    started = time.monotonic()
    # A session of its own, so that a stopped step takes its servers and kernels along.
    process = subprocess.Popen(step.command, start_new_session=True)
    try:
        passed = process.wait(timeout=step.limit_s) == 0
    except subprocess.TimeoutExpired:
        print(f"{step.name}: not done after {step.limit_s:.0f} s, stopped", flush=True)
        stop(process, signal.SIGTERM)
        passed = False
    except BaseException:  # Ctrl-C, or told to end
        stop(process, signal.SIGINT)
        raise
    return passed, time.monotonic() - started


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a step and everything it started."""
    os.killpg(process.pid, how)
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(arguments: list[str]) -> int:
    """Run the named steps, or all; print a table; return the exit status."""
    if arguments == ["--list"]:
        print("\n".join(f"{step.name:10} {step.title}" for step in STEPS))
        return 0
    known = {step.name: step for step in STEPS}
    if unknown := [name for name in arguments if name not in known]:
        print(f"unknown step {', '.join(unknown)}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in arguments] or list(STEPS)

    results: list[tuple[Step, bool, float]] = []
    for number, step in enumerate(chosen, 1):
        print(f"\n=== [{number}/{len(chosen)}] {step.title}", flush=True)
        results.append((step, *run(step)))

    print("\n=== summary")
    for step, passed, seconds in results:
        verdict = "passed" if passed else "failed" + (" (not fatal)" if step.may_fail else "")
        print(f"{step.title:32} {verdict:20} {seconds:7.1f} s")
    failed = [step.name for step, passed, _ in results if not passed and not step.may_fail]
    total_s = sum(seconds for _, _, seconds in results)
    if failed:
        print(f"FAILED in {total_s:.0f} s: {', '.join(failed)}; alone again: make test STEPS='...'")
        return 1
    passed = sum(passed for _, passed, _ in results)
    print(f"{passed} of {len(results)} steps passed in {total_s:.0f} s")
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """Leave as with Ctrl-C, so that the running step ends too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
