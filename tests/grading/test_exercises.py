"""Exercises, called as the sandbox calls them: the program in a process of its own, by path."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.chain import STAGES
from labkit.grading import probes
from labkit.grading.exercises import (
    EXERCISES,
    exercise_inputs,
    judge_exercises,
    make_request,
    read_answers,
)
from labkit.grading.exercises.case import close, each, equals
from labkit.grading.exercises.catalogue import CATALOGUE
from labkit.grading.probes.exercise_values import Reader, plain
from labkit.grading.results import Measurement
from labkit.server import find_triton
from labkit.workspace import project_root

SEED = 11
PROGRAM = Path(probes.__file__).with_name("call_exercises.py")
NOTEBOOKS = {stage: project_root() / "notebooks" / f"{stage}.ipynb" for stage in STAGES}
SERVER_STAGE = "06_serve"
WITHOUT_SERVER = {id: stage for id, stage in EXERCISES.items() if stage != SERVER_STAGE}
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


def write_notebook(
    path: Path, stage: str, answers: Mapping[str, str], first: str = "", last: str = ""
) -> Path:
    """The committed notebook with other solutions, and with a cell more at both ends."""
    own = [answers.get(name, source) for name, source in code_cells(stage)]
    sources = [source for source in (first, *own, last) if source]
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5}))
    return path


def run(folder: Path, notebooks: Mapping[str, Path], limit_s: float | None = None) -> Measurements:
    """Call the exercises of some notebooks and judge what comes back."""
    request = json.loads(make_request(SEED, notebooks))
    for exercise in request["exercises"]:
        exercise["limit_s"] = limit_s or exercise["limit_s"]
    (folder / "request.json").write_text(json.dumps(request))
    answers = folder / "answers"
    answers.mkdir()
    command = [sys.executable, str(PROGRAM), str(folder / "request.json"), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, "what notebooks print goes nowhere"
    return judge_exercises(SEED, read_answers(answers))


def run_answers(
    folder: Path,
    answers: Mapping[str, str],
    first: str = "",
    last: str = "",
    limit_s: float | None = None,
) -> Measurements:
    """Call notebooks in which the solutions of some exercises are others."""
    stages = sorted({EXERCISES[exercise] for exercise in answers})
    notebooks = {
        stage: write_notebook(folder / f"{stage}.ipynb", stage, answers, first, last)
        for stage in stages
    }
    return run(folder, notebooks, limit_s)


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
    assert len(EXERCISES) == 16


def functions() -> dict[str, str]:
    return {exercise.id: exercise.function for exercise in CATALOGUE}


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    notebooks = {stage: path for stage, path in NOTEBOOKS.items() if stage != SERVER_STAGE}
    return run(tmp_path_factory.mktemp("solved"), notebooks)


@pytest.mark.parametrize("exercise", WITHOUT_SERVER)
def test_the_solution_has_full_marks(solved: Measurements, exercise: str) -> None:
    assert solved[exercise].value == 1, solved[exercise].detail
    assert solved[exercise].detail.startswith("all ")


def test_a_notebook_that_is_missing_has_no_marks(solved: Measurements) -> None:
    for exercise in EXERCISES.keys() - WITHOUT_SERVER.keys():
        assert solved[exercise].value == 0
        assert "nothing came back" in solved[exercise].detail


@pytest.mark.parametrize(
    "exercise", [e for e in WITHOUT_SERVER if e not in ("ex-03-batch", "ex-05-repair")]
)
def test_the_oracle_agrees_with_the_solution_for_any_seed(exercise: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec("import math, numpy as np, torch\nfrom torch import Tensor, nn", namespace)
    exec(solution(exercise), namespace)
    [about] = [entry for entry in CATALOGUE if entry.id == exercise]
    reader = Reader({}, tmp_path)
    for seed in range(25):
        for case in about.cases(seed):
            given = json.loads(json.dumps(case.arguments))
            value = namespace[about.function](*[reader.read(entry) for entry in given])
            assert case.right(json.loads(json.dumps(plain(value)))), (seed, case.label)


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
    "ex-02-recalls": (
        "def recalls(matrix):\n    return matrix.diagonal() / matrix.sum(axis=0)",
        "0 of 4",
    ),
    "ex-03-fold": (
        "def fold(conv, norm):\n"
        "    scale = norm.weight / norm.running_var.sqrt()\n"
        "    weight = conv.weight * scale[:, None, None, None]\n"
        "    return weight, norm.bias - norm.running_mean * scale",
        "wrong where eps is not small",
    ),
    "ex-03-batch": (
        "def export_any_batch(model, path):\n"
        "    with quiet_torchscript():\n"
        "        torch.onnx.export(model, (example,), path, dynamo=False, opset_version=17,\n"
        "                          input_names=['input'], output_names=['logits'])",
        "1 of 5 hidden cases right; wrong where the name of axis 0 is read",
    ),
    "ex-04-quantize": (
        "def fake_quantize(x, scale, zero):\n"
        "    q = np.clip(np.round(x / scale) + zero, 0, 255).astype(np.uint8)\n"
        "    return (scale * (q - np.uint8(zero))).astype(np.float32)",
        "wrong where",
    ),
    "ex-04-pairs": (
        "def pair_sums(activations, weights):\n"
        "    products = activations.astype(np.int16) * weights.astype(np.int16)\n"
        "    return products[..., 0::2] + products[..., 1::2]",
        "wrong where",
    ),
    "ex-05-repair": (
        "def repair(text):\n    return to_text(to_config(VARIANTS['cifar10_onnx']))",
        "the same answer in every hidden case",
    ),
    "ex-05-split": (
        "def best_split(cores):\n"
        "    return [(n, cores // n) for n in range(1, cores) if cores % n == 0]",
        "0 of 5",
    ),
    "ex-07-little": ("def little(clients, latency_ms):\n    return clients / latency_ms", "0 of 4"),
    "ex-07-choose": (
        "def choose(table, limit_ms):\n"
        "    good = {k: v for k, v in table.items() if v[1] is not None and v[1] < limit_ms}\n"
        "    return max(good, key=lambda k: good[k][0], default=None)",
        "wrong where a p99 is exactly the limit",
    ),
    "ex-08-front": (
        "def front(rows):\n"
        "    return [r[0] for r in rows if not any(o[1] > r[1] and o[2] > r[2] for o in rows)]",
        "wrong where two variants are equally accurate",
    ),
    "ex-08-error": (
        "import math\ndef standard_error(p, n):\n    return math.sqrt(p * (1 - p)) / n",
        "wrong where",
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
    "ex-02-recalls": (
        "def recalls(matrix):\n"
        "    return [matrix[i, i] / sum(matrix[i]) for i in range(len(CLASSES))]"
    ),
    "ex-03-fold": (
        "def fold(conv, norm):\n"
        "    fused = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)\n"
        "    return fused.weight.detach().numpy(), fused.bias"
    ),
    "ex-03-batch": (
        "def export_any_batch(model, path):\n"
        "    with torch.no_grad():\n"
        "        torch.onnx.export(model, torch.rand(1, 3, 32, 32), str(path), dynamo=False,\n"
        "                          **NAMES, dynamic_axes={n: {0: 'batch'} for n in ALL_NAMES})\n"
        "    return path"
    ),
    "ex-04-quantize": (
        "def fake_quantize(x, scale, zero):\n"
        "    q = np.floor(x / scale + 0.5) + zero\n"
        "    q[q < 0], q[q > 255] = 0, 255\n"
        "    return (q - zero).astype(np.float32) * np.float32(scale)"
    ),
    "ex-04-pairs": (
        "def pair_sums(activations, weights):\n"
        "    activations = activations.astype('int64')\n"
        "    activations *= weights\n"
        "    return activations.reshape(*activations.shape[:-1], -1, 2).sum(-1).astype(float)"
    ),
    "ex-05-repair": (
        "import re\n"
        "def repair(text):\n"
        "    dims = iter(['dims: [3, 32, 32]', 'dims: 10'])\n"
        "    return '# mended\\n' + re.sub(r'dims: (\\[.*?\\]|\\d+)', lambda m: next(dims), text)"
    ),
    "ex-05-split": (
        "def best_split(cores):\n"
        "    counts = np.arange(1, cores + 1)\n"
        "    return [[n, cores // n] for n in counts[cores % counts == 0]]\n"
        "import numpy as np"
    ),
    "ex-07-little": "little = lambda clients, latency_ms: clients * per_second(latency_ms)",
    "ex-07-choose": (
        "def choose(table, limit_ms):\n"
        "    rows = sorted(table, key=lambda label: -table[label][0])\n"
        "    return next((r for r in rows if table[r][1] and table[r][1] <= limit_ms), None)"
    ),
    "ex-08-front": (
        "def front(rows):\n"
        "    def beats(o, r):\n"
        "        return o[1] >= r[1] and o[2] >= r[2] and (o[1] > r[1] or o[2] > r[2])\n"
        "    kept = {r: None for r in rows if not any(beats(o, r) for o in rows)}\n"
        "    return tuple(name for name, *_ in kept)"
    ),
    "ex-08-error": (
        "from decimal import Decimal\n"
        "def standard_error(p, n):\n    return np.sqrt(np.float32(p) * (1 - p) / n)"
    ),
}
HELPERS = """%matplotlib inline
!pip list
import numpy as np
HEIGHTS, LOW = [0.2, 1.0, 0.0], -1
NAMES = dict(input_names=["input"], output_names=["logits"])
ALL_NAMES: tuple = tuple(name for key in NAMES for name in NAMES[key])
PEAK_AT = lambda warmup: (0, warmup, 1)
def per_second(latency_ms):
    return 1000 / latency_ms
