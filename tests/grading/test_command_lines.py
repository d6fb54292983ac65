"""A small class as the command grades it: what `ps` shows meanwhile, and the points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import no_secret_shown
from tiny import write_notebook

from labkit.grading.results import GRADED, read_result

LIMIT_S = 240

# Says what 06 has found out about the network behind the pipeline: the grader serves it and asks.
PIPELINE = """
from labkit.workspace import Workspace
lab = Workspace.open(workspace)
known = lab.load_json("query.json")["variants"]["cifar10_onnx"]
row = {"accuracy": known["accuracy"], "n": known["n"]}
requests = {"tensor": {"bytes": 13_000}, "thumbnail": {"bytes": 4_000}}
evidence = {"variants": {"cifar10_pipeline": row}, "requests": requests}
lab.save_json("pipeline.json", evidence, made_by="10_pipeline")
"""


@pytest.mark.sandbox
@pytest.mark.parametrize("runtime", ["stand-in", pytest.param("native", marks=pytest.mark.native)])
def test_no_process_of_the_grader_shows_a_variable_and_each_runtime_gives_the_same_points(
    runtime: str, reference: Path, tmp_path: Path
) -> None:
    write_notebook(tmp_path / "class" / "ada", "10_pipeline", PIPELINE)
    command = [sys.executable, "-m", "labkit", "grade", str(tmp_path / "class")]
    command += ["--out", str(tmp_path / "grades"), "--reference", str(reference)]
    command += ["--runtime", runtime]
    parts = ["labkit.grading.classroom", "bwrap", "ipykernel", "tritonserver"]
    with no_secret_shown(*parts) as seen:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    stubs = any("triton_python_backend_stub" in line for line in seen)
    assert stubs == (runtime == "stand-in")
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_result(tmp_path / "grades" / "results" / "ada.json")
    answers = result.measurements["10.answers"]
    assert (result.status, answers.value) == (GRADED, 1.0), answers
