"""A notebook in the sandbox: what is said of its cells, and that each costs itself only."""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from tiny import write_notebook

from labkit.chain import CellFinding
from labkit.grading.exercises import answers, measure_exercises
from labkit.grading.limits import Limits
from labkit.grading.notebook import prepare, read_notebook
from labkit.grading.results import ERROR, OK, OOM, OUTPUT, STOPPED, TIMEOUT
from labkit.grading.run_notebook import (
    Job,
    KernelSandbox,
    Ran,
    _findings,
    imports_of,
    run_notebook,
    verdict_of,
)
from labkit.grading.sandbox import Isolation
from labkit.grading.untrusted import MAX_CLASS

LIMITS = Limits(wall_s=60, cpu_s=60, memory_mib=2_000, output_mib=1)
Error = tuple[str, str]


# ---- judging


def judged(*cells: tuple[str, str, Error] | tuple[str, str]) -> tuple[str, str]:
    """Judge cells, each with its source, how it ended, and what it raised."""
    findings = [
        CellFinding(
            n, len(cells), cell[0], cell[1] not in ("lost", ""), *(cell[2:] or [("", "")])[0]
        )
        for n, cell in enumerate(cells, start=1)
    ]
    return verdict_of(findings, [cell[1] or None for cell in cells])


def test_every_cell_ran() -> None:
    assert judged(("a", "ok"), ("b", "ok")) == (OK, "")


def test_the_first_error_is_told_and_how_many_more() -> None:
    zero = ("ZeroDivisionError", "division by zero")
    name = ("NameError", "name 'x' is not defined")
    assert judged(("a", "ok"), ("1 / 0", "error", zero), ("x", "error", name)) == (
        ERROR,
        "code cell 2 of 3 (`1 / 0`): ZeroDivisionError: division by zero; 1 more raised as well",
    )
    assert judged(("a", "ok"), ("1 / 0", "error", zero))[1].endswith(": division by zero")


def test_cells_that_did_not_run_mean_that_the_kernel_ended() -> None:
    lost = ("NameError", "x")
    verdict, reason = judged(("x", "error", lost), ("b", "ok"), ("c", "lost"), ("d", ""))
    assert verdict == STOPPED
    assert reason.startswith("code cell 3 of 4 (`c`) did not run to its end, nor did 1 others: ")
    assert reason.endswith("; before that, code cell 1 of 4 (`x`): NameError: x")


def test_a_cell_that_was_interrupted_is_named() -> None:
    verdict, reason = judged(
        ("a", "ok"), ("loop()", "late", ("KeyboardInterrupt", "")), ("c", "ok")
    )
    assert verdict == TIMEOUT
    assert reason.startswith("code cell 2 of 3 (`loop()`) was not done at its limit")


def test_a_notebook_without_cells_is_no_success() -> None:
    assert judged()[0] == STOPPED


@pytest.mark.parametrize(
    "error",
    [
        ("MemoryError", ""),
        ("_ArrayMemoryError", "Unable to allocate 7.28 TiB for an array with shape (10,)"),
        ("RuntimeError", "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: x"),
        ("OSError", "[Errno 12] Cannot allocate memory"),
    ],
)
def test_no_memory_left_is_told_apart(error: Error) -> None:
    verdict, reason = judged(("x", "error", ("NameError", "x")), ("big", "error", error), ("c", ""))
    assert verdict == OOM
    assert reason.startswith(f"code cell 2 of 3 (`big`): {error[0]}")
    assert judged(("big", "error", ("RuntimeError", "allocate")))[0] == ERROR


def test_what_a_stranger_says_is_one_short_line() -> None:
    cell = new_code_cell("x" * 500 + "\x1b[31m")
    error = {"output_type": "error", "ename": "E\n" * 500, "evalue": "a\n\x00\u202eb" * 10_000}
    (found,) = _findings([cell], {0: {"ended": "error", "outputs": [error]}})
    verdict, reason = verdict_of([found], ["error"])
    assert verdict == ERROR
    assert reason.isprintable()
    assert len(reason) < 500
    assert len(found.ename) <= MAX_CLASS
    assert found.evalue.startswith("a ba ba b")


def test_imports_are_those_of_the_cells_that_are_python() -> None:
    cells = [
        nbformat.v4.new_markdown_cell("import this"),
        nbformat.v4.new_code_cell("import numpy as np\nfrom labkit import data\nx = 1"),
        nbformat.v4.new_code_cell("%pip install it\nimport torch"),
        nbformat.v4.new_code_cell("def f():\n    import onnx\nimport numpy as np"),
    ]
    found = imports_of(nbformat.v4.new_notebook(cells=cells))
    assert found == ["import numpy as np", "from labkit import data"]


