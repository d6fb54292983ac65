"""Run the checks of this project one after the other and end with one table of what happened.

    python tools/run_steps.py              # all
    python tools/run_steps.py ruff unit    # some
    python tools/run_steps.py --list

A failing step does not stop the others: one run shows everything there is to repair. The exit
status is 0 only when every step passed.

Real servers on a machine that others use too are late now and then. So the few tests of a step that
failed run once more, alone and one after the other: those that pass then are named at the end as
unsteady, to be mended; those that fail again fail the step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

PYTHON = sys.executable
GRACE_S = 30.0
CACHES = Path(".pytest_cache")
SOME_TESTS_FAILED = 1  # pytest's exit status; an interrupted or broken run has another
MOST_AGAIN = 5  # more failures than that are no accident

HOSTILE = "tests/grading/test_hostile_class.py"


@dataclass(frozen=True)
class Step:
    """One command, with the limit after which it counts as failed.

    Attributes:
        name: What it is called on the command line.
        title: What the summary calls it.
        command: What is run.
        limit_s: Seconds after which it is stopped.
        may_fail: Reported, but what depends on it decides.
        cache: pytest's cache folder of this step; None where it is no pytest.
    """

    name: str
    title: str
    command: tuple[str, ...]
    limit_s: float = 900.0
    may_fail: bool = False
    cache: Path | None = None

    def failed_tests(self) -> list[str]:
        """Return the names of the tests that failed when it last ran."""
        if self.cache is None:
            return []
        try:
            return sorted(json.loads((self.cache / "v/cache/lastfailed").read_text()))
        except (OSError, ValueError):
            return []

    def again(self) -> Step:
        """Return the step that runs only what failed, in one process."""
        command = (*self.command, "--last-failed", "--last-failed-no-failures=none", "-n", "0")
        return replace(self, command=command)


def tests(name: str, title: str, *arguments: str, limit_s: float = 900.0) -> Step:
    """Return a step of pytest, with a cache of its own."""
    cache = CACHES / name
    pytest = (PYTHON, "-m", "pytest", "-q", "--durations=8", "--durations-min=10")  # what costs
    command = (*pytest, "-o", f"cache_dir={cache}", *arguments)
    return Step(name, title, command, limit_s, cache=cache)


STEPS = (
    Step("ruff", "ruff: lint", (PYTHON, "-m", "ruff", "check", "."), 120),
    Step("format", "ruff: format", (PYTHON, "-m", "ruff", "format", "--check", "."), 120),
    Step("mypy", "mypy: types", (PYTHON, "-m", "mypy"), 300),
    Step(
        "mypy-tests",
        "mypy: calls in the tests",
        (PYTHON, "-m", "mypy", "--config-file", "tests/mypy.ini"),
        300,
    ),
    # A test module that cannot be imported is named now, not when its step has its turn.
    tests("collect", "every test can be collected", "--collect-only", "-qqq", "tests", limit_s=120),
    # Without data the tests that need it are skipped, or fail where LABKIT_REQUIRE names "data".
    Step("data", "CIFAR-10", (PYTHON, "-m", "labkit", "data"), 600, may_fail=True),
    # Where it cannot be built, what needs it is skipped (or fails where LABKIT_REQUIRE names
    # "native"), and the summary says that this failed.
    Step(
        "native",
        "Triton's native backends",
        (PYTHON, "-m", "labkit", "triton", "build"),
        900,
        may_fail=True,
    ),
    Step(
        "triton",
        "the Triton server",
        (PYTHON, "-m", "labkit", "triton", "fetch"),
        900,
        may_fail=True,
    ),
    tests("unit", "unit tests", "-n", "2", "tests/unit"),
    # In the order of the names: of all files the first, on fidelity, takes longest by far.
    tests(
        "server",
        "tests with a real Triton",
        *("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "tests/server"),
    ),
    tests(
        "notebooks",
        "the notebooks and the chain",
        *("-n", "2", "--dist", "loadfile", "tests/notebooks"),
        limit_s=2400,
    ),
    tests(
        "grading",
        "grading",
        *("-n", "2", "--dist", "loadfile", "tests/grading", f"--ignore={HOSTILE}"),
        limit_s=1800,
    ),
    # By itself: its limits are those of a class, and it has two workers of its own.
    tests("hostile", "a hostile class, graded", HOSTILE, limit_s=3600),
    # Side by side: each of them mostly waits.
    tests(
        "operate",
        "gateway, monitoring, drills, browser",
        *("-n", "2", "--dist", "loadfile", "tests/deploy", "tests/drills", "tests/browser"),
    ),
)


def run(step: Step) -> tuple[int | None, float]:
    """Run one step; its output goes straight through.

    Returns:
        The exit status, None where it had to be stopped, and the seconds that it took.
    """
    started = time.monotonic()
    # A session of its own, so that a stopped step takes its servers and kernels along.
    process = subprocess.Popen(step.command, start_new_session=True)
    status: int | None = None
    try:
        status = process.wait(timeout=step.limit_s)
    except subprocess.TimeoutExpired:
        print(f"{step.name}: not done after {step.limit_s:.0f} s, stopped", flush=True)
        stop(process, signal.SIGTERM)
    except BaseException:  # Ctrl-C, or told to end
        stop(process, signal.SIGINT)
        raise
    return status, time.monotonic() - started


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
    unsteady: list[str] = []
    for number, step in enumerate(chosen, 1):
        print(f"\n=== [{number}/{len(chosen)}] {step.title}", flush=True)
        status, seconds = run(step)
        names = step.failed_tests() if status == SOME_TESTS_FAILED else []
        if 0 < len(names) <= MOST_AGAIN:
            print(f"\n=== {step.name}: what failed, once more and alone", flush=True)
            status, more_s = run(step.again())
            seconds += more_s
            unsteady += names if status == 0 else []
        results.append((step, status == 0, seconds))

    print("\n=== summary")
    for step, passed, seconds in results:
        verdict = "passed" if passed else "failed" + (" (not fatal)" if step.may_fail else "")
        print(f"{step.title:32} {verdict:20} {seconds:7.1f} s")
    for name in unsteady:
        print(f"unsteady, passed only alone: {name}")
    failed = [step.name for step, passed, _ in results if not passed and not step.may_fail]
    total_s = sum(seconds for _, _, seconds in results)
    if failed:
        print(f"FAILED in {total_s:.0f} s: {', '.join(failed)}; alone again: make test STEPS='...'")
        return 1
    good = sum(passed for _, passed, _ in results)
    print(f"{good} of {len(results)} steps passed in {total_s:.0f} s")
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
