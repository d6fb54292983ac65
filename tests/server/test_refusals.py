"""Every configuration that cannot be served is refused by name, with got and expected."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from onnx import helper
from tiny_models import (
    IDS,
    MEAN,
    OPEN_X,
    OPEN_Y,
    TwoArguments,
    X,
    Y,
    save_double,
    save_ir,
    save_onnx,
    save_tokens,
    save_torchscript,
    write_config,
)
from tritonclient.grpc.model_config_pb2 import ModelConfig

from labkit.backends.settings import Settings
from labkit.server import ModelLoadError, TritonServer

TORCH_IN = {"first": ("INT64", [2]), "second": ("FP32", [2])}
TORCH_OUT = {"sum__0": ("FP32", [2])}


@dataclass(frozen=True)
class Refused:
    """A configuration that must not load, and what the answer must say."""

    backend: str
    says: tuple[str, ...]
    inputs: Mapping[str, Any] = field(default_factory=lambda: X)
    outputs: Mapping[str, Any] = field(default_factory=lambda: Y)
    batch: int = 8
    parameters: Mapping[str, str] = field(default_factory=dict)
    more: str = ""
    file: str | None = "model"


def accelerator(name: str) -> str:
    return (
        "optimization { execution_accelerators { cpu_execution_accelerator { "
        f'name: "{name}" }} }} }}'
    )


def warm_up(token: int) -> str:
    return (
        'model_warmup { name: "w" batch_size: 1 inputs { key: "ids" value: { data_type: '
        f'TYPE_INT64 dims: [1] input_data_file: "token_{token}" }} }} }}'
    )


CASES = {
    "input_dtype": Refused(
        "onnxruntime",
        ("expects datatype TYPE_FP16 for input 'x', model provides TYPE_FP32", "→ write data_type"),
        inputs={"x": ("FP16", [4])},
    ),
    "missing_file": Refused(
        "onnxruntime", ("failed to stat file", "which holds nothing"), file=None
    ),
    "broken_file": Refused("onnxruntime", ("onnx runtime error",), file="broken"),
    "accelerator": Refused(
        "onnxruntime",
        ("unknown Execution Accelerator 'onednn' is requested →",),
        more=accelerator("onednn"),
    ),
    "scalar": Refused(
        "onnxruntime",
        ("a scalar, one for the whole batch", "max_batch_size: 0"),
        outputs={"total": ("FP32", [1])},
        file="total",
    ),
    "bad_warm_up": Refused(
        "onnxruntime",
        ("out of data bounds",),
        inputs=IDS,
        outputs=MEAN,
        more=warm_up(99),
        file="tokens",
    ),
    "sequences": Refused(
        "onnxruntime",
        ("sequence_batching with control_input or state is not supported",),
        more='sequence_batching { control_input { name: "s" control { kind: CONTROL_SEQUENCE_START '
        "fp32_false_true: [0, 1] } } }",
    ),
    "hint": Refused(
        "openvino",
        ("'PERFORMANCE_HINT' to be LATENCY/THROUGHPUT/CUMULATIVE_THROUGHPUT, got speed",),
        OPEN_X,
        OPEN_Y,
        batch=0,
        parameters={"PERFORMANCE_HINT": "SPEED"},
        file="ir",
    ),
    "missing_ir": Refused(
        "openvino", ("1/model.xml is missing",), OPEN_X, OPEN_Y, batch=0, file=None
    ),
    "torch_lacks_input": Refused(
        "pytorch",
        ("configuration expects 1 inputs, model provides 2 → list exactly: first, second",),
        {"second": ("FP32", [2])},
        TORCH_OUT,
        file="torch",
    ),
    "torch_numbers": Refused(
        "pytorch",
        ("numbers begin at 0", "name them first, second, or IN__0, IN__1"),
        {"IN__1": ("INT64", [2]), "IN__2": ("FP32", [2])},
        TORCH_OUT,
        file="torch",
    ),
    "torch_output_number": Refused(
        "pytorch",
        ("refers to an output index which doesn't exist. This model has 2 outputs",),
        TORCH_IN,
        {"sum__2": ("FP32", [2])},
        file="torch",
    ),
}

SERVED = ("input_dtype", "missing_file", "accelerator", "hint", "torch_numbers")


def write_file(version: Path, case: Refused) -> None:
    if case.file == "torch":
        save_torchscript(version / "model.pt", TwoArguments())
    elif case.file == "ir":
        save_ir(version / "model.xml")
    elif case.file == "tokens":
        save_tokens(version / "model.onnx")
        (version.parent / "warmup").mkdir()
        (version.parent / "warmup" / "token_99").write_bytes((99).to_bytes(8, "little"))
    elif case.file == "total":
        node = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
        save_onnx(
            version / "model.onnx",
            [node],
            {"x": ("FP32", ["batch", 4])},
            {"total": ("FP32", [])},
        )
    elif case.file == "broken":
        (version / "model.onnx").write_bytes(b"not a model")
    elif case.file:
        save_double(version / "model.onnx", 2 if case.file == "fixed" else "batch")


def write_model(folder: Path, case: Refused) -> Path:
    version = write_config(
        folder,
        case.backend,
        case.inputs,
        case.outputs,
        case.batch,
        parameters=case.parameters,
        more=case.more,
    )
    write_file(version, case)
    return version


@pytest.mark.parametrize("name", [name for name in CASES if name != "bad_warm_up"])
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    """Load in this process what Triton's stub would load: quick, so every case has its turn."""
    case = CASES[name]
    version = write_model(tmp_path / name, case)
    config = text_format.Parse((tmp_path / name / "config.pbtxt").read_text(), ModelConfig())
    engine = importlib.import_module(f"labkit.backends.{case.backend}.engine")
    args = {
        "model_config": json_format.MessageToJson(config, preserving_proto_field_name=True),
        "model_name": name,
        "model_instance_name": f"{name}_0_0",
        "model_instance_kind": "CPU",
        "model_repository": str(version.parent),
        "model_version": version.name,
    }
    with pytest.raises(Exception) as error:
        engine.load(Settings(args))
    for words in case.says:
        assert words in str(error.value)


@pytest.fixture(scope="module")
def failure(tmp_path_factory: pytest.TempPathFactory) -> ModelLoadError:
    """Offer a case of each kind to one server, which must refuse them all."""
    repository = tmp_path_factory.mktemp("refused") / "repository"
    for name in SERVED:
        write_model(repository / name, CASES[name])
    with pytest.raises(ModelLoadError) as error:
        TritonServer(repository, log_path=repository.parent / "triton.log").start()
    return error.value


@pytest.mark.parametrize("name", SERVED)
def test_triton_passes_the_refusal_on(failure: ModelLoadError, name: str) -> None:
    for words in CASES[name].says:
        assert words in failure.models[name]
        assert words in str(failure)


def test_the_message_names_every_model_and_the_log(failure: ModelLoadError) -> None:
    assert failure.models.keys() == set(SERVED)
    assert "triton.log" in str(failure)
    for words in ("ConfigError", "At:", ".py"):  # no class names or stacks, which help nobody
        assert words not in str(failure)


def test_a_warm_up_that_fails_names_its_model(tmp_path: Path) -> None:
    write_model(tmp_path / "repository" / "bad_warm_up", CASES["bad_warm_up"])
    with pytest.raises(ModelLoadError, match="out of data bounds") as error:
        TritonServer(tmp_path / "repository", log_path=tmp_path / "triton.log").start()
    assert error.value.models.keys() == {"bad_warm_up"}
