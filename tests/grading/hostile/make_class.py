"""Write the hostile class into a folder: `python -m tests.grading.hostile.make_class OUT`.

`OUT/small` holds the submissions for tight limits, `OUT/rubric.toml` the rubric with these limits,
and `OUT/whole` the submissions that solve the lab.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nbformat

from labkit.grading.rubric import RUBRIC

from .fault import Bait, Fault
from .faults import LIMITS, small_class, whole_class


def write_class(folder: Path, faults: Iterable[Fault]) -> None:
    """Write a folder or zip for each fault."""
    folder.mkdir(parents=True)
    for fault in faults:
        (write_zip if fault.zipped else write_folder)(folder, fault)


def write_folder(folder: Path, fault: Fault) -> None:
    """Write a submission as a folder."""
    root = folder / fault.name
    for name, content in contents(fault).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for name, target in fault.links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)


def write_zip(folder: Path, fault: Fault) -> None:
    """Write a submission as a zip, its names as they are."""
    with zipfile.ZipFile(folder / f"{fault.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents(fault).items():
            archive.writestr(zipfile.ZipInfo(name), content)


def contents(fault: Fault) -> dict[str, bytes]:
    """Return path → bytes of everything that is handed in."""
    notebooks = {
        name: notebook if isinstance(notebook, bytes) else nbformat.writes(notebook).encode()
        for name, notebook in fault.notebooks.items()
    }
    return {**notebooks, **fault.files}


def write_rubric(path: Path) -> None:
    """Write the lab's rubric with tight limits, and points also for who solves no exercise."""
    limits = "\n".join(f"{name} = {value}" for name, value in LIMITS.items())
    rubric = RUBRIC.read_text().replace("exercises_for_full = 0.5", "exercises_for_full = 0")
    path.write_text(f"{rubric}\n[limits]\n{limits}\n")


def main(out: str) -> int:
    """Write both classes."""
    root = Path(out).absolute()
    bait = Bait(home=root / "home", classroom=root / "small", grades=root / "grades",
                drop=root / "drop")  # fmt: skip
    for folder in ("small", "whole"):
        shutil.rmtree(root / folder, ignore_errors=True)
    write_class(root / "small", small_class(bait))
    write_class(root / "whole", whole_class(bait))
    write_rubric(root / "rubric.toml")
    print(f"labkit grade {root}/small --out {root}/grades --rubric {root}/rubric.toml")
    print(f"labkit grade {root}/whole --out {root}/grades-whole")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
