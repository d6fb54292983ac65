"""Generated models and configurations: `labkit check` and the server agree on every one of them.

A few hundred in CI; more with the environment variable LABKIT_PAIRS. Each pair is one of the small
models and a configuration that fits it, changed in up to two places.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from cases import Both, Difference, scaled, script, shift, total, twice
from fidelity.explicit import ExplicitServer, server_of_accepted

from labkit.repository_check import ERROR, check_repository

PAIRS = int(os.environ.get("LABKIT_PAIRS", "200"))
SEED = 20_261_129
ROUND = 200  # models in one repository
TYPES = ("FP32", "FP16", "FP64", "INT64", "INT8", "BOOL", "STRING", "BF16", "UINT16")
SHARE = {"native": 1.0, "stand-in": 0.2}  # of the pairs: a stand-in takes a second to load
pytestmark = pytest.mark.timeout(3600)


@dataclass
class Tensor:
    name: str
    dims: list[int]
    kind: str = "FP32"
    more: str = ""

    def written(self, title: str) -> str:
        data_type = f"data_type: TYPE_{self.kind}" if self.kind else ""
        return f'{title} {{ name: "{self.name}" {data_type} dims: {self.dims} {self.more} }}'


@dataclass
class Config:
    """A configuration that can be changed."""

    backend: str
    batch: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    more: list[str] = field(default_factory=list)
    head: str = ""

    def text(self) -> str:
        lines = [self.head or f'backend: "{self.backend}"', f"max_batch_size: {self.batch}"]
        lines += [tensor.written("input") for tensor in self.inputs]
        lines += [tensor.written("output") for tensor in self.outputs]
        return "\n".join([*lines, *self.more]) + "\n"


def onnx(
    write: Callable[[Path], Any], batch: int, *tensors: tuple[str, list[int]], **more: Any
) -> Any:
    return _model("onnxruntime", "model.onnx", write, batch, *tensors, **more)


def _model(
    backend: str,
    file: str,
    write: Callable[[Path], Any],
    batch: int,
    *tensors: tuple[str, list[int]],
    outputs: int = 1,
) -> tuple[str, Callable[[Path], Any], Config]:
    made = [Tensor(name, dims) for name, dims in tensors]
    return file, write, Config(backend, batch, made[:-outputs], made[-outputs:])


def openvino_of(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Write the same model as IR."""

    def convert(path: Path) -> None:
        import openvino

        source = path.with_suffix(".onnx")
        write(source)
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
        source.unlink()

    return convert


MODELS = [
    onnx(twice(), 8, ("x", [4]), ("y", [4])),
    onnx(twice(), 0, ("x", [-1, 4]), ("y", [-1, 4])),
    onnx(twice(width="w"), 8, ("x", [-1]), ("y", [-1])),
    onnx(twice(width="w"), 0, ("x", [-1, -1]), ("y", [-1, -1])),
    onnx(twice("INT64"), 4, ("x", [4]), ("y", [4])),
    onnx(scaled, 0, ("x", [-1, 4]), ("factor", [1]), ("y", [-1, 4])),
    onnx(total, 0, ("x", [-1, 4]), ("total", [1])),
    onnx(shift, 0, ("x", [4]), ("y", [4])),
    _model("openvino", "model.xml", openvino_of(twice()), 0, ("x", [-1, 4]), ("y", [-1, 4])),
    _model("openvino", "model.xml", openvino_of(twice()), 4, ("x", [4]), ("y", [4])),
    _model(
        "pytorch", "model.pt", script(Difference), 4, ("first", [2]), ("second", [2]), ("d__0", [2])
    ),
    _model(
        "pytorch",
        "model.pt",
        script(Both),
        4,
        ("a__0", [2]),
        ("b__1", [2]),
        ("sum__0", [2]),
        ("dif__1", [2]),
        outputs=2,
    ),
]
MODELS[4][2].inputs[0].kind = MODELS[4][2].outputs[0].kind = "INT64"


