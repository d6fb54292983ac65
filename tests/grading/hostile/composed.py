"""Faults composed with each other around an honest part, which is all that any of it may earn."""

from __future__ import annotations

import random

from labkit.grading.results import VERDICTS

from .claims import IMPORTS, OPEN, SPLITS
from .curious import LINKS_ARTIFACTS
from .fault import Bait, Fault, exercises, tiny
from .machine import DAEMON, GROWING_FILE, LOOP, SHARED_MEMORY

HONEST = 8.0  # points of notebook 01, solved
FORGES_ANSWERS = """
from IPython import get_ipython

shell = get_ipython()
publish = shell.display_pub.publish


def forge(data, *rest, **named):
    import json

    if "application/vnd.labkit.answer" in data:
        data = {"application/vnd.labkit.answer": json.dumps({"value": 1, "failure": "x"})}
    return publish(data, *rest, **named)


shell.display_pub.publish = forge
"""
REPLACES_KERNEL = """
import os
import signal

for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        try:
            os.kill(int(name), signal.SIGSTOP)
        except OSError:
            pass
"""
PARTS = {
    "forges-answers": FORGES_ANSWERS,
    "stops-others": REPLACES_KERNEL,
    "links": "import os\n" + LINKS_ARTIFACTS.replace("import os", ""),
    "loops": LOOP,
    "fills": SHARED_MEMORY,
    "writes": GROWING_FILE,
    "stays": DAEMON,
    "claims": "open(lab.path('splits.json'), 'w').write('{}')",
}


def composed_faults(bait: Bait, count: int = 4, seed: int = 12) -> list[Fault]:
    """Return submissions of an honest notebook 01 with two faults each, before and behind it."""
    chance = random.Random(seed)
    faults = []
    for number in range(count):
        before, behind = chance.sample(sorted(PARTS), 2)
        given = f"marker = {bait.marker!r}\ntarget = {str(bait.reference / 'artifacts')!r}"
        cells = [IMPORTS, OPEN, given, PARTS[before]]
        cells += [*exercises("01_data"), SPLITS, PARTS[behind]]
        faults.append(
            Fault(
                f"composed-{number}-{before}-{behind}", f"{before} and {behind} around honest work",
                {"notebooks/01_data.ipynb": tiny(*cells)},
                verdicts={"01_data": VERDICTS}, points=(0, HONEST), status="",
            )
        )  # fmt: skip
    return faults
