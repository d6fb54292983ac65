"""Hostile parts composed with each other around honest work, which is all that any of it may earn.

A seed draws the honest work, which is partial: of each notebook one exercise, and some of what it
is to make; and it deals the parts to submissions. One more submission hands in the honest work
alone: what it earns, graded in the same class, is what each of the others may earn at most, item
by item. Another seed: LABKIT_HOSTILE_SEED=7 python -m pytest … -k composed
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from dataclasses import dataclass

from nbformat import NotebookNode

from labkit.grading.exercises.catalogue import CATALOGUE
from labkit.grading.results import OK, VERDICTS
from labkit.grading.student_notebook import with_stubs

from .claims import CLAIM, LISTENS, OPEN, SPLITS, TUNED, WRITES_CLAIMS, hands_in, mine, tuned
from .curious import LINKS_ARTIFACTS
from .fault import PROJECT, Bait, Fault, exercises, tiny
from .machine import DAEMON, DELETES, GROWING_FILE, PRINTS, SHARED_MEMORY

SEED = int(os.environ.get("LABKIT_HOSTILE_SEED", "12"))
COUNT = 3  # submissions with hostile parts
NOT_SOLVED = {"ex-07-open-loop"}  # its right answer is one of time, which a busy machine takes away
NOT_SOLVED |= {"ex-03-fold", "ex-03-batch"}  # which import torch, for seconds
IMPORTS = """
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from labkit.data import load_cifar10
"""
PER_MS = """
tune = json.loads(Path("mine/tune.json").read_text())
for points in tune["grid"].values():
    for point in points:
        point["images_per_s"]["median"] /= 1_000  # a mistake: images per ms
lab.save_json("tune.json", tune, made_by="07_tune")
"""
# Notebook → what is made in it, beside one of its exercises. Each item that it leaves without its
# points is one that a part below tries to get.
WORK = {
    "01_data": [SPLITS],
    "02_train": hands_in("02_train", "checkpoint.pt", "network.py"),
    "03_export": hands_in("03_export", "model.onnx"),
    "04_quantize": hands_in("04_quantize", "model_int8.xml", "model_int8.bin"),
    "07_tune": [PER_MS, TUNED],
}
MINE = ("checkpoint.pt", "network.py", "model.onnx", "export.json", "model_int8.xml")
MINE += ("model_int8.bin", "quantize.json", "tune.json")

FORGES_ANSWERS = """
from IPython import get_ipython

shell = get_ipython()
publish = shell.display_pub.publish


def forge(data, *rest, **named):
    answer = data.get("application/vnd.labkit.answer")
    if answer and "value" not in json.loads(answer):
        data = {"application/vnd.labkit.answer": json.dumps({"value": 0, "failure": "x"})}
    return publish(data, *rest, **named)


shell.display_pub.publish = forge
"""
EQUALS_EVERYTHING = """
class Same(int):
    __eq__ = __le__ = __ge__ = __contains__ = lambda self, other: True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __sub__ = __rsub__ = __abs__ = lambda self, *other: self
    __hash__ = int.__hash__


np.allclose = np.array_equal = np.isclose = lambda *_, **__: True
globals()[unsolved] = lambda *_: Same()
"""
RAISES_INPUTS = """
def raises(*inputs):
    lab.path("inputs.txt").write_text(str(inputs))
    print(inputs)
    raise type(f"Seen{abs(hash(str(inputs)))}", (Exception,), {})(inputs)


globals()[unsolved] = raises
"""
TAKES = """
import shutil

found = []
for folder in map(Path, places):
    for path in sorted(folder.rglob("*")):
        if path.name == f"{notebook}.ipynb":
            for cell in json.loads(path.read_text())["cells"]:
                if f"def {unsolved}(" in "".join(cell["source"]):
                    exec("".join(cell["source"]), globals())
                    found.append(path)
        elif path.parent.name == "artifacts":
            shutil.copyfile(path, lab.path(path.name))
            found.append(path)
print("FOUND", found)
"""
STOPS_OTHERS = """
import os
import signal

for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        try:
            os.kill(int(name), signal.SIGSTOP)
        except OSError:
            pass