def of_a_tensor(random: random.Random, config: Config) -> None:
    """Change one input or output."""
    tensors = random.choice([config.inputs, config.outputs])
    if not tensors:
        return
    at = random.randrange(len(tensors))
    tensor = tensors[at]
    change = random.randrange(9)
    if change == 0:
        tensors[at] = replace(tensor, name=random.choice(["x", "z", "y__1", "first", "IN__0"]))
    elif change == 1:
        tensors[at] = replace(tensor, kind=random.choice((*TYPES, "")))
    elif change in (2, 3):
        sizes = [random.choice([-1, 1, 2, 4, 0]) for _ in range(random.randrange(4))]
        tensors[at] = replace(tensor, dims=sizes)
    elif change == 4:
        shape = random.choice([[], [4], [2, 2], [-1], [1]])
        tensors[at] = replace(tensor, more=f"reshape {{ shape: {shape} }}")
    elif change == 5:
        tensors[at] = replace(tensor, more=random.choice(["optional: true", ""]))
        if tensors is config.outputs:
            tensors[at].more = ""
    elif change == 6:
        del tensors[at]
    elif change == 7:
        tensors.append(replace(tensor, name=random.choice([tensor.name, "extra", "offset"])))
    else:
        tensors.clear()


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def of_the_model(random: random.Random, config: Config) -> None:
    """Change a setting of the whole model."""
    change = random.randrange(8)
    keys = {
        "onnxruntime": ["intra_op_thread_count", "execution_mode", "enable_mem_arena"],
        "openvino": ["INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "HINT_BF16"],
        "pytorch": ["INTRA_OP_THREAD_COUNT", "INFERENCE_MODE", "ENABLE_TENSOR_FUSER"],
    }[config.backend]
    if change == 0:
        config.batch = random.choice([0, 1, 8, -1])
    elif change in (1, 2):
        value = random.choice(["1", "0", "-1", "abc", "true", "yes", "LATENCY", "2x", ""])
        config.more.append(parameter(random.choice([*keys, "unknown"]), value))
    elif change == 3:
        kind = random.choice(["KIND_CPU", "KIND_GPU", "KIND_MODEL", "KIND_CPU gpus: [0]"])
        config.more.append(f"instance_group {{ count: 1 kind: {kind} }}")
    elif change == 4:
        size, levels = random.choice([0, 2, 8, 99]), random.choice([0, 2])
        ordered = random.choice(["preserve_ordering: true", ""])
        config.more.append(
            f"dynamic_batching {{ preferred_batch_size: [{size}] priority_levels: {levels} "
            f"default_priority_level: {random.choice([0, 1, 3])} {ordered} }}"
        )
    elif change == 5:
        policy = random.choice(["specific { versions: [3] }", "all { }", "latest { }"])
        config.more.append(f"version_policy {{ {policy} }}")
    elif change == 6:
        level = random.choice([-1, 0, 2, 5])
        accelerator = random.choice(["openvino", "other"])
        config.more.append(
            f"optimization {{ graph {{ level: {level} }} execution_accelerators {{ "
            f'cpu_execution_accelerator {{ name: "{accelerator}" }} }} }}'
        )
    else:
        platforms = {"onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}
        wrong = random.choice(['backend: "onnx"', 'platform: "other"', " "])
        named = platforms.get(config.backend)
        config.head = f'platform: "{named}"' if named and random.random() < 0.5 else wrong


def pairs(count: int) -> Iterator[tuple[str, str, Callable[[Path], Any], Config]]:
    """Yield name, file, model and configuration; the same ones each time."""
    chance = random.Random(SEED)
    for number in range(count):
        file, write, good = MODELS[number % len(MODELS)]
        config = replace(
            good,
            inputs=list(map(replace, good.inputs)),
            outputs=list(map(replace, good.outputs)),
            more=[],
        )
        for _ in range(chance.choice([0, 1, 1, 2])):
            chance.choice([of_a_tensor, of_a_tensor, of_the_model])(chance, config)
        yield f"pair{number}", file, write, config


@pytest.mark.parametrize("runtime", ["stand-in", pytest.param("native", marks=pytest.mark.native)])
def test_check_and_serve_agree(runtime: str, tmp_path: Path) -> None:
    disagreed: list[str] = []
    made = list(pairs(round(SHARE[runtime] * PAIRS)))
    accepted = 0
    for start in range(0, len(made), ROUND):
        part = made[start : start + ROUND]
        repository = tmp_path / f"round{start}"
        for name, file, write, config in part:
            write(repository / name / "1" / file)
            (repository / name / "config.pbtxt").write_text(config.text())
        accepted += _held(repository, part, runtime, disagreed)
    assert not disagreed, "\n\n".join(disagreed)
    assert 0.2 * len(made) < accepted < 0.9 * len(made)  # else there is nothing to disagree about


def _held(repository: Path, part: list[Any], runtime: str, disagreed: list[str]) -> int:
    """Compare check with a server for one repository; return how many models are served."""
    names = [name for name, *_ in part]
    server, before = server_of_accepted(repository, names, runtime)
    # The core of this release may die of a load beside an unload: natively one after the other,
    # and all stay. A stand-in's models are processes, so that they go again.
    with server, ThreadPoolExecutor(1 if runtime == "native" else 2) as pool:
        texts = {name: config.text() for name, _, _, config in part}
        said = pool.map(lambda name: _load(server, name, texts[name], before), names)
        loads = dict(zip(names, said, strict=True))
    accepted = 0
    for name, _, _, config in part:
        found = check_repository(repository, [name], 64, runtime=runtime)
        errors = [str(finding) for finding in found if finding.severity == ERROR]
        loaded = loads[name] == ""
        accepted += loaded
        if loaded != (not errors):
            told = errors or ["nothing wrong"]
            disagreed.append(
                f"{config.text()}check: {'; '.join(told)}\nserver: {loads[name] or 'serves'}"
            )
    return accepted


def _load(server: ExplicitServer, name: str, config: str, before: dict[str, Any]) -> str:
    if name in before:
        return f"not started: {before[name][0]}"
    try:
        status, message = server.load(name)
        if status != 200:
            return message
        if server.runtime != "native":
            server.call(f"/v2/repository/models/{name}/unload", json.dumps({}).encode())
    except (OSError, HTTPException) as error:
        raise AssertionError(f"the server ended with this or its neighbour:\n{config}") from error
    return ""
