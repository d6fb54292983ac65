"""What a measured file starts in a session of its own does not see the next file."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.grading.inside import measure_files
from labkit.grading.limits import Limits
from labkit.grading.sandbox import Isolation, Program
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


HANDLERS = {"spawn": spawn, "left": left,
"""


def test_nothing_outlives_the_measurement_that_started_it(
    isolation: Isolation, tmp_path: Path
) -> None:
    text = Path(measure_files.__file__).read_text(encoding="utf-8")
    text = text.replace("    import_engines()\n", "").replace("\nHANDLERS = {\n", MORE)
    source = tmp_path / "program.py"
    source.write_text(text, encoding="utf-8")
    limits = Limits(wall_s=60, cpu_s=60)
    with open_workdir(tmp_path / "work", isolation) as workdir:
        workdir.hand_over()
        sandbox = workdir.sandbox("smoke", data=False)
        with Program(source, isolation, sandbox, limits, workdir.writable, workdir.log) as program:
            assert program.hear(30) == {"ready": True}
            program.tell(do="spawn", alone=True)
            assert program.hear(30) == {"result": 1}
            program.tell(do="left", alone=True)  # killed, and a moment later gone
            assert program.hear(30) == {"result": 0}
