"""Every configuration that cannot be served is refused by name, with got and expected."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tiny_models import (
    IDS,
    MEAN,
    OPEN_X,
    OPEN_Y,
    TwoArguments,
    X,
    Y,
    save_double,
    save_double_ir,
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
    "input_name": Refused(
        "onnxruntime", ("input 'z'", "expected 'x'"), inputs={"z": ("FP32", [4])}
    ),
    "input_dtype": Refused(
        "onnxruntime", ("TYPE_FP16", "expected TYPE_FP32"), inputs={"x": ("FP16", [4])}
    ),
    "input_dims": Refused("onnxruntime", ("dims [5]", "expected [4]"), inputs={"x": ("FP32", [5])}),
    "input_rank": Refused(
        "onnxruntime",
        ("dims [-1, 4]", "expected [4]", "without the batch axis"),
        inputs={"x": ("FP32", [-1, 4])},
    ),
    "output_name": Refused(
        "onnxruntime", ("output 'logits'", "expected 'y'"), outputs={"logits": ("FP32", [4])}
    ),
    "output_dims": Refused("onnxruntime", ("output 'y'", "dims [9]"), outputs={"y": ("FP32", [9])}),
    "fixed_batch": Refused(
        "onnxruntime", ("max_batch_size is 8", "fixed first dimension 2"), file="fixed"
    ),
    "missing_file": Refused("onnxruntime", ("no file model.onnx", "holds nothing"), file=None),
    "broken_file": Refused("onnxruntime", ("model.onnx",), file="broken"),
    "other_file": Refused(
        "onnxruntime", ("no file best.onnx",), more='default_model_filename: "best.onnx"'
    ),
    "thread_word": Refused(
        "onnxruntime",
        ("'intra_op_thread_count' is 'many'", "expected an integer"),
        parameters={"intra_op_thread_count": "many"},
    ),
    "unknown_parameter": Refused(
        "onnxruntime",
        ("unknown parameter 'intra_op_threads'", "intra_op_thread_count"),
        parameters={"intra_op_threads": "1"},
    ),
    "execution_mode": Refused(
        "onnxruntime",
        ("'execution_mode' is 'fast'", "expected one of 0, 1"),
        parameters={"execution_mode": "fast"},
    ),
    "shared_session": Refused(
        "onnxruntime",
        ("'share_session_between_instances' is not supported",),
        parameters={"share_session_between_instances": "true"},
    ),
    "graph_level": Refused(
        "onnxruntime", ("graph.level is 7",), more="optimization { graph { level: 7 } }"
    ),
    "accelerator": Refused(
        "onnxruntime", ("unknown Execution Accelerator 'onednn'",), more=accelerator("onednn")
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
        "onnxruntime", ("sequence_batching is not supported",), more="sequence_batching { }"
    ),
    "hint": Refused(
        "openvino",
        ("'PERFORMANCE_HINT' is 'SPEED'", "LATENCY"),
        OPEN_X,
        OPEN_Y,
        batch=0,
        parameters={"PERFORMANCE_HINT": "SPEED"},
        file="ir",
    ),
    "streams": Refused(
        "openvino",
        ("'NUM_STREAMS' is '0'", "1 or more"),
        OPEN_X,
        OPEN_Y,
        batch=0,
        parameters={"NUM_STREAMS": "0"},
        file="ir",
    ),
    "padding": Refused(
        "openvino",
        ("'ENABLE_BATCH_PADDING' is 'perhaps'", "expected true or false"),
        parameters={"ENABLE_BATCH_PADDING": "perhaps"},
        file="ir",
    ),
    "missing_ir": Refused("openvino", ("no file model.xml",), OPEN_X, OPEN_Y, batch=0, file=None),
    "torch_input": Refused(
        "pytorch",
        ("input 'image'", "forward(first, second)"),
        {**TORCH_IN, "image": ("FP32", [2])},
        TORCH_OUT,
        file="torch",
    ),
    "torch_lacks_input": Refused(
        "pytorch",
        ("leave out an argument of forward(first, second)",),
        {"second": ("FP32", [2])},
        TORCH_OUT,
        file="torch",
    ),
    "torch_output": Refused(
        "pytorch",
        ("output 'sum' has no position", "<name>__<index>"),
        TORCH_IN,
        {"sum": ("FP32", [2])},
        file="torch",
    ),
    "torch_output_number": Refused(
        "pytorch",
        ("output 'sum__2' is number 2", "returns 2"),
        TORCH_IN,
        {"sum__2": ("FP32", [2])},
        file="torch",
    ),
    "torch_output_dtype": Refused(
        "pytorch",
        ("'sum__0' is TYPE_INT64", "expected TYPE_FP32"),
        TORCH_IN,
        {"sum__0": ("INT64", [2])},
        file="torch",
    ),
    "torch_shapes": Refused(
        "pytorch",
        ("does not take the configured inputs", "[1, 3]"),
        {"first": ("INT64", [2]), "second": ("FP32", [3])},
        TORCH_OUT,
        file="torch",
    ),
}

SERVED = ("input_dtype", "missing_file", "accelerator", "hint", "torch_output")


def write_file(version: Path, case: Refused) -> None:
    if case.file == "torch":
        save_torchscript(version / "model.pt", TwoArguments())
    elif case.file == "ir":
        save_double_ir(version / "model.xml")
    elif case.file == "tokens":
        save_tokens(version / "model.onnx")
        (version.parent / "warmup").mkdir()
        (version.parent / "warmup" / "token_99").write_bytes((99).to_bytes(8, "little"))
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
    assert "ConfigError" not in str(failure)  # no class names or stacks for what a person can mend


def test_a_warm_up_that_fails_names_its_model(tmp_path: Path) -> None:
    write_model(tmp_path / "repository" / "bad_warm_up", CASES["bad_warm_up"])
    with pytest.raises(ModelLoadError, match="out of data bounds") as error:
        TritonServer(tmp_path / "repository", log_path=tmp_path / "triton.log").start()
    assert error.value.models.keys() == {"bad_warm_up"}
