"""Exercises, called as grading calls them: in the kernel in which they were written."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.chain import STAGES
from labkit.grading.exercises import (
    EXERCISES,
    ask_exercises,
    measure_exercises,
    read_answers,
)
from labkit.grading.exercises import answers as answers_module
from labkit.grading.exercises.case import close, each, equals
from labkit.grading.exercises.catalogue import CATALOGUE
from labkit.grading.inside import measure_files
from labkit.grading.inside.call_function import UnfitAnswer, plain, read
from labkit.grading.limits import Limits
from labkit.grading.results import Measurement
from labkit.grading.run_notebook import KernelSandbox
from labkit.grading.sandbox import NONE, Isolation
from labkit.server import find_triton
from labkit.server.engine import STAND_IN
from labkit.workspace import project_root

SEED = 11
OPEN = Isolation(NONE)
NOTEBOOKS = {stage: project_root() / "notebooks" / f"{stage}.ipynb" for stage in STAGES}
SERVER_STAGE = "06_serve"
SERVER_STAGES = (SERVER_STAGE, "10_pipeline")  # 10: see test_pipeline_exercises.py
WITHOUT_SERVER = {id: stage for id, stage in EXERCISES.items() if stage not in SERVER_STAGES}
TRITON = find_triton()
needs_triton = [
    pytest.mark.triton,
    pytest.mark.skipif(
        TRITON is None or TRITON.problem is not None, reason="the Triton wheel does not run here"
    ),
]
Measurements = dict[str, Measurement]


# -- notebooks and runs ----------------------------------------------------------------------------


def code_cells(stage: str) -> list[tuple[str, str]]:
    """The (grade_id or "", source) of the committed notebook's code cells."""
    cells = json.loads(NOTEBOOKS[stage].read_text())["cells"]
    return [
        (cell["metadata"].get("nbgrader", {}).get("grade_id", ""), "".join(cell["source"]))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def solution(exercise: str) -> str:
    return dict(code_cells(EXERCISES[exercise]))[exercise]


Stages = dict[str, list[str]]  # notebook → the sources of its code cells
NEEDED = {"03_export": "example = torch.zeros(2, 3, 32, 32)"}  # variables that a solution uses


def cells_of(stage: str, answers: Mapping[str, str], first: str = "", last: str = "") -> list[str]:
    """The imports and solutions of the committed notebook, with other solutions for some."""
    own = []
    for name, source in code_cells(stage):
        if name.startswith("ex-"):
            own.append(answers.get(name, source))
        elif re.search(r"^(import|from) ", source, re.MULTILINE):
            own += [source, NEEDED.get(stage, "")]
    return [source for source in (first, *own, last) if source.strip()]


def look_into(content: bytes, images: Any) -> dict[str, Any]:
    """What the sandbox that measures says of a file, in this process."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(content)
        file.flush()
        try:
            return {"value": measure_files.look_into({"file": file.name, "images": images})}
        except Exception:
            return {"error": "NoOnnx"}


def run(
    folder: Path,
    stages: Mapping[str, list[str]],
    limit_s: float | None = None,
    cell_s: float = 30,
) -> Measurements:
    """Run cells as grading does, without a sandbox; call their exercises and judge the answers."""
    answers: dict[str, Any] = {}
    for stage, sources in stages.items():
        limits = Limits(wall_s=300, cpu_s=300)
        home = folder / "no-home"
        with KernelSandbox(OPEN, "smoke", folder / stage, home, STAND_IN, limits) as kernel:
            kernel.wait()
            program = kernel.program
            program.tell(do="cells", sources=sources, output_bytes=10**7)
            for number in range(len(sources)):
                program.tell(do="cell", cell=number, limit_s=cell_s, limit_cpu_s=30)
                program.hear()
            asked = [replace(e, limit_s=limit_s or e.limit_s) for e in CATALOGUE]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(answers_module, "CATALOGUE", asked)
                answers |= ask_exercises(program, stage, SEED, EXERCISES, limits, look_into)
    return measure_exercises(SEED, json.loads(json.dumps(answers)))


def run_answers(
    folder: Path,
    answers: Mapping[str, str],
    first: str = "",
    last: str = "",
    limit_s: float | None = None,
) -> Measurements:
    """Run notebooks in which the solutions of some exercises are others."""
    stages = sorted({EXERCISES[exercise] for exercise in answers})
    return run(folder, {stage: cells_of(stage, answers, first, last) for stage in stages}, limit_s)


# -- the committed solutions -----------------------------------------------------------------------


def test_exercises_are_the_solution_cells_of_the_committed_notebooks() -> None:
    found = {}
    for stage, path in NOTEBOOKS.items():
        for cell in json.loads(path.read_text())["cells"]:
            about = cell["metadata"].get("nbgrader", {})
            if about.get("solution"):
                found[about["grade_id"]] = stage
                assert f"def {functions()[about['grade_id']]}(" in "".join(cell["source"])
    assert found == EXERCISES
    assert len(EXERCISES) == 19


def functions() -> dict[str, str]:
    return {exercise.id: exercise.function for exercise in CATALOGUE}


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    stages = [stage for stage in STAGES if stage not in SERVER_STAGES]
    return run(tmp_path_factory.mktemp("solved"), {s: cells_of(s, {}) for s in stages})


@pytest.mark.parametrize("exercise", WITHOUT_SERVER)
def test_the_solution_has_full_marks(solved: Measurements, exercise: str) -> None:
    assert solved[exercise].value == 1, solved[exercise].detail
    assert solved[exercise].detail.startswith("all ")


def test_a_notebook_that_is_missing_has_no_marks(solved: Measurements) -> None:
    for exercise in EXERCISES.keys() - WITHOUT_SERVER.keys():
        assert solved[exercise].value == 0
        assert "nothing came back" in solved[exercise].detail


SLOW = ("ex-03-batch", "ex-07-open-loop")  # a file, and seconds, for each case


@pytest.mark.parametrize("exercise", [e for e in WITHOUT_SERVER if e not in SLOW])
def test_the_oracle_agrees_with_the_solution_for_any_seed(exercise: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(IMPORTS, namespace)
    exec(solution(exercise), namespace)
    [about] = [entry for entry in CATALOGUE if entry.id == exercise]
    for seed in range(25):
        for case in about.cases(seed):
            given = json.loads(json.dumps(case.arguments))
            value = namespace[about.function](*[read(entry, tmp_path) for entry in given])
            assert case.right(json.loads(json.dumps(plain(value)))), (seed, case.label)


IMPORTS = """import math, re, statistics, numpy as np, torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2 as pb"""

# -- plausible wrong solutions ---------------------------------------------------------------------

WRONG = {  # exercise: (solution, words of the detail)
    "ex-01-leak": (
        "def leaked(first, second):\n    return len([i for i in first if i in second])",
        "wrong where a list has repeated indices",
    ),
    "ex-01-statistics": (
        "def channel_statistics(pixels):\n"
        "    return pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(2, 3)).mean(axis=0)",
        "wrong where the images differ in brightness",
    ),
    "ex-02-learning-rate": (
        "def learning_rate(progress, warmup):\n"
        "    return 0.2 + 0.8 * progress / warmup if progress < warmup else 1 - progress",
        "wrong where the warm-up has just ended",
    ),
    "ex-02-calibration": (  # the distance of the means
        "def calibration_error(confidence, right):\n"
        "    return abs(confidence.mean() - right.mean())",
        "of 6 hidden cases right; wrong where",
    ),
    "ex-03-fold": (
        "def fold(conv, norm):\n"
        "    scale = norm.weight / norm.running_var.sqrt()\n"
        "    weight = conv.weight * scale[:, None, None, None]\n"
        "    return weight, norm.bias - norm.running_mean * scale",
        "wrong where eps is not small",
    ),
    "ex-03-batch": (  # a softmax over the batch
        "class Wrapped(nn.Module):\n"
        "    def __init__(self, model):\n"
        "        super().__init__()\n"
        "        self.model = model\n"
        "    def forward(self, x):\n"
        "        return self.model(x / 255).softmax(0)\n"
        "def export_for_bytes(model, path):\n"
        "    names = ['pixels', 'probabilities']\n"
        "    torch.onnx.export(Wrapped(model), (torch.zeros(2, 3, 32, 32).byte(),), path,\n"
        "                      dynamo=False, input_names=names[:1], output_names=names[1:],\n"
        "                      dynamic_axes={name: {0: 'batch'} for name in names})",
        "0 of 5 hidden cases right; wrong where the names of the two tensors are read",
    ),
    "ex-04-conv": (  # halves upwards
        "def integer_conv(x, weight, bias, x_scale, x_zero, w_scale, y_scale, y_zero):\n"
        "    sums = torch.nn.functional.conv2d(torch.tensor(x - np.float64(x_zero)),\n"
        "                                      torch.tensor(weight).double()).numpy()\n"
        "    step = x_scale * w_scale / y_scale\n"
        "    q = np.floor((sums + bias[:, None, None]) * step[:, None, None] + 0.5)\n"
        "    return (q + y_zero).clip(0, 255).astype(np.uint8)",
        "wrong where",
    ),
    "ex-04-broken": (  # the lowest ratio
        "def broken_layer(expected, found):\n"
        "    pairs = zip(expected, found)\n"
        "    ratios = [(a * a).sum() / np.square(a - b).sum() for a, b in pairs]\n"
        "    return int(np.argmin(ratios))",
        "wrong where",
    ),
    "ex-05-repair": (
        "def repair(text, shapes):\n"
        "    config = text_format.Parse(text, pb.ModelConfig())\n"
        "    for tensor in (*config.input, *config.output):\n"
        "        tensor.dims[:] = [d if type(d) is int else -1 for d in shapes[tensor.name][1:]]\n"
        "    return text_format.MessageToString(config)",
        "3 of 6 hidden cases right; wrong where max_batch_size is 0",
    ),
    "ex-05-names": (
        "def argument_positions(names, arguments):\n"
        "    return [arguments.index(n) if n in arguments else int(n[-1]) for n in names]",
        "wrong where one name of three is no argument",
    ),
    "ex-07-stats": (
        "def bottleneck(before, after):\n"
        "    parts = {k: v['ns'] for k, v in after['inference_stats'].items()\n"
        "             if k not in ('success', 'fail')}\n"
        "    part = max(parts, key=parts.get)\n"
        "    images = after['inference_count'] / after['execution_count']\n"
        "    return part, parts[part] / sum(parts.values()), images",
        "0 of 6",
    ),
    "ex-07-open-loop": (  # a client that waits, and counts from when it sends
        "def open_loop(send, due_s):\n"
        "    begin, waited = time.perf_counter(), []\n"
        "    for due in due_s:\n"
        "        time.sleep(max(0, begin + due - time.perf_counter()))\n"
        "        start = time.perf_counter()\n"
        "        send()\n"
        "        waited.append(1e3 * (time.perf_counter() - start))\n"
        "    return waited",
        "wrong where the service stalls once",
    ),
    "ex-07-choose": (
        "def choose(rounds, limit_ms):\n"
        "    rate = {k: statistics.median(r for r, _ in v) for k, v in rounds.items()\n"
        "            if all(p is not None and p <= limit_ms for _, p in v)}\n"
        "    order = sorted(rate, key=rate.get, reverse=True) + [None, None]\n"
        "    return order[0], rate[order[0]] / rate[order[1]] if order[1] else None",
        "wrong where every setting keeps the limit",
    ),
    "ex-08-front": (
        "def front(rows):\n"
        "    return [r[0] for r in rows if not any(o[1] > r[1] and o[2] > r[2] for o in rows)]",
        "wrong where two variants are equally accurate",
    ),
    "ex-08-paired": (  # without the continuity that the exact test has
        "def mcnemar(first, second):\n"
        "    b, c = int((first & ~second).sum()), int((second & ~first).sum())\n"
        "    return math.erfc(abs(b - c) / math.sqrt(2 * (b + c))) if b + c else 1.0",
        "wrong where they differ on some images",
    ),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    answers = {exercise: source for exercise, (source, _) in WRONG.items()}
    return run_answers(tmp_path_factory.mktemp("wrong"), answers)


@pytest.mark.parametrize("exercise", WITHOUT_SERVER)
def test_a_plausible_wrong_solution_loses_marks(wrong: Measurements, exercise: str) -> None:
    found = wrong[exercise]
    assert found.value is not None and found.value < 1
    assert WRONG[exercise][1] in found.detail


# -- other right solutions -------------------------------------------------------------------------

OTHER = {
    "ex-01-leak": (
        "def leaked(first, second):\n    return np.int64(len(np.intersect1d(first, second)))"
    ),
    "ex-01-statistics": (
        "import torch\n"
        "def channel_statistics(pixels):\n"
        "    channels = torch.from_numpy(pixels).transpose(0, 1).flatten(1)\n"
        "    return [channels.mean(dim=1), channels.std(dim=1)]"
    ),
    "ex-02-learning-rate": (
        "def learning_rate(progress, warmup):\n"
        "    return np.interp(progress, PEAK_AT(warmup), HEIGHTS)"
    ),
    "ex-02-calibration": (
        "def calibration_error(confidence, right):\n"
        "    places = torch.clamp((torch.from_numpy(confidence) * 10).long(), max=9)\n"
        "    gap = torch.from_numpy(right).double() - torch.from_numpy(confidence)\n"
        "    return torch.zeros(10, dtype=torch.float64).index_add(0, places, gap).abs().sum()"
        " / len(right)"
    ),
    "ex-03-fold": (
        "def fold(conv, norm):\n"
        "    fused = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)\n"
        "    return fused.weight.detach().numpy(), fused.bias"
    ),
    "ex-03-batch": (
        "class Bytes(nn.Module):\n"
        "    def forward(self, pixels):\n"
        "        return pixels.to(torch.float32).mul(1 / 255)\n"
        "def export_for_bytes(model, path):\n"
        "    whole = nn.Sequential(Bytes(), model, nn.Softmax(1))\n"
        "    with torch.no_grad():\n"
        "        torch.onnx.export(whole, torch.ones(3, 3, 32, 32, dtype=torch.uint8), str(path),\n"
        "                          dynamo=False, **NAMES,\n"
        "                          dynamic_axes={n: {0: 'batch'} for n in ALL_NAMES})\n"
        "    return path"
    ),
    "ex-04-conv": (
        "def integer_conv(x, weight, bias, x_scale, x_zero, w_scale, y_scale, y_zero):\n"
        "    sums = torch.nn.functional.conv2d(torch.tensor(x - np.float64(x_zero)),\n"
        "                                      torch.tensor(weight).double(),\n"
        "                                      torch.tensor(bias).double())\n"
        "    step = torch.tensor(x_scale * w_scale / y_scale)[:, None, None]\n"
        "    return torch.clamp(torch.round(sums * step) + y_zero, 0, 255).byte()"
    ),
    "ex-04-broken": (
        "def broken_layer(expected, found):\n"
        "    worst, before, place = 0, 30, None\n"
        "    for i, (a, b) in enumerate(zip(expected, found)):\n"
        "        ratio = 20 * np.log10(np.linalg.norm(a) / np.linalg.norm(a - b))\n"
        "        if before - ratio > worst:\n"
        "            worst, place = before - ratio, i\n"
        "        before = ratio\n"
        "    return place"
    ),
    "ex-05-repair": (
        "def repair(text, shapes):\n"
        "    config = pb.ModelConfig()\n"
        "    text_format.Merge(text, config)\n"
        "    owned = config.max_batch_size and all(type(s[0]) is str for s in shapes.values())\n"
        "    if not owned:\n"
        "        config.ClearField('max_batch_size')\n"
        "        config.ClearField('dynamic_batching')\n"
        "    for tensor in list(config.input) + list(config.output):\n"
        "        del tensor.dims[:]\n"
        "        for axis in shapes[tensor.name][bool(owned):]:\n"
        "            tensor.dims.append(-1 if isinstance(axis, str) else axis)\n"
        "    return '# mended\\n' + str(config)"
    ),
    "ex-05-names": (
        "def argument_positions(names, arguments):\n"
        "    if set(names) <= set(arguments):\n"
        "        return np.array([arguments.index(n) for n in names])\n"
        "    tails = [n.rpartition('__') for n in names]\n"
        "    if all(middle and tail.isdigit() for _, middle, tail in tails):\n"
        "        return [int(tail) for *_, tail in tails]\n"
        "    return range(len(names))"
    ),
    "ex-07-stats": (
        "def bottleneck(before, after):\n"
        "    runs = after['execution_count'] - before['execution_count']\n"
        "    if runs == 0:\n"
        "        return [None, 0, 0]\n"
        "    names = [p for p in after['inference_stats'] if p[0] in 'qc']\n"
        "    new, old = after['inference_stats'], before['inference_stats']\n"
        "    ns = np.array([new[p]['ns'] - old[p]['ns'] for p in names])\n"
        "    images = after['inference_count'] - before['inference_count']\n"
        "    return names[ns.argmax()], ns.max() / ns.sum(), np.float64(images / runs)"
    ),
    "ex-07-open-loop": (  # in an event loop; a notebook's own is in use
        "import asyncio\n"
        "def open_loop(send, due_s):\n"
        "    async def all_of_them():\n"
        "        begin, loop = time.perf_counter(), asyncio.get_running_loop()\n"
        "        pool = ThreadPoolExecutor(200)\n"
        "        async def one(due):\n"
        "            await asyncio.sleep(begin + due - time.perf_counter())\n"
        "            await loop.run_in_executor(pool, send)\n"
        "            return 1e3 * (time.perf_counter() - begin - due)\n"
        "        return await asyncio.gather(*map(one, due_s))\n"
        "    with ThreadPoolExecutor(1) as outside:\n"
        "        return outside.submit(asyncio.run, all_of_them()).result()"
    ),
    "ex-07-choose": (
        "def choose(rounds, limit_ms):\n"
        "    kept = {k: np.array([r for r, _ in v]) for k, v in rounds.items()\n"
        "            if np.nanmax([p or np.inf for _, p in v]) <= limit_ms}\n"
        "    order = sorted(kept, key=lambda k: -np.median(kept[k]))\n"
        "    least = (kept[order[0]] / kept[order[1]]).min() if len(order) > 1 else None\n"
        "    return [order[0] if order else None, least]"
    ),
    "ex-08-front": (
        "def front(rows):\n"
        "    def beats(o, r):\n"
        "        return o[1] >= r[1] and o[2] >= r[2] and (o[1] > r[1] or o[2] > r[2])\n"
        "    kept = {r: None for r in rows if not any(beats(o, r) for o in rows)}\n"
        "    return tuple(name for name, *_ in kept)"
    ),
    "ex-08-paired": (
        "from scipy.stats import binomtest\n"
        "def mcnemar(first, second):\n"
        "    only = int(np.sum(first > second))\n"
        "    differ = int(np.sum(first != second))\n"
        "    return binomtest(only, differ).pvalue if differ else 1"
    ),
}
HELPERS = """%matplotlib inline
!pip list
import numpy as np
HEIGHTS, LOW = [0.2, 1.0, 0.0], -1
NAMES = dict(input_names=["pixels"], output_names=["probabilities"])
ALL_NAMES: tuple = tuple(name for key in NAMES for name in NAMES[key])
PEAK_AT = lambda warmup: (0, warmup, 1)
"""
LATER = "print(sorted(name for name in dir() if name[0] != chr(95)))"
MESS = "def broken(:\n    this is no Python"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    return run_answers(tmp_path_factory.mktemp("other"), OTHER, HELPERS, LATER)


@pytest.mark.parametrize("exercise", WITHOUT_SERVER)
def test_another_right_solution_has_full_marks(other: Measurements, exercise: str) -> None:
    assert other[exercise].value == 1, other[exercise].detail


# -- stubs and hostile notebooks -------------------------------------------------------------------


def stub(exercise: str, body: str) -> str:
    return f"def {functions()[exercise]}(*arguments, **named):\n    {body}"


def test_what_was_not_written_has_no_marks(tmp_path: Path) -> None:
    kinds = ("raise NotImplementedError('write it')", "return None", "return 0", "return []")
    answers = {e: stub(e, kinds[n % 4]) for n, e in enumerate(WITHOUT_SERVER)}
    answers["ex-07-stats"] = stub("ex-07-stats", "return None, 0.0, 0.0")  # right in one case
    answers["ex-01-leak"] = stub("ex-01-leak", "return 0")  # 0 is right in two cases
    answers["ex-05-names"] = "# deleted"
    found = run_answers(tmp_path, answers, first=MESS)
    assert {exercise: found[exercise].value for exercise in WITHOUT_SERVER} == dict.fromkeys(
        WITHOUT_SERVER, 0
    )
    assert "the same answer in every hidden case" in found["ex-07-stats"].detail
    assert "the same answer in every hidden case" in found["ex-01-leak"].detail
    assert "defines no function `argument_positions`" in found["ex-05-names"].detail
    raised = [e for e, source in answers.items() if "NotImplementedError" in source]
    assert raised and all("NotImplementedError" in found[e].detail for e in raised)


def after_solution(exercise: str, line: str) -> str:
    """A cell with the right solution, behind one more function that does something first."""
    name = functions()[exercise]
    return (
        f"{solution(exercise)}\ndef wrapped(_right, _calls):\n"
        f"    def inner(*arguments):\n        _calls.append(1)\n"
        + "".join(f"        {part.strip()}\n" for part in line.split("\n"))
        + f"        return _right(*arguments)\n    return inner\n{name} = wrapped({name}, [])"
    )


FORGE = (
    "from IPython import get_ipython\n"
    "    publish = get_ipython().display_pub.publish\n"
    "    publish({'application/vnd.labkit.answer': '{\"failure\": \"the grader\"}'})\n"
    "    publish({'application/vnd.labkit.answer': '{\"value\": 0.1}'})"
)
HOSTILE: dict[str, tuple[str, Callable[[Measurement], bool]]] = {
    "ex-01-leak": (
        after_solution("ex-01-leak", "import sys; len(_calls) == 2 and sys.exit('bye')"),
        lambda m: m.value == 5 / 6 and "the lists are long: SystemExit" in m.detail,
    ),
    "ex-01-statistics": (
        after_solution("ex-01-statistics", "import os; len(_calls) == 3 and os._exit(7)"),
        lambda m: m.value == 1 / 2 and "the kernel ended" in m.detail,
    ),
    "ex-02-learning-rate": (
        after_solution("ex-02-learning-rate", "while len(_calls) == 3: pass"),
        lambda m: m.value == 2 / 9 and "took too long" in m.detail,
    ),
    "ex-02-calibration": (
        stub(
            "ex-02-calibration",
            "while True:\n        try:\n            while True: pass\n        except: continue",
        ),
        lambda m: m.value == 0 and "took too long" in m.detail,
    ),
    "ex-03-fold": (
        after_solution("ex-03-fold", "print('x' * 10**6 + '\\n' * 99999)"),
        lambda m: m.value == 1,
    ),
    "ex-03-batch": (
        stub("ex-03-batch", "arguments[1].write_bytes(b'no model at all')"),
        lambda m: m.value == 0 and "no ONNX model" in m.detail,
    ),
    "ex-04-conv": (
        after_solution(
            "ex-04-conv",
            "import json; json.dump = json.dumps = json.JSONEncoder = open = print",
        ),
        lambda m: m.value < 1,  # it has broken the kernel that answers for it
    ),
    "ex-04-broken": (
        stub("ex-04-broken", "return np.zeros(2**22)"),
        lambda m: m.value == 0 and "too large" in m.detail,
    ),
    "ex-05-repair": (solution("ex-05-repair"), lambda m: m.value == 1),
    "ex-05-names": (after_solution("ex-05-names", FORGE), lambda m: m.value == 1),
    "ex-07-stats": (
        after_solution("ex-07-stats", "import os; os.kill(os.getpid(), 9)"),
        lambda m: m.value == 0 and "the kernel ended" in m.detail,
    ),
    "ex-07-choose": (
        "class Spiteful(Exception):\n    def __str__(self):\n        raise self\n"
        + stub("ex-07-choose", "raise Spiteful"),
        lambda m: m.value == 0 and "an error of a class of its own" in m.detail,
    ),
    "ex-08-front": (
        stub("ex-08-front", "a = []\n    a.append(a)\n    return a"),
        lambda m: m.value == 0 and "lists in each other" in m.detail,
    ),
    "ex-08-paired": (solution("ex-08-paired"), lambda m: m.value == 1),
    "ex-07-open-loop": (
        stub("ex-07-open-loop", "arguments[0]()\n    while True: arguments[0]()"),
        lambda m: m.value == 0,
    ),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    answers = {exercise: source for exercise, (source, _) in HOSTILE.items()}
    trouble = "import sys; sys.exit(3)\nraise SystemExit\nimport nowhere"
    return run_answers(tmp_path_factory.mktemp("hostile"), answers, first=trouble, limit_s=1.5)


@pytest.mark.parametrize("exercise", WITHOUT_SERVER)
def test_a_hostile_notebook_harms_only_itself(hostile: Measurements, exercise: str) -> None:
    assert HOSTILE[exercise][1](hostile[exercise]), hostile[exercise]


HELPER = """from pathlib import Path
Path("shared_part.py").write_text("def common(a, b): return {*a} & {*b}")
import importlib
importlib.invalidate_caches()"""
IN_ANOTHER_WAY = {
    "a module beside it": (HELPER, "import shared_part", "shared_part.common(first, second)"),
    "a table that a function has made": (
        "def make():\n    return {n: n for n in range(50_000)}", "TABLE = make()",
        "{TABLE[i] for i in first} & {TABLE[i] for i in second}",
    ),
    "what a cell that raises has made before": (
        "SETS = set\nraise RuntimeError('after it')", "", "SETS(first) & SETS(second)"
    ),
    "what is defined behind a cell that hangs": (
        "while True: pass", "KIND = frozenset", "KIND(first) & KIND(second)"
    ),
    "what is defined behind a cell that ends the kernel": (
        "import os; os._exit(1)", "KIND = frozenset", "KIND(first) & KIND(second)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_ANOTHER_WAY)
def test_a_function_is_called_where_it_was_written(kind: str, tmp_path: Path) -> None:
    """With everything that it finds there: nothing of a notebook is run again in another way."""
    *before, expression = IN_ANOTHER_WAY[kind]
    source = f"def leaked(first, second):\n    return len({expression})"
    found = run(tmp_path, {"01_data": [*before, source]}, cell_s=3)
    assert found["ex-01-leak"].value == 1, found["ex-01-leak"]


def test_hidden_inputs_do_not_come_back_through_an_error(tmp_path: Path) -> None:
    raises = "def leaked(first, second):\n    raise ValueError(f'seen {first}')"
    named = (
        "def channel_statistics(pixels):\n"
        "    raise type(f'Seen{int(pixels.sum())}', (Exception,), {})(pixels)"
    )
    found = run(tmp_path, {"01_data": ["import numpy as np", raises, named]})
    assert found["ex-01-leak"].detail.endswith(": ValueError")
    assert found["ex-01-statistics"].detail.endswith(": an error of a class of its own")


# -- exercises that ask a server -------------------------------------------------------------------

BODY = """def binary_body(batch):
    size = {{"binary_data_size": batch.nbytes}}
    tensor = {{"name": "input", "shape": {shape}, "datatype": "FP32", "parameters": size}}
    wanted = {{"name": "logits", "parameters": {{"binary_data": True}}}}
    head = json.dumps({{"outputs": [wanted], "inputs": [tensor], "id": "7"}}).encode()
    return head + batch.tobytes(){end}, len(head)
"""
SERVER_ANSWERS = {
    "solved": {},
    "wrong": {
        "ex-06-body": BODY.format(shape="[1, 3, 32, 32]", end=""),  # of the images of the lesson
        "ex-06-split": (
            "def infer_many(images, limit=64):\n    return client.infer('cifar10_onnx', images)"
        ),
    },
    "long": {
        "ex-06-body": BODY.format(shape="list(batch.shape)", end=" + b' '"),
        "ex-06-split": (  # right, by a client of its own
            "def infer_many(images, limit=64):\n"
            "    with LabClient(server.grpc, 'grpc') as own:\n"
            "        parts = [images[i : i + limit] for i in range(0, len(images), limit)]\n"
            "        return [row for p in parts for row in own.infer('cifar10_onnx', p)]"
        ),
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Measurements]]:
    found: dict[str, Measurements] = {}

    def ask(name: str) -> Measurements:
        if name not in found:
            cells = cells_of(SERVER_STAGE, SERVER_ANSWERS[name])
            found[name] = run(tmp_path_factory.mktemp(name), {SERVER_STAGE: cells})
        return found[name]

    yield ask


class TestWithServer:
    pytestmark = needs_triton

    def test_the_solutions_have_full_marks(self, served: Callable[[str], Measurements]) -> None:
        for exercise in ("ex-06-body", "ex-06-split"):
            assert served("solved")[exercise].value == 1, served("solved")[exercise]

    def test_a_body_for_one_image_is_wrong_for_more(
        self, served: Callable[[str], Measurements]
    ) -> None:
        found = served("wrong")["ex-06-body"]
        assert found.value == pytest.approx(1 / 3)  # and its order and its id are its own affair
        assert "wrong where there are a few images" in found.detail

    def test_a_body_with_a_byte_too_many_is_wrong(
        self, served: Callable[[str], Measurements]
    ) -> None:
        assert served("long")["ex-06-body"].value == 0

    def test_a_limit_that_is_ignored_is_counted_by_the_server(
        self, served: Callable[[str], Measurements]
    ) -> None:
        found = served("wrong")["ex-06-split"]
        assert found.value == pytest.approx(4 / 6)
        assert "wrong where the limit is small" in found.detail

    def test_a_client_of_its_own_is_as_good(self, served: Callable[[str], Measurements]) -> None:
        assert served("long")["ex-06-split"].value == 1, served("long")["ex-06-split"]


def test_no_server_is_the_graders_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "inside"
    broken.mkdir()
    for path in answers_module.FOLDER.glob("*.py"):
        (broken / path.name).write_text(path.read_text())
    (broken / "serve_network.py").write_text("raise SystemExit('no Triton here')")
    monkeypatch.setattr(answers_module, "FOLDER", broken)
    found = run(tmp_path, {SERVER_STAGE: ["def infer_many(images, limit):\n    return 1"]})
    assert found["ex-06-split"].value is None
    assert "no Triton here" in found["ex-06-split"].detail


# -- the host's side -------------------------------------------------------------------------------


def inputs(seed: int) -> dict[str, list[Any]]:
    """Everything that is sent to a sandbox, of every exercise."""
    return {
        exercise.id: [[case.arguments, case.probe] for case in exercise.cases(seed)]
        for exercise in CATALOGUE
    }


def test_inputs_depend_on_the_seed_alone() -> None:
    assert inputs(3) == inputs(3)
    one, other = inputs(3), inputs(4)
    assert list(one) == list(EXERCISES)
    assert not [exercise for exercise in one if one[exercise] == other[exercise]]
    assert json.loads(json.dumps(one)) == one


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None, True, "1", "x" * 10**6, [], {}, float("nan"), float("inf"), 10**400, -1e300,
        deep(900),
        [[1, 2], [3]], [None] * 3, [["0.5"] * 3] * 2, {"value": [], "requests": ["1"]},
        {"inputs": {}, "logits": "x"}, {"value": None, "requests": [10**400]},
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_malformed_answers_are_wrong_and_never_an_error(value: Any) -> None:
    answers = {"answers": [{"value": value}] * 9}
    found = measure_exercises(SEED, dict.fromkeys(EXERCISES, answers))
    assert {measurement.value for measurement in found.values()} == {0.0}


@pytest.mark.parametrize(
    "output",
    [
        None, 3, "x", [], {}, {"answers": 3}, {"answers": [3, None, "x", []]}, {"answers": {}},
        {"answers": [{"error": 3}]}, {"answers": [{"error": ["x"]}]}, {"answers": [{}] * 50},
    ],
    ids=repr,
)  # fmt: skip
def test_malformed_outputs_are_wrong_and_never_an_error(output: Any) -> None:
    found = measure_exercises(SEED, dict.fromkeys(EXERCISES, output))
    assert {measurement.value for measurement in found.values()} == {0.0}
    assert all(measurement.detail for measurement in found.values())


def test_answers_to_other_inputs_keep_what_was_measured() -> None:
    """A grading that is measured again may be of before a change of the hidden cases."""
    answers = {"answers": [{"value": 1}], "cases": "those of another version"}
    assert measure_exercises(SEED, dict.fromkeys(EXERCISES, answers)) == {}


def test_an_error_is_shown_short_and_on_one_line() -> None:
    text = "ValueError: " + "a\n\x1b[31m" * 200
    found = measure_exercises(SEED, {"ex-08-paired": {"failure": text}})
    detail = found["ex-08-paired"].detail
    assert "ValueError: a [31ma" in detail
    assert "\n" not in detail and "\x1b" not in detail and len(detail) < 300


def test_judges_accept_what_is_near_and_nothing_else() -> None:
    assert close([1, 2])([1.0, 2.0]) and not close([1, 2])([1.0, 2.1])
    assert not close([1.0])(1.0) and not close(1.0)([1.0]) and not close(1)(True)
    assert each(close(1), close([2]))([1, [2]])
    assert not each(close(1))([1, 1]) and not each(close(1))(1)
    assert equals("a")("a") and equals(None)(None) and equals([[1, 2]])([[1, 2.0]])
    assert not equals("a")(["a"]) and not equals(None)(0)


def test_numbers_of_any_class_are_numbers() -> None:
    found = plain([Fraction(1, 4), np.longdouble(0.5), True, 3, -7])
    assert found == [0.25, 0.5, True, 3, -7]
    assert [type(value) for value in found] == [float, float, bool, int, int]


def test_values_become_plain() -> None:
    assert plain((np.int64(2), np.float32(0.5), torch.ones(2), np.array([[1]]))) == [
        2, 0.5, [1.0, 1.0], [[1]],
    ]  # fmt: skip
    assert plain([float("nan"), float("inf"), None, "x", {"a": 1}.keys()]) == [
        None, None, None, "x", ["a"],
    ]  # fmt: skip
    assert plain((b"\x00\xff", bytearray(b"a"))) == ["AP8=", "YQ=="]
    for value in ({1, 2}, object(), lambda: 1, 1j):
        with pytest.raises(UnfitAnswer, match="WrongKind"):
            plain(value)
    with pytest.raises(UnfitAnswer, match="TooLarge"):
        plain(bytes(2**20 + 1))


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    folder.mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text('{"answers": []}')
    (folder / "ex-01-leak.json").symlink_to(secret)
    os.mkfifo(folder / "ex-01-statistics.json")
    (folder / "ex-02-calibration.json").mkdir()
    (folder / "ex-02-learning-rate.json").write_text("{")
    (folder / "ex-03-fold.json").write_text("[" * 100_000)
    (folder / "ex-03-batch.json").write_text(" " * (9 * 2**20))
    (folder / "ex-04-broken.json").write_bytes(b"\xff\xfe")
    (folder / "ex-04-conv.json").write_text("9" * 10_000)
    (folder / "ex-08-paired.json").write_text('{"answers": [1]}')
    (folder / "unknown.json").write_text("{}")
    assert read_answers(folder) == {"ex-08-paired": {"answers": [1]}}


def test_a_folder_that_is_none_has_no_answers(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_answers(tmp_path / "link") == {}
    assert read_answers(tmp_path / "missing") == {}
