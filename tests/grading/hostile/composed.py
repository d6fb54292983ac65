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
PADS_INT8 = """
import numpy as np
import onnx
from onnx import helper, numpy_helper

weight = numpy_helper.from_array(np.ones((3_072, 10), np.float32), "weight")
zeros = numpy_helper.from_array(np.zeros(10**6, np.int8), "zeros")
graph = helper.make_graph(
    [
        helper.make_node("Cast", ["zeros"], ["wide"], to=1),
        helper.make_node("ReduceSum", ["wide"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["weight", "nothing"], ["added"]),
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "added"], ["logits"]),
    ],
    "padded",
    [helper.make_tensor_value_info("input", 1, ["batch", 3, 32, 32])],
    [helper.make_tensor_value_info("logits", 1, ["batch", 10])],
    [weight, zeros],
)
for name in ("model.onnx", "model_int8.onnx", "model_int8.pt"):
    onnx.save(helper.make_model(graph), lab.path(name))
"""
FORGES_TUNING = """
import json

points = [{"latency_ms": {"n": 99, "p95": 0.777}, "images_per_s": {"median": 7.77e5}}]
forged = {"recommendation": {"model": "cifar10_onnx"}, "grid": dict.fromkeys("abcd", points)}
open(lab.path("tune.json"), "w").write(json.dumps(forged))
"""
NAMED_AS_THE_RUNNER = """
import pathlib

for name in ("run_cells", "ipykernel", "jupyter_client", "labkit"):
    pathlib.Path(name).mkdir(exist_ok=True)
    for file in ("__init__.py", "__main__.py"):
        pathlib.Path(name, file).write_text("raise SystemExit(0)")
"""
PARTS = {
    "forges-answers": FORGES_ANSWERS,
    "stops-others": REPLACES_KERNEL,
    "links": "import os\n" + LINKS_ARTIFACTS.replace("import os", ""),
    "loops": LOOP,
    "fills": SHARED_MEMORY,
    "writes": GROWING_FILE,
    "stays": DAEMON,
    "pads-int8": PADS_INT8,
    "forges-tuning": FORGES_TUNING,
    "named-as-the-runner": NAMED_AS_THE_RUNNER,
    "claims": "open(lab.path('splits.json'), 'w').write('{}')",
}


def composed_faults(bait: Bait, seed: int = 12) -> list[Fault]:
    """Return submissions of an honest notebook 01 with two faults each, before and behind it.

    Each part is in one of them at least.
    """
    parts = sorted(PARTS)
    random.Random(seed).shuffle(parts)
    faults = []
    for number in range((len(parts) + 1) // 2):
        before, behind = parts[2 * number], parts[(2 * number + 1) % len(parts)]
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
