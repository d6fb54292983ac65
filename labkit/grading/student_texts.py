"""The Makefile and the README of the student edition."""

import re
from typing import Any, Final

import jinja2
from nbformat import NotebookNode

from labkit.chain import PRACTICE, STAGES
from labkit.grading.limits import LIMITS
from labkit.grading.student_notebook import STUB, ReleaseError
from labkit.profiles import PROFILES

TARGETS: Final = (
    "help",
    "env",
    "data",
    "lab",
    "jupyter",
    "doctor",
    "drills",
    "soak",
    "clean",
    "clean-all",
)
# What `make help` puts first: for the project, then for students.
MATTERS: Final = ("make lab   and   make test", "make jupyter   and   make lab PROFILE=smoke")


def student_makefile(text: str) -> str:
    """Return the project's Makefile with the students' targets only.

    A line that names a target which is left out (`make test`) goes too.

    Raises:
        ReleaseError: a target that students need is missing.
    """
    rule = re.compile(r"([a-z][a-z-]*):(?!=)")
    found = {match[1] for line in text.splitlines() if (match := rule.match(line))}
    if missing := [target for target in TARGETS if target not in found]:
        raise ReleaseError(f"Makefile: got no target {', '.join(missing)}, which students need")
    left_out = sorted(found - set(TARGETS))
    mention = re.compile(rf"\bmake ({'|'.join(left_out)})\b" if left_out else r"(?!)")
    kept, keeping = [], True
    for line in text.replace(*MATTERS).splitlines():
        match = rule.match(line)
        if match or not line.startswith("\t"):
            keeping = not match or match[1] in TARGETS
        if line.startswith(".PHONY:"):
            kept.append(".PHONY: " + " ".join(TARGETS))
        elif keeping and not mention.search(line):
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).rstrip() + "\n"


def student_readme(notebooks: dict[str, NotebookNode]) -> str:
    """Return the README of the student edition.

    Args:
        notebooks: Stage → released notebook.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labkit.grading", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, from texts of the project itself
    )
    return environment.get_template("student_readme.md").render(
        notebooks=[_summary(stage, notebooks[stage]) for stage in STAGES],
        practice=[_summary(stage, notebooks[stage]) for stage in PRACTICE],
        limits=LIMITS["smoke"],
        smoke=PROFILES["smoke"],
    )


def _summary(stage: str, notebook: NotebookNode) -> dict[str, Any]:
    """Return what the README says about a notebook: title and table of its first cell, stubs."""
    lines = notebook.cells[0].source.splitlines()
    table = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    writes, takes = table[-1][1:3] if table and len(table[-1]) == 3 else ("", "")
    functions = STUB.findall("\n".join(cell.source for cell in notebook.cells))
    return {
        "stage": stage,
        "title": lines[0].split("·", 1)[-1].strip("# "),
        "functions": ", ".join(f"`{name}`" for name in functions),
        "writes": writes.strip(),
        "takes": takes.strip(),
    }
