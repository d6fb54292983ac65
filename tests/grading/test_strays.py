"""What a measured file starts, leaves or says in another's place is of no use to the next file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit.grading.confined_process import ConfinedProgram
from labkit.grading.inside import count_weights, measure_files
from labkit.grading.limits import Limits
from labkit.grading.measure import model_sandbox
from labkit.grading.measure.model_sandbox import ModelSandbox
from labkit.grading.sandbox import Isolation
from labkit.grading.workdir import open_workdir

pytestmark = pytest.mark.sandbox
MORE = """
def spawn(request):
    import subprocess
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 20  # a process has its command line a moment after its start
    while not count(request) and time.monotonic() < deadline:
        time.sleep(0.01)
    return count(request)


def count(request):
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return sum(b"time.sleep(60)" in line for line in lines)


def left(request):
    deadline = time.monotonic() + 5
    while count(request) and time.monotonic() < deadline:
        time.sleep(0.01)
    return count(request)


def take_over(request):
    Path("/dev/shm/left").write_text("for the next file")
    heard = os.read(0, 1)
    for descriptor in range(3, 60):
        with contextlib.suppress(OSError):
            os.write(descriptor, b'{"result": "forged"}\\n')
    os.kill(os.getppid(), signal.SIGCONT)
    return len(heard)


def fail(request):
    raise ValueError("the pixels are 1, 2, 3")


def shm(request):
    return [path.name for path in Path("/dev/shm").iterdir()]


def plant(request):
    failed = []
    for step in (lambda: os.rename("/lab/notebooks", "/lab/x"),
                 lambda: os.symlink(request["victim"], "/lab/notebooks")):
        try:
            step()
        except OSError as error:
            failed.append(error.strerror)
    for place in (os.environ["HOME"], os.environ["TMPDIR"]):
        os.symlink(request["victim"], f"{place}/link")
        Path(place, "left").write_text("for the next file")
    os.chmod(os.environ["HOME"], 0)
    return failed


def seen(request):
    return [str(p) for name in ("HOME", "TMPDIR") for p in Path(os.environ[name]).iterdir()]


HANDLERS = {"spawn": spawn, "left": left, "take_over": take_over, "fail": fail, "shm": shm,
            "plant": plant, "seen": seen,
"""


def test_what_is_measured_cannot_speak_for_the_next_file_nor_leave_it_anything(
    isolation: Isolation, tmp_path: Path
) -> None:
    with measuring(isolation, tmp_path) as program:
        program.tell(do="take_over", alone=True)
        assert program.hear(30) == {"error": "the process that ran it ended without an answer"}
        program.tell(do="shm", alone=True)
        assert program.hear(30) == {"result": []}


def test_what_is_left_is_cleared_away_and_nothing_behind_a_link(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_program(tmp_path)
    monkeypatch.setattr(model_sandbox, "inside_", SimpleNamespace(__file__=str(source)))
    victim, images = tmp_path / "victim", tmp_path / "images"
    for folder in (victim, images):
        folder.mkdir()
    (victim / "thesis").write_text("all of it")
    with ModelSandbox(isolation, "smoke", tmp_path / "work", images) as sandbox:
        sandbox.start()
        environment = sandbox._workdir.tmp / "environment"  # as one below /tmp is mounted there
        environment.mkdir()
        assert sandbox.ask(do="shm") == []
        sandbox.clear()
        assert environment.is_dir()
        environment.rmdir()
        said = sandbox.ask(do="plant", victim=str(victim))
        assert said[0] == "Read-only file system" and len(said) == 2
        sandbox.clear()
        seen = sandbox.ask(do="seen")  # beside an environment that is mounted there
        assert not [path for path in seen if path.endswith(("/left", "/link"))]
    assert (victim / "thesis").read_text() == "all of it"


def test_the_text_of_an_error_is_not_told(isolation: Isolation, tmp_path: Path) -> None:
    with measuring(isolation, tmp_path) as program:
        program.tell(do="fail", alone=True)
        assert program.hear(30) == {"error": "it raised ValueError when it was run"}


def test_an_error_of_a_class_of_its_own_says_nothing() -> None:
    told = measure_files.told(type("Pixels_1_2_3", (ValueError,), {})())
    assert told == "it raised an error of its own when it was run"
    assert measure_files.told(measure_files.NotLoaded("no such file")) == "no such file"


def write_program(folder: Path) -> Path:
    """Write the program that measures, with further requests."""
    text = Path(measure_files.__file__).read_text(encoding="utf-8")
    text = text.replace("    import_engines()\n", "").replace("\nHANDLERS = {\n", MORE)
    source = folder / "measure_files.py"
    source.write_text(text, encoding="utf-8")
    shutil.copy(count_weights.__file__, folder)
    return source


@contextmanager
def measuring(isolation: Isolation, folder: Path) -> Iterator[ConfinedProgram]:
    """The program that measures, with other requests, in a sandbox."""
    source = write_program(folder)
    limits = Limits(wall_s=60, cpu_s=60)
    with open_workdir(folder / "work", isolation) as workdir:
        workdir.hand_over()
        sandbox = workdir.sandbox("smoke", data=False)
        sources, log = [Path(count_weights.__file__), source], workdir.log
        with ConfinedProgram(sources, isolation, sandbox, limits, workdir.writable, log) as program:
            assert program.hear(30) == {"ready": True}
            yield program


def test_nothing_outlives_the_measurement_that_started_it(
    isolation: Isolation, tmp_path: Path
) -> None:
    with measuring(isolation, tmp_path) as program:
        program.tell(do="spawn", alone=True)
        assert program.hear(30) == {"result": 1}
        program.tell(do="left", alone=True)  # killed, and a moment later gone
        assert program.hear(30) == {"result": 0}