# ---- the real kernel


SEEN = "import sys; print('colorsys' in sys.modules, {'colorsys', 'time'} & {*globals()})"


@pytest.fixture
def run(tmp_path: Path, isolation: Isolation) -> Callable[..., Ran]:
    def run_cells(
        *sources: str,
        files: tuple[str, ...] = (),
        limits: Limits = LIMITS,
        exercises: tuple[str, ...] = (),
        imports: tuple[str, ...] = (),
    ) -> Ran:
        path = write_notebook(tmp_path / "in", "01_data", *sources)
        notebook = prepare(read_notebook(path), new_notebook(), "smoke", "/run").notebook
        job = Job(
            "01_data", notebook, {}, None, tmp_path / "in", files, tmp_path / "in", "smoke", limits,
            tmp_path / "keep", exercises=exercises,
        )  # fmt: skip
        with KernelSandbox(
            isolation, "smoke", tmp_path / "work", tmp_path / "no-home", "stand-in", limits, imports
        ) as kernel:
            return run_notebook(job, kernel)

    return run_cells


def shown(folder: Path) -> list[str]:
    """What each cell of the notebook that was kept has shown, without the parameters' cell."""
    notebook = nbformat.read(folder / "keep" / "executed.ipynb", as_version=4)
    texts = []
    for cell in notebook.cells[1:]:
        outputs = [o.get("text") or o.get("ename") or "" for o in cell.outputs]
        texts.append("".join(outputs))
    return texts


