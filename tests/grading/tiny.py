"""Submissions of a few cells, and a reference run that nothing had to be trained for."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np

from labkit.chain import PASSED, STAGES
from labkit.data import SPLIT_SIZES
from labkit.workspace import MADE_BY, OPTIONAL, Workspace, write_json


def write_notebook(folder: Path, stage: str, *cells: str) -> Path:
    """Write a notebook with a `parameters` cell and these cells."""
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell('profile = "standard"\nworkspace = "runs/lab"')
    parameters.metadata["tags"] = ["parameters"]
    notebook.cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{stage}.ipynb")
    return folder / f"{stage}.ipynb"


def reference_run(folder: Path) -> Path:
    """Make what looks like a complete run: right splits, and files that no model is in.

    Enough to grade notebook 01, and whatever needs no file of the reference.
    """
    workspace = Workspace.at(folder / "reference")
    order = np.random.default_rng(0).permutation(50_000)
    ends = np.cumsum(list(SPLIT_SIZES.values()))[:-1]
    parts = dict(zip(SPLIT_SIZES, np.split(order, ends), strict=True))
    indices = {name: sorted(map(int, part)) for name, part in parts.items()}
    for name, stage in MADE_BY.items():
        if name in OPTIONAL:
            continue
        if name == "splits.json":
            write_json(workspace.path(name), {"seed": 0, "indices": indices})
        else:
            workspace.path(name).write_text("{}")
        workspace.record(name, made_by=stage)
    stages = [{"stage": stage, "status": PASSED} for stage in STAGES]
    write_json(workspace.root / "run.json", {"profile": "smoke", "stages": stages})
    return workspace.root