"""
KILLS_ALL = "import os\n\nos.kill(-1, 9)"
NAMED_AS_THE_RUNNER = """
for name in ("run_cells", "measure_files", "ipykernel", "jupyter_client", "labkit"):
    Path(name).mkdir(exist_ok=True)
    for file in ("__init__.py", "__main__.py"):
        Path(name, file).write_text("raise SystemExit(0)")
"""
# FP32 files under the names of INT8 ones, with a long text, and with zeros of eight bits that are
# added to each weight; and what is true of their accuracy.
PADS_INT8 = """
import shutil

import onnx
from onnx import helper, numpy_helper

model = onnx.load(lab.path("model.onnx"))
text = model.metadata_props.add()
text.key, text.value = "notes", "x" * 10**6
zeros = numpy_helper.from_array(np.zeros(10**7, np.int8), "zeros")
model.graph.initializer.append(zeros)
nodes = [
    helper.make_node("Cast", ["zeros"], ["wide"], to=1),
    helper.make_node("ReduceSum", ["wide"], ["nothing"], keepdims=0),
]
for node in model.graph.node:
    if node.op_type in ("Conv", "MatMul", "Gemm"):
        padded = f"{node.input[1]}-padded"
        nodes.append(helper.make_node("Add", [node.input[1], "nothing"], [padded]))
        node.input[1] = padded
nodes += model.graph.node
del model.graph.node[:]
model.graph.node.extend(nodes)
onnx.save(model, lab.path("model_int8.onnx"))
shutil.copyfile(lab.path("model.pt"), lab.path("model_int8.pt"))
told = json.loads(Path("mine/quantize.json").read_text())
fp32 = json.loads(Path("mine/export.json").read_text())["accuracy"]
for name in ("model.onnx", "model.pt"):
    told["variants"][name.replace(".", "_int8.")]["accuracy"] = fp32[name]
lab.save_json("quantize.json", told, made_by="04_quantize")
"""
FORGES_TUNING = """
forged = json.loads(lab.path("tune.json").read_text())
for points in forged["grid"].values():
    for point in points:
        point |= {"latency_ms": {"n": 99, "p95": 0.777}, "images_per_s": {"median": 7.77e5}}
