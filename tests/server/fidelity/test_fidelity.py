"""Stand-ins load, refuse and answer as the native backends do.

The tables hold what Triton's own backends of release 24.10 did: `configurations.json` whether a
model loads, its completed configuration, or the message; `answers.json` status, tensors or the
message of each request. Values, which depend on the processor, are compared with those of the
native backends where these are built.
"""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fidelity.explicit import MODES, ExplicitServer
from fidelity.models import write_models
from fidelity.on_purpose import CONFIGURATIONS, ENGINES_WORDS, NATIVE_WORDS, NO_EXAMPLE, REQUESTS
from fidelity.requests_sent import Sent, all_requests

pytestmark = pytest.mark.timeout(1200)
HERE = Path(__file__).parent
ROWS = {row["name"]: row for row in json.loads((HERE / "configurations.json").read_text())}
ANSWERS = json.loads((HERE / "answers.json").read_text())
LOADED_SHARE, ANSWERED_SHARE = 0.95, 0.97  # what differs on purpose counts as different
# Refused before a native server starts: they would end it, or corrupt its memory.
NOT_NATIVELY = {*CONFIGURATIONS, "v_pad", "v_pad_true", "v_dyn"}
NOT_NATIVELY |= {name for name, row in ROWS.items() if row["native"] == "died"}
CUT_SHORT = {"o_string with NUL"}  # natively a string ends at its first NUL
# What the Python backend puts before a message.
PREFIX = re.compile(
    r"^Failed to process the request\(s\) for model '[^']*', message: \w+: |"
    r"^Internal: (?=(Invalid argument|Internal|Unavailable|Unsupported): )"
)


@dataclass
class Seen:
    """What a runtime did: name → result, as in the tables; `values`: output → bytes or numbers."""

    runtime: str
    configurations: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)


def first_line(message: str) -> str:
    """Return what is compared of a message: no folders, no line numbers of an engine."""
    line = PREFIX.sub("", message.strip()).partition(" → ")[0].split("\n")[0]
    line = re.sub(r"/\S*?/models/|\{models\}/", "…/", line)
    return re.sub(r"(\.cpp|\.cc|\.h):\d+.*$", r"\1", line).strip()


