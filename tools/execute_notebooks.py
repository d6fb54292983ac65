"""Execute the committed notebooks in place, so that their outputs are those of a real run.

    python tools/execute_notebooks.py [01 02 …]

Runs in the `standard` profile on `runs/lab` unless the notebooks say otherwise. A notebook is
written back only when it ran to the end and its outputs hold nothing of this machine.
"""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from labkit.chain import PRACTICE, STAGES

ROOT = Path(__file__).resolve().parents[1]
CELL_TIMEOUT_S = 3_600
# What a reader on the web must not find: paths of a person's machine, warnings, progress bars.
UNWANTED = {
    "an absolute path": re.compile(r"(?<![\w.])/(root|home|tmp|work|Users|var)/"),
    "a warning": re.compile(r"Warning\b|WARNING"),
    "a progress bar": re.compile(r"\d+%\|"),
}


def flaws(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what is wrong with the outputs of an executed notebook; empty when nothing is."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None and cell.source.strip():
            found.append(f"{cell.id}: was not executed")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{cell.id}: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"{cell.id}: writes to stderr: {output.text.strip()[:80]}")
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            text += str(output.get("data", {}).get("text/html", ""))
            found += [f"{cell.id}: {what}" for what, rule in UNWANTED.items() if rule.search(text)]
    return found


def execute(path: Path) -> list[str]:
    """Execute one notebook and write it back; return its flaws, empty when it was written."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,  # execution times would differ in every commit
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    if not (found := flaws(notebook)):
        # One version in every file, whichever Python executed it.
        notebook.metadata["language_info"] = {"name": "python"}
        temporary = path.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(path)
    return found


def main() -> int:
    for name in ("LABKIT_PROFILE", "LABKIT_WORKSPACE"):
        os.environ.pop(name, None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    wanted = sys.argv[1:]
    for path in [ROOT / "notebooks" / f"{name}.ipynb" for name in (*STAGES, *PRACTICE)]:
        if wanted and path.stem[:2] not in wanted:
            continue
        begin = time.monotonic()
        if found := execute(path):
            print(f"{path.name}: not written:", *found, sep="\n  ")
            return 1
        print(f"{path.name}: executed in {time.monotonic() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