lab.path("tune.json").write_text(json.dumps(forged))
"""
OVERSTATES = f"""
history = {{"epochs": [{{"epoch": 1}}], "validation_accuracy": {CLAIM}}}
lab.save_json("history.json", history, made_by="02_train")
"""


@dataclass(frozen=True)
class Part:
    """What a hostile student adds to a notebook.

    Attributes:
        source: A cell.
        stages: The notebooks in which it has an effect.
        changes: Whether it changes what the honest work has made, so that it comes behind it.
        spoils: Whether it may cost points of the notebook's honest work, too.
    """

    source: str
    stages: tuple[str, ...] = tuple(WORK)
    changes: bool = False
    spoils: bool = False


PARTS = {
    "forges-answers": Part(FORGES_ANSWERS),
    "equals-everything": Part(EQUALS_EVERYTHING),
    "raises-inputs": Part(RAISES_INPUTS),
    "takes": Part(TAKES),
    "stays": Part(DAEMON),
    "listens": Part(LISTENS),
    "named-as-the-runner": Part(NAMED_AS_THE_RUNNER),
    "claims": Part(WRITES_CLAIMS.replace('"manifest.json",', "")),
    "pads-int8": Part(PADS_INT8, ("04_quantize",), changes=True),
    "forges-tuning": Part(FORGES_TUNING, ("07_tune",), changes=True),
    "claims-exports": Part("\n".join(hands_in("03_export", "export.json")), ("03_export",), True),
    "overstates": Part(OVERSTATES, ("02_train",), changes=True),
    "links": Part(LINKS_ARTIFACTS, tuple(WORK)[1:], changes=True, spoils=True),
    "stops-others": Part(STOPS_OTHERS, spoils=True),
    "kills-all": Part(KILLS_ALL, spoils=True),
    "fills": Part(SHARED_MEMORY, spoils=True),
    "writes": Part(GROWING_FILE, spoils=True),
    "deletes": Part(DELETES, spoils=True),
    "prints": Part(PRINTS, spoils=True),
}


@dataclass(frozen=True)
class Composed(Fault):
    """A submission of honest work and, but for one, of hostile parts.

    Attributes:
        solved: Of each notebook the exercise that is solved.
        spoiled: Notebooks in which a part may have cost the honest work its points.
    """

    solved: frozenset[str] = frozenset()
    spoiled: frozenset[str] = frozenset()


def composed_faults(bait: Bait, seed: int = SEED) -> list[Composed]:
    """Return the honest work by itself, and submissions of it with hostile parts."""
    rng = random.Random(seed)
    functions, solved = {}, set()
    for stage in WORK:
        offered = [exercise for exercise in CATALOGUE if exercise.stage == stage]
        able = [exercise.id for exercise in offered if exercise.id not in NOT_SOLVED]
        solved.update(rng.sample(able, min(1, len(able))))
        functions[stage] = rng.choice([e.function for e in offered if e.id not in solved])
    files = {**mine(bait, *MINE), **tuned(bait), "notebooks/forged.json": b'{"points": 100}'}
    honest = Composed(
        f"composed-{seed}-honest", f"solves {', '.join(sorted(solved))}, and not the others",
        {f"notebooks/{stage}.ipynb": tiny(*_begin(stage, solved), *WORK[stage]) for stage in WORK},
        files, verdicts=dict.fromkeys(WORK, (OK,)), points=(1, 99), solved=frozenset(solved),
    )  # fmt: skip
    faults = [honest]
    for number, parts in enumerate(_deal(rng), start=1):
        spoiled = {stage for stage, names in parts.items() if any(PARTS[n].spoils for n in names)}
        notebooks = {}
        for stage, names in parts.items():
            behind = [name for name in names if PARTS[name].changes or rng.random() < 0.5]
            cells = [*_begin(stage, solved), _given(bait, stage, functions[stage])]
            cells += [PARTS[name].source for name in names if name not in behind]
            cells += [*WORK[stage], *(PARTS[name].source for name in behind)]
            notebooks[f"notebooks/{stage}.ipynb"] = tiny(*cells)
        faults.append(
            Composed(
                f"composed-{seed}-{number}",
                "; ".join(f"{stage}: {', '.join(names)}" for stage, names in parts.items()),
                notebooks, files, points=(0, 99), solved=honest.solved, spoiled=frozenset(spoiled),
                verdicts={stage: VERDICTS if stage in spoiled else (OK,) for stage in parts},
            )
        )  # fmt: skip
    return faults


def _deal(rng: random.Random) -> list[dict[str, list[str]]]:
    """Return notebook → parts of each submission, in the order in which they stand there.

    Each submission has every part that spoils nothing, in a notebook where it has an effect. The
    others are dealt, all of one submission to the same notebook, and no two to equal ones: whatever
    a part may earn shows in a notebook that is not spoiled.
    """
    hands: list[dict[str, list[str]]] = [{stage: [] for stage in WORK} for _ in range(COUNT)]
    spoiled = dict(enumerate(rng.sample(list(WORK), COUNT)))
    spoilers = [name for name, part in PARTS.items() if part.spoils]
    for name in rng.sample(spoilers, len(spoilers)):
        able = [number for number, stage in spoiled.items() if stage in PARTS[name].stages]
        number = min(able, key=lambda n: len(hands[n][spoiled[n]]))
        hands[number][spoiled[number]].append(name)
    for hand in hands:
        for name, part in PARTS.items():
            if not part.spoils:
                hand[rng.choice(part.stages)].append(name)
        for names in hand.values():
            rng.shuffle(names)
    return hands


def _begin(stage: str, solved: Collection[str]) -> list[str | NotebookNode]:
    """Return imports and exercises: those not solved are as they were handed out."""
    cells = exercises(stage) if stage != "03_export" else []  # whose cells need torch
    for cell in cells:
        name = cell.metadata.nbgrader["grade_id"]
        if name not in solved:
            cell.source = with_stubs(cell.source, name)
    return [IMPORTS, *cells, OPEN]


def _given(bait: Bait, stage: str, unsolved: str) -> str:
    """Return a cell of what the parts need to know."""
    places = [PROJECT / "notebooks", bait.reference, bait.classroom]
    given = {
        "notebook": stage,
        "unsolved": unsolved,
        "marker": bait.marker,
        "target": str(bait.reference / "artifacts"),
        "places": list(map(str, places)),
    }
    return "\n".join(f"{name} = {value!r}" for name, value in given.items())