"""
LATER = "HEIGHTS = None\ndef per_second(x):\n    return 0\nCLASSES = ()"
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
    answers["ex-07-choose"] = stub("ex-07-choose", "pass")  # None is right in two cases
    answers["ex-01-leak"] = stub("ex-01-leak", "return 0")  # 0 is right in two cases
    answers["ex-05-split"] = "# deleted"
    found = run_answers(tmp_path, answers, first=MESS)
    assert {exercise: found[exercise].value for exercise in WITHOUT_SERVER} == dict.fromkeys(
        WITHOUT_SERVER, 0
    )
    assert "the same answer in every hidden case" in found["ex-07-choose"].detail
    assert "the same answer in every hidden case" in found["ex-01-leak"].detail
    assert "defines no function best_split" in found["ex-05-split"].detail
    assert "SyntaxError" in found["ex-05-split"].detail
    raised = [e for e, source in answers.items() if "NotImplementedError" in source]
    assert raised and all("NotImplementedError: write it" in found[e].detail for e in raised)


def after_solution(exercise: str, line: str) -> str:
    """A cell with the right solution, behind one more function that does something first."""
    name = functions()[exercise]
    return (
        f"{solution(exercise)}\n_right, _calls = {name}, []\n"
        f"def {name}(*arguments):\n    _calls.append(1)\n    {line}\n    return _right(*arguments)"
    )


FORGE = (
    "import json, subprocess, sys\n"
    "    forged = json.dumps({'answers': [{'value': 0.1}] * 4, 'failure': 'the grader'})\n"
    "    code = 'import sys, time, pathlib\\nfor _ in range(999):\\n'\n"
    "    code += ' [pathlib.Path(p).write_text(sys.argv[1]) for p in sys.argv[2:]]\\n'\n"
    "    code += ' time.sleep(0.01)'\n"
    "    names = ['ex-08-front', 'ex-08-error', 'ex-05-repair']\n"
    "    paths = [f'{sys.argv[2]}/{name}.json' for name in names]\n"
    "    for path in paths[:2]:\n        open(path, 'w').write(forged)\n"
    "    subprocess.Popen([sys.executable, '-c', code, forged, *paths], start_new_session=True)"
)
HOSTILE: dict[str, tuple[str, Callable[[Measurement], bool]]] = {
    "ex-01-leak": (
        after_solution("ex-01-leak", "import sys; len(_calls) == 2 and sys.exit('bye')"),
        lambda m: m.value == 5 / 6 and "the lists are long: SystemExit: bye" in m.detail,
    ),
    "ex-01-statistics": (
        after_solution("ex-01-statistics", "import os; len(_calls) == 3 and os._exit(7)"),
        lambda m: m.value == 1 / 2 and "the process ended, with status 7" in m.detail,
    ),
    "ex-02-learning-rate": (
        after_solution("ex-02-learning-rate", "while len(_calls) == 3: pass"),
        lambda m: m.value == 2 / 9 and "TimeLimit" in m.detail,
    ),
    "ex-02-recalls": (
        stub(
            "ex-02-recalls",
            "while True:\n        try:\n            while True: pass\n        except: continue",
        ),
        lambda m: m.value == 0 and "TimeLimit" in m.detail,
    ),
    "ex-03-fold": (
        after_solution("ex-03-fold", "print('x' * 10**6 + '\\n' * 99999)"),
        lambda m: m.value == 1,
    ),
    "ex-03-batch": (
        stub("ex-03-batch", "arguments[1].write_bytes(b'no model at all')"),
        lambda m: m.value == 0 and "DecodeError" in m.detail,
    ),
    "ex-04-quantize": (
        after_solution(
            "ex-04-quantize",
            "import json; json.dump = json.dumps = json.JSONEncoder = open = print",
        ),
        lambda m: m.value == 1,
    ),
    "ex-04-pairs": (
        stub("ex-04-pairs", "return np.zeros(2**22)"),
        lambda m: m.value == 0 and "too large" in m.detail,
    ),
    "ex-05-repair": (solution("ex-05-repair"), lambda m: m.value == 1),  # forged, see FORGE
    "ex-05-split": (after_solution("ex-05-split", FORGE), lambda m: m.value == 1),
    "ex-07-little": (
        after_solution("ex-07-little", "import os; os.kill(os.getpid(), 9)"),
        lambda m: m.value == 0 and "signal 9" in m.detail,
    ),
    "ex-07-choose": (
        "class Spiteful(Exception):\n    def __str__(self):\n        raise self\n"
        + stub("ex-07-choose", "raise Spiteful"),
        lambda m: m.value == 0 and "Spiteful: (its message cannot be read)" in m.detail,
    ),
    "ex-08-front": (
        stub("ex-08-front", "a = []\n    a.append(a)\n    return a"),
        lambda m: m.value == 0 and "lists in each other" in m.detail,
    ),
    "ex-08-error": (solution("ex-08-error"), lambda m: m.value == 1),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    answers = {exercise: source for exercise, (source, _) in HOSTILE.items()}
    trouble = "import sys; sys.exit(3)\nraise SystemExit\nimport nowhere"
    return run_answers(tmp_path_factory.mktemp("hostile"), answers, first=trouble, limit_s=1.5)


@pytest.mark.parametrize("exercise", WITHOUT_SERVER)
def test_a_hostile_notebook_harms_only_itself(hostile: Measurements, exercise: str) -> None:
    assert HOSTILE[exercise][1](hostile[exercise]), hostile[exercise]


def test_a_notebook_that_is_none_has_no_marks(tmp_path: Path) -> None:
    texts = {"01_data": "", "02_train": "[]", "04_quantize": '{"cells": [{"cell_type": "code"}]}'}
    notebooks = {stage: tmp_path / f"{stage}.ipynb" for stage in texts}
    for stage, text in texts.items():
        notebooks[stage].write_text(text)
    found = run(
        tmp_path,
        notebooks | {"07_tune": tmp_path / "missing.ipynb", "08_report": NOTEBOOKS["08_report"]},
    )
    for exercise, stage in EXERCISES.items():
        assert found[exercise].value == (1 if stage == "08_report" else 0), found[exercise]


# -- exercises that ask a server -------------------------------------------------------------------

SERVER_ANSWERS = {
    "solved": {},
    "wrong": {
        "ex-06-endpoint": (  # the metrics port answers 200 to any path
            "def endpoint(address):\n"
            "    for kind, path in (('http', 'v2/health/ready'), ('metrics', 'metrics')):\n"
            "        try:\n"
            "            urllib.request.urlopen(f'http://{address}/{path}', timeout=5)\n"
            "            return kind\n"
            "        except Exception: pass\n"
            "    return 'grpc'"
        ),
        "ex-06-split": (
            "def infer_many(images, limit=64):\n    return client.infer('cifar10_onnx', images)"
        ),
    },
    "peeking": {
        "ex-06-endpoint": (
            "def endpoint(address):\n"
            "    return {getattr(server, k): k for k in ('http', 'grpc', 'metrics')}[address]"
        ),
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
            folder = tmp_path_factory.mktemp(name)
            path = folder / "06_serve.ipynb"
            write_notebook(path, SERVER_STAGE, SERVER_ANSWERS[name])
            found[name] = run(folder, {SERVER_STAGE: path})
        return found[name]

    yield ask


class TestWithServer:
    pytestmark = needs_triton

    def test_the_solutions_have_full_marks(self, served: Callable[[str], Measurements]) -> None:
        for exercise in ("ex-06-endpoint", "ex-06-split"):
            assert served("solved")[exercise].value == 1, served("solved")[exercise]

    def test_asking_only_for_health_mixes_two_ports_up(
        self, served: Callable[[str], Measurements]
    ) -> None:
        found = served("wrong")["ex-06-endpoint"]
        assert found.value == pytest.approx(2 / 3)
        assert "wrong where the port is that of metrics" in found.detail

    def test_a_limit_that_is_ignored_is_counted_by_the_server(
        self, served: Callable[[str], Measurements]
    ) -> None:
        found = served("wrong")["ex-06-split"]
        assert found.value == pytest.approx(4 / 6)
        assert "wrong where the limit is small" in found.detail

    def test_the_answer_is_not_in_the_namespace(
        self, served: Callable[[str], Measurements]
    ) -> None:
        found = served("peeking")["ex-06-endpoint"]
        assert found.value == 0
        assert "NameError" in found.detail

    def test_a_client_of_its_own_is_as_good(self, served: Callable[[str], Measurements]) -> None:
        assert served("peeking")["ex-06-split"].value == 1, served("peeking")["ex-06-split"]


def test_no_server_is_the_graders_fault(tmp_path: Path) -> None:
    broken = tmp_path / "probes"
    broken.mkdir()
    for path in PROGRAM.parent.glob("*.py"):
        (broken / path.name).write_text(path.read_text())
    (broken / "serve_network.py").write_text("raise SystemExit('no Triton here')")
    (tmp_path / "request.json").write_text(
        make_request(SEED, {SERVER_STAGE: NOTEBOOKS[SERVER_STAGE]})
    )
    command = [sys.executable, str(broken / PROGRAM.name), str(tmp_path / "request.json")]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=120)
    found = judge_exercises(SEED, read_answers(tmp_path))
    for exercise in ("ex-06-endpoint", "ex-06-split"):
        assert found[exercise].value is None
        assert "no Triton here" in found[exercise].detail


# -- the host's side -------------------------------------------------------------------------------


def test_inputs_depend_on_the_seed_alone() -> None:
    assert exercise_inputs(3) == exercise_inputs(3)
    one, other = exercise_inputs(3), exercise_inputs(4)
    assert list(one) == list(EXERCISES)
    same = [exercise for exercise in one if one[exercise] == other[exercise]]
    assert set(same) <= {"ex-06-endpoint"}  # of three addresses there are six orders
    assert json.loads(json.dumps(one)) == one


def test_a_request_names_only_the_notebooks_that_are_there() -> None:
    request = json.loads(make_request(SEED, {"08_report": Path("/lab/08_report.ipynb")}))
    assert [exercise["exercise"] for exercise in request["exercises"]] == [
        "ex-08-front",
        "ex-08-error",
    ]
    assert {exercise["notebook"] for exercise in request["exercises"]} == {"/lab/08_report.ipynb"}


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
    found = judge_exercises(SEED, dict.fromkeys(EXERCISES, answers))
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
    found = judge_exercises(SEED, dict.fromkeys(EXERCISES, output))
    assert {measurement.value for measurement in found.values()} == {0.0}
    assert all(measurement.detail for measurement in found.values())


def test_an_error_is_shown_short_and_on_one_line() -> None:
    text = "ValueError: " + "a\n\x1b[31m" * 200
    found = judge_exercises(SEED, {"ex-08-error": {"answers": [{"error": text}]}})
    detail = found["ex-08-error"].detail
    assert "ValueError: a [31ma" in detail
    assert "\n" not in detail and "\x1b" not in detail and len(detail) < 300


def test_judges_accept_what_is_near_and_nothing_else() -> None:
    assert close([1, 2])([1.0, 2.0]) and not close([1, 2])([1.0, 2.1])
    assert not close([1.0])(1.0) and not close(1.0)([1.0]) and not close(1)(True)
    assert each(close(1), close([2]))([1, [2]])
    assert not each(close(1))([1, 1]) and not each(close(1))(1)
    assert equals("a")("a") and equals(None)(None) and equals([[1, 2]])([[1, 2.0]])
    assert not equals("a")(["a"]) and not equals(None)(0)


def test_values_become_plain() -> None:
    assert plain((np.int64(2), np.float32(0.5), torch.ones(2), np.array([[1]]))) == [
        2, 0.5, [1.0, 1.0], [[1]],
    ]  # fmt: skip
    assert plain([float("nan"), float("inf"), None, "x", {"a": 1}.keys()]) == [
        None, None, None, "x", ["a"],
    ]  # fmt: skip
    for value in ({1, 2}, object(), lambda: 1, 1j):
        with pytest.raises(TypeError, match="expected numbers"):
            plain(value)


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    folder.mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text('{"answers": []}')
    (folder / "ex-01-leak.json").symlink_to(secret)
    os.mkfifo(folder / "ex-01-statistics.json")
    (folder / "ex-02-recalls.json").mkdir()
    (folder / "ex-02-learning-rate.json").write_text("{")
    (folder / "ex-03-fold.json").write_text("[" * 100_000)
    (folder / "ex-03-batch.json").write_text(" " * (9 * 2**20))
    (folder / "ex-04-pairs.json").write_bytes(b"\xff\xfe")
    (folder / "ex-04-quantize.json").write_text("9" * 10_000)
    (folder / "ex-08-error.json").write_text('{"answers": [1]}')
    (folder / "unknown.json").write_text("{}")
    assert read_answers(folder) == {"ex-08-error": {"answers": [1]}}


def test_a_folder_that_is_none_has_no_answers(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_answers(tmp_path / "link") == {}
    assert read_answers(tmp_path / "missing") == {}