def compact(config: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared of a completed configuration."""
    batching = config.get("dynamic_batching")
    return {
        **{key: config[key] for key in ("backend", "platform", "max_batch_size")},
        **{
            kind: [[t["name"], t["data_type"], [int(size) for size in t["dims"]]] for t in tensors]
            for kind, tensors in ((kind, config[kind]) for kind in ("input", "output"))
        },
        "preferred": None if batching is None else batching["preferred_batch_size"],
        "instances": [[group["kind"], group["count"]] for group in config["instance_group"]],
        "file": config["default_model_filename"],
    }


def write_repository(folder: Path, models: Path, names: list[str]) -> Path:
    for name in names:
        row = ROWS[name]
        (folder / name).mkdir(parents=True)
        if row["files"] is not None:
            (folder / name / "1").mkdir()
            for file, source in row["files"].items():
                shutil.copy(models / source, folder / name / "1" / file)
        if row["config"]:
            (folder / name / "config.pbtxt").write_text("\n".join(row["config"]) + "\n")
    labels = "".join(f"c{number}\n" for number in range(10))
    (folder / "o_labels" / "labels.txt").write_text(labels)
    return folder


def answer(server: ExplicitServer, request: Sent, seen: Seen) -> Any:
    path = request.path or f"/v2/models/{request.model}/infer"
    status, body, headers = server.call(path, request.body, request.headers)
    if status != 200:
        return [status, first_line(json.loads(body)["error"])]
    place = int(headers.get("Inference-Header-Content-Length", len(body)))
    outputs = json.loads(body[:place])["outputs"]
    seen.values[request.name] = values = {}
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        values[output["name"]] = body[place : place + size] if size else output.get("data")
        place += size
    return [200, sorted([o["name"], o["datatype"], o["shape"]] for o in outputs)]


def visit(server: ExplicitServer, name: str, requests: list[Sent], seen: Seen) -> None:
    """Load a model, ask it everything, unload it."""
    status, message = server.load(name)
    loaded = status == 200
    seen.configurations[name] = (
        compact(server.config(name)) if loaded else [status, first_line(message)]
    )
    for request in requests:
        seen.answers[request.name] = answer(server, request, seen) if loaded else "not loaded"
    if loaded:
        server.call(f"/v2/repository/models/{name}/unload", b"{}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def show(folder: Path) -> Callable[[str], Seen]:
    """Show every configuration and request to a runtime, once."""

    @cache
    def run(runtime: str) -> Seen:
        models = folder / "models"
        if not models.exists():
            write_models(models)
        names = [name for name in ROWS if runtime != "native" or name not in NOT_NATIVELY]
        repository = write_repository(folder / runtime, models, names)
        seen = Seen(runtime)
        by_model: dict[str | None, list[Sent]] = {}
        for one in all_requests():
            by_model.setdefault(one.model, []).append(one)
        server = ExplicitServer(
            repository, extra_args=MODES, runtime=runtime, log_path=folder / f"{runtime}.log"
        )
        # Two loads beside each other may end the core of this release natively.
        with server, ThreadPoolExecutor(1 if runtime == "native" else 2) as pool:
            list(pool.map(lambda name: visit(server, name, by_model.get(name, []), seen), names))
            for one in by_model[None]:
                seen.answers[one.name] = answer(server, one, seen)
        return seen

    return run


@pytest.fixture(params=["stand-in", pytest.param("native", marks=pytest.mark.native)])
def seen(request: pytest.FixtureRequest, show: Callable[[str], Seen]) -> Seen:
    return show(request.param)


@cache
def native_configurations() -> dict[str, Any]:
    """Return the table, without what is no example."""
    return {
        name: [row["native"][0], first_line(row["native"][1])]
        if isinstance(row["native"], list)
        else row["native"]
        for name, row in ROWS.items()
        if row["native"] != "died"
    }


def native_answers() -> dict[str, Any]:
    return {
        name: [entry[0], sorted(entry[1]) if entry[0] == 200 and entry[1] else first_line(entry[1])]
        for name, entry in ANSWERS.items()
        if entry is not None and entry[1] is not None and name not in NO_EXAMPLE
    }


def held(
    table: dict[str, Any], found: dict[str, Any], purposes: dict[str, str], share: float
) -> None:
    """Fail with what differs and stands in no table of purposes."""
    compared = {name: row for name, row in table.items() if name in found}
    different = {
        name: (row, found[name])
        for name, row in compared.items()
        if not (row == found[name] or (row == "loads" and isinstance(found[name], dict)))
    }
    lines = [
        f"{name}\n  natively {row}\n  here     {got}"
        for name, (row, got) in different.items()
        if name not in purposes
    ]
    assert not lines, "\n".join(lines)
    same = len(compared) - len(different)
    print(f"{same} of {len(compared)} as natively: {same / len(compared):.1%}")
    assert same / len(compared) >= share, sorted(different)


def test_configurations_load_or_are_refused_as_natively(seen: Seen) -> None:
    purposes = NATIVE_WORDS if seen.runtime == "native" else CONFIGURATIONS | ENGINES_WORDS
    held(native_configurations(), seen.configurations, purposes, LOADED_SHARE)


def test_requests_are_answered_as_natively(seen: Seen) -> None:
    purposes = {} if seen.runtime == "native" else REQUESTS
    held(native_answers(), seen.answers, purposes, ANSWERED_SHARE)


@pytest.mark.native
def test_values_are_those_of_the_native_backends(show: Callable[[str], Seen]) -> None:
    """Bit for bit; of PyTorch, whose kernels may depend on where in memory a batch lies, nearly."""
    mine, native = show("stand-in").values, show("native").values
    both = mine.keys() & native.keys()
    assert len(both) >= 80
    torch_ = {name for name in both if name.startswith("t_")}
    assert len(torch_) >= 10
    exact = both - CUT_SHORT - torch_
    assert {name: mine[name] for name in exact} == {name: native[name] for name in exact}
    for name in torch_:
        assert mine[name].keys() == native[name].keys(), name
        for output, value in mine[name].items():
            other = native[name][output]
            near = value == other or np.allclose(floats(value), floats(other), 1e-5, 1e-6)
            assert near, f"{name}, {output}: {value} and {other}"


def floats(value: bytes | list[float]) -> np.ndarray:
    """Return FP32 values as they came, in binary or in JSON."""
    return np.frombuffer(value, "<f4") if isinstance(value, bytes) else np.asarray(value)


def test_nothing_of_python_reaches_a_client(seen: Seen) -> None:
    told = [*seen.configurations.values(), *seen.answers.values()]
    messages = [entry[1] for entry in told if isinstance(entry, list) and entry[0] != 200]
    assert messages
    assert not [text for text in messages if ".py" in text or "Error:" in text]


def test_every_row_is_compared_or_says_why_not() -> None:
    assert set(REQUESTS) <= set(ANSWERS) and set(CONFIGURATIONS) <= set(ROWS)
    assert len(ROWS) >= 190 and len(ANSWERS) >= 257
    assert {request.name for request in all_requests()} == set(ANSWERS)
