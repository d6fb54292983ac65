"""ARCHITECTURE.md against the tree: it names every module, and nothing that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
UPWARD = ("labkit.grading", "labkit.operate")  # which the core does not know
MAY_KNOW = {f"labkit/{name}.py" for name in ("cli", "doctor")}
CORE = [
    path
    for path in sorted((ROOT / "labkit").rglob("*.py"))
    if not (name := str(path.relative_to(ROOT))).startswith(("labkit/grading/", "labkit/operate/"))
    and name not in MAY_KNOW
]


def named() -> set[str]:
    """Return the modules of the table, as paths without `.py`."""
    found, folders = set(), [""]
    for line in TEXT[TEXT.index("## Every module") :].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or not re.search("`", cells[2]):
            continue
        if words := re.findall(r"`([\w/]+)`", cells[0]):
            parent = words[0].rpartition("/")[0]
            folders = [words[0], *(f"{parent}/{word}" for word in words[1:])]
        found |= {
            f"{folder}/{name}" for folder in folders for name in re.findall(r"`(\w+)`", cells[2])
        }
    return found


def test_every_module_is_named_and_every_name_is_a_module() -> None:
    paths = (ROOT / "labkit").rglob("*.py")
    modules = {str(path.relative_to(ROOT).with_suffix("")) for path in paths}
    assert named() == {name for name in modules if not name.endswith("__init__")}


@pytest.mark.parametrize("path", CORE, ids=str)
def test_the_core_knows_nothing_of_what_stands_on_it(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not [found for found in imported if found.startswith(UPWARD)]


def test_every_path_that_it_names_is_there() -> None:
    for path in re.findall(r"`((?:labkit|tests|model_repository)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path


def rows() -> dict[str, int]:
    """Return module or folder → its row of the picture, 0 at the bottom."""
    lines = [line for line in TEXT.splitlines() if line.startswith(" │ ")][::-1]
    return {
        name.rstrip("/"): number
        for number, line in enumerate(lines)
        for name in line.split("│")[1].split()
    }


def test_a_module_imports_from_its_own_row_of_the_picture_and_from_below() -> None:
    height = rows()
    upward = []
    for path in CORE:
        name = path.relative_to(ROOT / "labkit").parts[0].removesuffix(".py")
        if name in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            package, _, below = (node.module or "").partition(".")
            if package == "labkit":
                found = [below.split(".")[0]] if below else [alias.name for alias in node.names]
                upward += [f"{name} → {one}" for one in found if height[one] > height[name]]
    assert upward == []
    assert height["cli"] == max(height.values()) > height["data"] == 0
