"""Faults that look, reach or write beyond their own folder."""

from __future__ import annotations

from .fault import PROJECT, Bait, Fault, tiny

READS = """
import importlib
import json
import os
import sys
from pathlib import Path

import labkit

found = {}


def look(name, path):
    try:
        path = Path(path)
        found[name] = sorted(os.listdir(path)) if path.is_dir() else path.read_text(errors="replace")
    except OSError as error:
        found[name] = type(error).__name__


package = Path(labkit.__file__).parent
project = package.parent
look("passwd", "/etc/passwd")
look("shadow", "/etc/shadow")
look("home", home)
look("notes", home + "/notes.txt")
look("root", "/root")
look("classroom", classroom)
look("other", classroom + "/control-a/private.txt")
look("grades", grades)
look("results", grades + "/results")
look("grader", package / "grading")
look("rubric", package / "grading" / "rubric.toml")
look("tests", project / "tests")
look("project", project)
for module in ("labkit.grading.rubric", "labkit.grading.exercises"):
    try:
        importlib.import_module(module)
        found[module] = "imported"
    except ImportError as error:
        found[module] = type(error).__name__
environments = [path.read_text(errors="replace") for path in mine("environ")]
found["environment"] = sorted(os.environ)
found["environments"] = environments
found["commands"] = [path.read_text(errors="replace") for path in mine("cmdline")]
found["user"] = os.getuid()
print("FOUND", json.dumps(found))
"""
MINE = """
import os
from pathlib import Path


def mine(name):
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        if os.access(path, os.R_OK):
            try:
                path.read_bytes()
            except OSError:
                continue
            yield path
"""
WRITES = """
import os
import sys
from pathlib import Path

import labkit

written = []
package = Path(labkit.__file__).parent
places = [package, package / "grading", sys.prefix, os.environ["LABKIT_CACHE"], "/etc", "/usr", "/",
          "/dev", "/home", "/var", drop, grades, classroom]
for place in map(Path, places):
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / "was-here.txt").write_text("written from a notebook")
        written.append(str(place))
    except OSError:
        continue
for file in (package / "profiles.py", package / "train.py"):
    try:
        file.open("a").close()
        written.append(str(file))
    except OSError:
        continue
print("WRITTEN", written)
"""
LINKS_RUN = """
import os

print("a link to", target)
os.rename(workspace, "/lab/away")
os.symlink(target, workspace)  # there, notebooks/01_data.ipynb is the solved one
"""
LINKS_ARTIFACTS = """
import os

os.rename(workspace + "/artifacts", "/lab/away")
os.symlink(target, workspace + "/artifacts")  # there, checkpoint.pt is a good one
print("a link to", target)
"""
CONNECTS = """
import socket

reached = []
for family, address in [
    (socket.AF_INET, ("127.0.0.1", port)),
    (socket.AF_INET, ("localhost", port)),
    (socket.AF_UNIX, f"\\0labkit-test-{port}"),
]:
    with socket.socket(family) as client:
        client.settimeout(2)
        try:
            client.connect(address)
            client.sendall(b"hello from a notebook")
            reached.append(address)
        except OSError as error:
            print(address, type(error).__name__)
print("REACHED", reached)
"""


def curious_faults(bait: Bait) -> list[Fault]:
    """Return the faults."""
    where = "\n".join(
        f"{name} = {str(getattr(bait, name))!r}" for name in ("home", "classroom", "grades", "drop")
    )
    return [
        _fault("reads", "reads whatever it can, and prints it", tiny(where, MINE, READS),
               "FOUND"),
        _fault("writes", "writes wherever it can", tiny(where, WRITES), r"WRITTEN \[('/tmp/[^']*'(, )?)*\]"),
        _fault("connects", "connects to the machine that grades it",
               tiny(f"port = {bait.port}", CONNECTS), r"REACHED \[\]"),
        Fault("links-out", "puts links to the grader's folders in the place of its own",
              {"notebooks/01_data.ipynb": tiny(f"target = {str(PROJECT)!r}", LINKS_RUN),
               "notebooks/02_train.ipynb":
                   tiny(f"target = {str(bait.reference / 'artifacts')!r}", LINKS_ARTIFACTS)},
              verdicts={"01_data": ("ok",), "02_train": ("ok",)},
              says="checkpoint.pt is no plain file", shows="a link to"),
    ]  # fmt: skip


def _fault(name: str, does: str, notebook: object, shows: str) -> Fault:
    return Fault(
        name,
        does,
        {"notebooks/01_data.ipynb": notebook},  # type: ignore[dict-item]
        verdicts={"01_data": ("ok",)},
        shows=shows,
    )
