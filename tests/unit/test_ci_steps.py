"""CI cannot be green by skipping, and `make test` cannot be green by not running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

MARKED = """
import pytest

@pytest.mark.triton
def test_server():
    pytest.skip("no tritonserver")

@pytest.mark.triton
@pytest.mark.gpu
def test_server_with_gpu():
    pytest.skip("no GPU")

def test_ordinary():
    pytest.skip("not today")

@pytest.mark.triton
@pytest.mark.xfail(reason="known")
def test_expected():
    raise ValueError
"""

WHOLE_MODULE = "import pytest\npytest.skip('no tritonserver', allow_module_level=True)\n"


def run_pytest(folder: Path, require: str | None) -> subprocess.CompletedProcess[str]:
    """Run the tests below `folder` under a copy of this project's conftest.py."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    marks = "markers = ['triton', 'data', 'browser']"
    (folder / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{marks}\n")
    environment = {name: value for name, value in os.environ.items() if name != "LABKIT_REQUIRE"}
    if require is not None:
        environment["LABKIT_REQUIRE"] = require
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_without_a_promise_a_skip_is_a_skip(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    done = run_pytest(tmp_path, None)
    assert done.returncode == 0, done.stdout
    assert "3 skipped" in done.stdout


def test_a_promised_need_turns_its_skips_into_failures(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    done = run_pytest(tmp_path, "triton,data")
    assert done.returncode == 1
    assert "1 failed, 2 skipped, 1 xfailed" in done.stdout
    assert "LABKIT_REQUIRE promises triton, yet: Skipped: no tritonserver" in done.stdout


def test_a_module_that_skips_itself_is_judged_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "test_all.py").write_text(WHOLE_MODULE)
    assert run_pytest(tmp_path, "data").returncode == 5  # nothing collected, nothing promised
    done = run_pytest(tmp_path, "triton")
    assert done.returncode not in (0, 5)
    assert "LABKIT_REQUIRE promises triton" in done.stdout


def test_an_unknown_promise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    done = run_pytest(tmp_path, "trition")
    assert done.returncode != 0
    assert "trition" in done.stdout + done.stderr


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import run_steps

    def step(name: str, code: str, limit_s: float = 30, may_fail: bool = False) -> object:
        command = (sys.executable, "-c", code)
        return run_steps.Step(name, f"the {name} step", command, limit_s, may_fail)

    monkeypatch.setattr(
        run_steps,
        "STEPS",
        (
            step("good", "print('fine')"),
            step("bad", "raise SystemExit(1)"),
            step("slow", "import time; time.sleep(60)", limit_s=0.5),
            step("optional", "raise SystemExit(1)", may_fail=True),
        ),
    )
    return run_steps


def test_all_steps_run_and_each_failure_is_named(
    steps: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps.main([]) == 1  # type: ignore[attr-defined]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("FAILED in")
    assert "bad, slow;" in last


def test_steps_that_pass_end_with_one_line(
    steps: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps.main(["good", "optional"]) == 0  # type: ignore[attr-defined]
    output = capsys.readouterr().out
    assert "1 of 2 steps passed" in output.splitlines()[-1]
    assert "failed (not fatal)" in output


def test_native_backends_that_could_not_be_built_are_no_passed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import run_steps

    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run_steps.main(["native"]) == 0
    output = capsys.readouterr().out
    assert "failed (not fatal)" in output and "0 of 1 steps passed" in output


def test_what_a_newer_python_serves_with_is_built_before_it_is_asked_for() -> None:
    """Without a stub in the wheel, `triton fetch` refuses until one is built."""
    done = subprocess.run(
        ["make", "--dry-run", "server"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    commands = [line for line in done.stdout.splitlines() if "labkit triton" in line]
    assert [line.split("labkit triton ")[1] for line in commands] == [
        "build --if-possible",
        "fetch",
    ]


UNSTEADY = """
import os
from pathlib import Path

def test_steady():
    with Path("ran").open("a") as file:
        file.write("steady ")

def test_late():
    first = not Path("late").exists()
    Path("late").touch()
    assert not first

def test_wrong():
    assert not WRONG
"""


@pytest.mark.parametrize("wrong", [False, True])
def test_what_failed_runs_once_more_alone_and_is_named(
    wrong: bool, steps: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "test_some.py").write_text(UNSTEADY.replace("WRONG", str(wrong)))
    monkeypatch.chdir(tmp_path)
    step = steps.tests("some", "some tests", "-n", "2", "test_some.py")  # type: ignore[attr-defined]
    monkeypatch.setattr(steps, "STEPS", (step,))
    assert steps.main([]) == int(wrong)  # type: ignore[attr-defined]
    assert (tmp_path / "ran").read_text() == "steady "  # what passed did not run again
    named = "unsteady, passed only alone: test_some.py::test_late" in capfd.readouterr().out
    assert named is not wrong


def test_many_failures_are_no_accident(
    steps: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    failing = "import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test(n): assert 0\n"
    (tmp_path / "test_some.py").write_text(failing)
    monkeypatch.chdir(tmp_path)
    step = steps.tests("some", "some tests", "test_some.py")  # type: ignore[attr-defined]
    monkeypatch.setattr(steps, "STEPS", (step,))
    assert steps.main([]) == 1  # type: ignore[attr-defined]
    assert "once more" not in capfd.readouterr().out


def test_an_unknown_step_is_refused(steps: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert steps.main(["unti"]) == 2  # type: ignore[attr-defined]
    assert "good, bad, slow, optional" in capsys.readouterr().err


def test_ci_runs_make_test_and_says_what_must_not_be_skipped() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "make test" in text
    assert "LABKIT_REQUIRE:-triton,data,nginx" in text
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_tests_also_where_the_package_index_is_away(tmp_path: Path) -> None:
    programs = {
        "bin/make": 'echo "$*" >> made',
        "bin/id": "echo 1000",  # not root: nothing is installed
        ".venv/bin/python": "exit 7",  # uv, which asks the index
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (tmp_path / "made").read_text().split("\n")[:2] == ["env", "test"]
    assert done.returncode == 7 and "CI FAILED" in done.stdout


def test_a_run_that_is_told_to_end_takes_its_step_along(tmp_path: Path) -> None:
    """SIGTERM, as a cancelled CI sends it: a step has a session of its own and would live on."""
    sleeper = f"import time, os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    program = (
        "import sys, runpy; sys.argv = ['run_steps.py', 'sleep']\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\nimport run_steps\n"
        f"step = run_steps.Step('sleep', 'sleeps', (sys.executable, '-c', {sleeper!r} + "
        "'; time.sleep(60)'), 60)\n"
        "import signal\n"
        "signal.signal(signal.SIGTERM, run_steps._end)\n"
        "run_steps.run(step)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    process.terminate()
    process.wait(20)
    child.wait(20)
