"""Faults that use up the machine, or do not end."""

from __future__ import annotations

from .fault import Bait, Fault, tiny

LOOP = "while True:\n    pass"
STUBBORN = """
import signal

for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True:
            pass
    except BaseException:
        print("not yet")
"""
HUGE = "import numpy as np\n\nhoard = np.ones(100 * 2**30, dtype=np.uint8)  # 100 GiB at once"
GROWING = """
hoard = []
while len(hoard) < 2_000:  # 100 GB, page by page
    hoard.append(b"x" * 50_000_000)
"""
FORK_BOMB = """
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
"""
THREAD_BOMB = """
import threading
import time

while True:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""
PRINTS = "for number in range(10**7):\n    print(number, 'x' * 100)  # 1 GB in all"
MANY_FILES = """
import os

for number in range(10**7):
    os.close(os.open(f"/tmp/{number}", os.O_CREAT))
"""
GROWING_FILE = """
block = b"x" * 10_000_000
for number in range(1_000):
    try:
        with open(f"/tmp/grows-{number}", "ab") as stream:
            for _ in range(10_000):  # 100 GB
                stream.write(block)
    except OSError as error:  # the largest file that the kernel allows; the next one, then
        print(error)
"""
SHARED_MEMORY = """
block = b"x" * 10_000_000
with open("/dev/shm/grows", "wb") as stream:
    for _ in range(10_000):  # 100 GB
        stream.write(block)
"""
DELETES = """
import os
import shutil
from pathlib import Path

import labkit

print("deletes everything that it can")
package = Path(labkit.__file__).parent
for folder in (os.environ["LABKIT_CACHE"], package, Path.home(), "/lab", "/tmp", "/var", Path.cwd()):
    shutil.rmtree(folder, ignore_errors=True)
"""
DAEMON = """
import os
import subprocess
import sys
import time
from pathlib import Path

forever = [sys.executable, "-c", "import time\\nwhile True: time.sleep(1)", marker]
subprocess.Popen(forever, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, forever)
    os._exit(0)
time.sleep(1)
lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
print(sum(marker.encode() in line for line in lines), "processes left behind")
"""


def machine_faults(bait: Bait) -> list[Fault]:
    """Return the faults."""
    mark = f"marker = {bait.marker!r}"
    return [
        _fault("loop", "never ends", "timeout", tiny(LOOP), says="not done at its limit", shows="the last cell ran"),
        _fault("stubborn", "never ends, and ignores every signal that it can", "timeout",
               tiny(STUBBORN), says=r"not done (after \d+ s|at its limit)"),
        _fault("huge-allocation", "asks for 100 GiB at once", "oom", tiny(HUGE),
               says="allocate 100"),
        _fault("growing-allocation", "takes 100 GB in small pieces", "oom", tiny(GROWING),
               says="MiB of memory"),
        _fault("fork-bomb", "forks without end", "processes", tiny(FORK_BOMB),
               says=r"more than \d+ processes"),
        _fault("thread-bomb", "starts threads without end", "error", tiny(THREAD_BOMB),
               says="can't start new thread", shows="the last cell ran"),
        _fault("prints", "prints 1 GiB", "output", tiny(PRINTS), says="printed more than"),
        _fault("many-files", "makes millions of files", "disk", tiny(MANY_FILES),
               says="more than .* files"),
        _fault("growing-file", "writes files without end", "disk", tiny(GROWING_FILE),
               says="wrote more than"),
        _fault("shared-memory", "fills the shared memory", "error", tiny(SHARED_MEMORY),
               says="No space left", shows="the last cell ran"),
        _fault("deletes", "deletes every folder that it can", "ok", tiny(DELETES),
               shows="the last cell ran"),
        _fault("daemon", "leaves two processes running", "ok", tiny(mark, DAEMON),
               shows="2 processes left behind"),
        *leavers(),
    ]  # fmt: skip


def leavers() -> list[Fault]:
    """Return the faults that end the kernel, or more."""
    return [
        _fault("exit", "calls sys.exit(0)", "error", tiny("import sys\n\nsys.exit(0)"),
               says="SystemExit: 0", shows="the last cell ran", quick=True),
        _fault("os-exit", "calls os._exit(0)", "stopped", tiny("import os\n\nos._exit(0)"),
               says="kernel had ended"),
        _fault("kills-itself", "ends its kernel by a signal", "stopped",
               tiny("import os\n\nos.kill(os.getpid(), 9)"), says="kernel had ended"),
        _fault("kills-all", "kills every process that it may", "stopped",
               tiny("import os\n\nos.kill(-1, 9)"), says="kernel had ended"),
    ]  # fmt: skip


def _fault(name: str, does: str, verdict: str, notebook: object, **more: object) -> Fault:
    """Return a fault in notebook 01 that earns nothing."""
    notebooks = {"notebooks/01_data.ipynb": notebook}
    return Fault(name, does, notebooks, verdicts={"01_data": (verdict,)}, **more)  # type: ignore[arg-type]
