"""Faults in how a submission is handed in, and notebooks that a grader has to repair."""

from __future__ import annotations

import json

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from .claims import right_splits
from .fault import LAST, Bait, Fault, numbered, tiny

SCRIPT = "<script>alert(7)</script><img src=x onerror=alert(7)>"
SHOWS_HTML = """
from IPython.display import HTML, Markdown, display

display(HTML(script), Markdown(script))
print(script)
"""
FOLLOWS = """
from pathlib import Path

for name in ("notes.txt", "more", "../../../../etc/passwd"):
    print(name, "READ" if Path(name).exists() else "absent")
"""


def package_faults(bait: Bait) -> list[Fault]:
    """Return the faults."""
    first = "notebooks/01_data.ipynb"
    fine, other = tiny("print('one')"), tiny("print('another')")
    ran, right = {"01_data": ("ok",)}, right_splits()
    private = {"private.txt": bait.secret.encode()}
    return [
        Fault("control-a", "is right, in one notebook", {first: right}, private,
              verdicts=ran, points=(8, 8)),
        Fault("control-z", "is right, in one notebook", {first: right}, verdicts=ran, points=(8, 8)),
        Fault("invalid-json", "hands in a notebook that is no JSON", {first: b'{"cells": [,]}'},
              verdicts={"01_data": ("invalid",)}, says="not JSON", quick=True),
        Fault("nothing", "hands in no notebook", files={"README.md": b"I did it all."},
              status="rejected", says="none of the notebooks", quick=True),
        Fault("renamed", "calls its notebook otherwise", {"notebooks/1 - data (final).ipynb": right},
              verdicts=ran, points=(8, 8), says="found as .*hand it in as 01_data.ipynb"),
        Fault("ambiguous", "hands in two different first notebooks",
              {first: fine, "01_data.ipynb": other}, verdicts={"01_data": ("ambiguous",)},
              says="2 notebooks that could be", quick=True),
        Fault("no-parameters", "has removed the parameters' cell", {first: without_parameters()},
              verdicts=ran, says="missing and was added", shows="smoke /lab/run", quick=True),
        Fault("other-kernel", "names another kernel", {first: with_kernel("julia-1.9")},
              verdicts=ran, says="not with julia-1.9", shows="the last cell ran", quick=True),
        Fault("symlink", "links to files outside its folder",
              {"notebooks/08_report.ipynb": tiny(FOLLOWS)},
              links={first: "../../control-a/notebooks/01_data.ipynb",
                     "notebooks/notes.txt": f"{bait.home}/notes.txt",
                     "notebooks/more": str(bait.home)},
              verdicts={"08_report": ("ok",)}, says="a link",
              shows=r"notes.txt absent[\s\S]*more absent"),
        Fault("zip-slip", "has paths with .. in its zip", {first: right},
              {"../../escaped.txt": b"out", "/tmp/labkit-escaped.txt": b"out"}, zipped=True,
              verdicts=ran, points=(8, 8), says=r"a path with `\.\.`"),
        Fault(f"{SCRIPT.replace('/', '')} name", "brings HTML into everything that is shown",
              {first: with_scripts()}, verdicts={"01_data": ("error",)}, says="script"),
    ]  # fmt: skip


def without_parameters() -> nbformat.NotebookNode:
    """Return a notebook that uses both parameters and sets none."""
    return numbered([new_code_cell("print(profile, workspace)"), new_code_cell(LAST)])


def with_kernel(name: str) -> nbformat.NotebookNode:
    """Return a notebook that names another kernel."""
    notebook = tiny()
    notebook.metadata["kernelspec"] = {"name": name, "display_name": name, "language": name}
    return notebook


def with_scripts() -> nbformat.NotebookNode:
    """Return a notebook with HTML in text, source, output, error and metadata."""
    raises = f"raise type('Error', (Exception,), {{}})({json.dumps(SCRIPT)})"
    notebook = tiny(new_markdown_cell(SCRIPT), f"script = {SCRIPT!r}", SHOWS_HTML, raises)
    notebook.metadata["kernelspec"] = {"name": SCRIPT, "display_name": SCRIPT, "language": SCRIPT}
    return notebook