@pytest.mark.sandbox
class TestInTheSandbox:
    def test_cells_go_on_after_errors_exits_and_loops(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        faults = ["1 / 0", "import sys; sys.exit(0)", "raise KeyboardInterrupt", "x = 5"]
        ran = run(*faults, "print(profile, workspace, x)")
        assert (ran.verdict, shown(tmp_path)[-1]) == (ERROR, "smoke /lab/run 5\n")
        assert "code cell 2 of 6 (`1 / 0`): ZeroDivisionError" in ran.reason
        assert ran.reason.endswith("2 more raised as well")

    def test_imports_come_before_the_cells_and_cost_the_notebook_nothing(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        burn = "import time\nwhile time.process_time() < 8: pass"
        ran = run(SEEN, imports=("import colorsys", burn))
        assert (ran.verdict, shown(tmp_path)[-1]) == (OK, "True set()\n")
        assert ran.outcome.cpu_s < 8

    def test_where_an_import_fails_the_kernel_is_one_without_any(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        ran = run(SEEN, imports=("import colorsys", "raise MemoryError"))
        assert (ran.verdict, shown(tmp_path)[-1]) == (OK, "False set()\n")

    def test_a_cell_that_hangs_costs_itself_only(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        tight = LIMITS.changed({"wall_s": 30})
        ran = run("a = 1", "while True: pass", "print(a)", limits=tight)
        assert (ran.verdict, shown(tmp_path)[-1]) == (TIMEOUT, "1\n")

    def test_however_many_cells_hang_the_others_run_and_exercises_are_called(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        hangs = ["while True: pass"] * 3
        solved = "def leaked(first, second): return len(set(first) & set(second))"
        tight = LIMITS.changed({"cpu_s": 15})
        ran = run("a = 1", *hangs, "print(a)", solved, limits=tight, exercises=("ex-01-leak",))
        assert (ran.verdict, shown(tmp_path)[-2]) == (TIMEOUT, "1\n")
        assert measure_exercises(0, ran.answers)["ex-01-leak"].value == 1

    @pytest.mark.parametrize(
        ("pause_s", "limits", "starved"),
        [(0, {"cpu_s": 6}, False), (0.05, {"wall_s": 10}, True), (60, {"wall_s": 10}, False)],
        ids=["spent", "starved", "slept"],
    )
    def test_a_cell_that_was_late_is_told_from_one_that_got_no_core(
        self, run: Callable[..., Ran], pause_s: float, limits: dict[str, float], starved: bool
    ) -> None:
        """Here somebody else's core is a pause, so that the cell computes a part of the time."""
        loop = f"import time\nwhile True:\n    sum(range(10**6))\n    time.sleep({pause_s})"
        ran = run(loop, limits=LIMITS.changed(limits))
        assert (ran.verdict, ran.starved) == (TIMEOUT, starved)

    def test_many_slow_cells_on_a_busy_machine_are_late_together(
        self, run: Callable[..., Ran]
    ) -> None:
        slow = "import time\nfor _ in range(20):\n    sum(range(10**6))\n    time.sleep(0.1)"
        ran = run(*[slow] * 8, limits=LIMITS.changed({"wall_s": 9}))
        assert (ran.verdict, ran.starved) == (TIMEOUT, True)

    def test_cells_run_again_for_an_exercise_under_the_notebooks_own_limits(
        self, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long they take: here longer than a call may."""
        monkeypatch.setattr(answers, "PATIENCE_S", 2.0)
        ends = "def leaked(*sets): __import__('os')._exit(0)"
        five = "def channel_statistics(pixels): return 5"
        exercises = ("ex-01-leak", "ex-01-statistics")
        ran = run("import time; time.sleep(4)", ends, five, exercises=exercises)
        assert ran.answers["ex-01-leak"]["answers"][0] == {"error": "KernelEnded"}
        assert ran.answers["ex-01-statistics"]["answers"][0] == {"value": 5}

    @pytest.mark.parametrize(
        "fault",
        [
            "exit()", "import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)",
            "import IPython; IPython.Application.instance().kernel.do_shutdown(True)",
            "while True:\n    try:\n        while True: pass\n    except BaseException: continue",
        ],
    )  # fmt: skip
    def test_cells_after_the_end_of_a_kernel_run_in_another(
        self, run: Callable[..., Ran], tmp_path: Path, fault: str
    ) -> None:
        ran = run("a = 1", fault, "print(a)", limits=LIMITS.changed({"wall_s": 45}))
        assert ran.verdict in (STOPPED, TIMEOUT)
        assert shown(tmp_path)[-1] == "1\n"

    def test_a_kernel_that_says_what_no_kernel_says_is_not_the_graders_fault(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        ran = run(
            "import time\nfrom ipykernel.kernelapp import IPKernelApp\n"
            "IPKernelApp.instance().iopub_thread.socket.send_multipart([b'junk'])\ntime.sleep(1)",
            "print(2)",
        )
        assert ran.verdict == STOPPED
        assert (tmp_path / "keep" / "executed.ipynb").is_file()

    def test_an_exercise_counts_whose_name_a_later_cell_uses_for_its_result(
        self, run: Callable[..., Ran]
    ) -> None:
        solved = "def leaked(first, second): return shared(first, second)"
        helper = "def shared(a, b): return len(set(a) & set(b))"
        ran = run(helper, solved, "leaked = leaked([1], [1])", exercises=("ex-01-leak",))
        assert measure_exercises(0, ran.answers)["ex-01-leak"].value == 1

    @pytest.mark.parametrize(
        "cells",
        [
            ["def shared(a, b): return len(set(a) & set(b))",
             "def leaked(a, b): return shared(a, b)", "shared = leaked([1], [1])"],
            ["import numpy", "def leaked(a, b): return len(numpy.intersect1d(a, b))", "%reset -f"],
            ["leaked = lambda a, b: len(set(a) & set(b))", "leaked = leaked([1], [1])"],
            ["from torch import *", "def leaked(a, b): return len(set(a) & set(b))"],
            ["def leaked(a, b): return len(set(a) & set(b))", "compile = exec = None"],
        ],
        ids=["helper", "reset", "lambda", "torch", "builtins"],
    )  # fmt: skip
    def test_an_exercise_counts_whatever_later_cells_do_with_names(
        self, run: Callable[..., Ran], cells: list[str]
    ) -> None:
        ran = run(*cells, exercises=("ex-01-leak",))
        assert measure_exercises(0, ran.answers)["ex-01-leak"].value == 1

    def test_what_can_be_called_counts_whatever_it_is(self, run: Callable[..., Ran]) -> None:
        stub = "import functools\ndef leaked(first, second): raise NotImplementedError"
        mine = (
            "def mine(a, b, c): return len(set(a) & set(b))\nleaked = functools.partial(mine, c=1)"
        )
        ran = run(stub, mine, exercises=("ex-01-leak",))
        assert measure_exercises(0, ran.answers)["ex-01-leak"].value == 1

    @pytest.mark.parametrize(
        "solved",
        [
            "%time\ndef leaked(a, b): return len(set(a) & set(b))\nimport time; time.sleep(7)",
            "def leaked(a, b): return (len(set(a) & set(b))\n    % 10**9)",
            "from functools import partial\ndef leaked(a, b): raise NotImplementedError\n"
            "def mine(c, a, b): return len(set(a) & set(b))\nleaked = partial(mine, 1)",
        ],
    )
    def test_only_definitions_of_a_cell_run_again(
        self, run: Callable[..., Ran], solved: str
    ) -> None:
        ran = run(solved, "leaked = 5", exercises=("ex-01-leak",))
        assert measure_exercises(0, ran.answers)["ex-01-leak"].value == 1

    @pytest.mark.parametrize("name", ["papermill", "ipykernel", "jupyter_client", "run_cells"])
    def test_a_package_beside_the_notebook_replaces_nothing_of_the_graders(
        self, run: Callable[..., Ran], tmp_path: Path, name: str
    ) -> None:
        package = tmp_path / "in" / name
        package.mkdir(parents=True)
        for file in ("__init__.py", "__main__.py"):
            (package / file).write_text("raise SystemExit(0)")
        (tmp_path / "in" / "ipykernel_launcher.py").write_text("raise SystemExit(0)")
        files = (f"{name}/__init__.py", f"{name}/__main__.py", "ipykernel_launcher.py")
        ran = run("print(6 * 7)", "raise ValueError", files=files)
        assert (ran.verdict, shown(tmp_path)[0]) == (ERROR, "42\n")

    def test_a_module_beside_the_notebook_is_found_by_its_cells(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "mine.py").write_text("WORD = 'found'")
        ran = run("import mine", "print(mine.WORD)", files=("mine.py",))
        assert (ran.verdict, shown(tmp_path)[-1]) == (OK, "found\n")

    def test_what_is_shown_without_end_is_stopped(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        ran = run("while True: print('x' * 10_000)")
        assert ran.verdict == OUTPUT
        assert (tmp_path / "keep" / "executed.ipynb").stat().st_size < 5 * 2**20

    def test_one_picture_that_is_too_large_stops_nothing(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        large = "from IPython.display import display, clear_output"
        large += "\ndisplay({'image/png': 'x' * 9 * 2**20}, raw=True)"
        ran = run(large, "print('on')", limits=LIMITS.changed({"output_mib": 4}))
        assert (ran.verdict, shown(tmp_path)[-1]) == (OK, "on\n")

    def test_what_was_cleared_or_replaced_takes_no_room(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        live = (
            "from IPython.display import display, clear_output\nfor _ in range(20):\n"
            "    clear_output(wait=True)\n    display({'text/plain': 'x' * 2**20}, raw=True)\n"
            "handle = display({'text/plain': ''}, raw=True, display_id=True)\n"
            "for _ in range(20):\n    handle.update({'text/plain': 'y' * 2**20}, raw=True)"
        )
        ran = run(live, "print('on')", limits=LIMITS.changed({"output_mib": 4}))
        assert (ran.verdict, shown(tmp_path)[-1]) == (OK, "on\n")

    def test_nobody_gets_more_room_by_clearing(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        again = (
            "from IPython.display import display, clear_output\nfor _ in range(60):\n"
            "    handle = display({'text/plain': 'y' * 2**20}, raw=True, display_id=True)\n"
            "    clear_output(); print('.')\n    handle.update({'text/plain': ''}, raw=True)\n"
            "for _ in range(60): display({'text/plain': 'x' * 2**19}, raw=True)"
        )
        run(again, limits=LIMITS.changed({"output_mib": 4}))
        assert (tmp_path / "keep" / "executed.ipynb").stat().st_size < 9 * 2**20

    def test_the_runner_cannot_be_read_or_written_to(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        tries = """
import os
parent = os.getppid()
for name in (f"/proc/{parent}/fd/0", f"/proc/{parent}/mem", f"/proc/{parent}/environ"):
    try:
        print(name, open(name, "rb").read(1))
    except OSError as error:
        print(type(error).__name__)
"""
        run(tries)
        assert shown(tmp_path)[-1].split() == ["PermissionError"] * 3

    def test_nothing_that_was_forged_in_the_folder_is_kept(
        self, run: Callable[..., Ran], tmp_path: Path
    ) -> None:
        forged = json.dumps({"cells": [], "nbformat": 4, "metadata": {}, "nbformat_minor": 5})
        write = "import pathlib\nfor p in pathlib.Path('/lab').rglob('*.ipynb'):"
        run(f"{write} p.write_text({forged!r})", "print('the last one')")
        assert shown(tmp_path)[-1] == "the last one\n"
