"""Tiny models and their configurations, built for the tests: none of them knows about images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

VOCABULARY = 10
EMBEDDING = np.arange(VOCABULARY * 4, dtype=np.float32).reshape(VOCABULARY, 4)
TYPES = {  # Triton's name → ONNX's element type
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "STRING": TensorProto.STRING,
}
Ports = Mapping[str, tuple[str, Sequence[int | str]]]


def save_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Ports,
    outputs: Ports,
    weights: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a checked ONNX model; a tensor is a type and a shape, symbolic where it is a word."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TYPES[t], s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TYPES[t], s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def save_two_inputs(path: Path, batch: int | str = "batch") -> None:
    """`scaled = image * scale` (N, 2, 3) and `total` (N): an FP32 tensor and an INT32 vector."""
    save_onnx(
        path,
        [
            helper.make_node("Cast", ["scale"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["factor", "axis"], ["column"]),
            helper.make_node("Mul", ["image", "column"], ["scaled"]),
            helper.make_node("ReduceSum", ["scaled", "axes"], ["total"], keepdims=0),
        ],
        {"image": ("FP32", [batch, 2, 3]), "scale": ("INT32", [batch, 1])},
        {"scaled": ("FP32", [batch, 2, 3]), "total": ("FP32", [batch])},
        {"axis": np.array([2]), "axes": np.array([1, 2])},
    )


def save_tokens(path: Path) -> None:
    """`mean` (N, 4): the mean embedding of INT64 token ids (N, any length); ids above 9 fail."""
    save_onnx(
        path,
        [
            helper.make_node("Gather", ["embedding", "ids"], ["vectors"]),
            helper.make_node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0),
        ],
        {"ids": ("INT64", ["batch", "length"])},
        {"mean": ("FP32", ["batch", 4])},
        {"embedding": EMBEDDING},
    )


def save_every_type(path: Path, types: Sequence[str]) -> None:
    """An identity (N, 3) for each of these data types."""
    save_onnx(
        path,
        [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in types],
        {f"in_{t}": (t, ["batch", 3]) for t in types},
        {f"out_{t}": (t, ["batch", 3]) for t in types},
    )


def save_double(path: Path, batch: int | str = "batch") -> None:
    """`y = 2 x`, FP32 (N, 4)."""
    save_onnx(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        {"x": ("FP32", [batch, 4])},
        {"y": ("FP32", [batch, 4])},
    )


def save_int8(path: Path, batch: int | str = "batch") -> None:
    """`y = 2 x` by INT8 weights and activations, exact where x is a multiple of 1/32 below 4."""
    scale = np.array(1 / 32, np.float32)
    zero = np.array(0, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_int8"]),
        helper.make_node("DequantizeLinear", ["x_int8", "scale", "zero"], ["x_again"]),
        helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["two"]),
        helper.make_node("MatMul", ["x_again", "two"], ["y"]),
    ]
    weights = (64 * np.eye(4)).astype(np.int8)
    constants = {"scale": scale, "zero": zero, "weights": weights}
    save_onnx(path, nodes, {"x": ("FP32", [batch, 4])}, {"y": ("FP32", [batch, 4])}, constants)


def save_ir(path: Path, save: Callable[[Path], None] = save_double) -> None:
    """An ONNX model as OpenVINO IR: `model.xml` and `model.bin`."""
    import openvino

    onnx_path = path.with_name("double.onnx")
    save(onnx_path)
    openvino.save_model(openvino.convert_model(onnx_path), path)
    onnx_path.unlink()


class TwoArguments(nn.Module):
    """`(first + 10 second, second)`: INT64 and FP32, to tell the arguments apart."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first + 10 * second, second


class Double(nn.Module):
    """`2 x`, FP32 (N, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def int8_double() -> nn.Module:
    """`2 x` by INT8 weights, as PyTorch quantizes them."""
    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(2 * torch.eye(4))
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear})


class Words(nn.Module):
    """Strings in, strings out; one of them makes the model fail."""

    def forward(self, words: list[str]) -> list[str]:
        if "chalk" in words:
            raise RuntimeError("out of chalk")
        return [word.upper() for word in words]


def save_torchscript(path: Path, module: nn.Module) -> None:
    torch.jit.script(module.eval()).save(path)


def write_config(
    folder: Path,
    backend: str,
    inputs: Ports,
    outputs: Ports,
    batch: int = 8,
    instances: int = 1,
    parameters: Mapping[str, str] | None = None,
    more: str = "",
) -> Path:
    """Write config.pbtxt and return the version folder for the model file."""
    lines = [f'backend: "{backend}"', f"max_batch_size: {batch}"]
    for kind, ports in (("input", inputs), ("output", outputs)):
        for name, (dtype, dims) in ports.items():
            lines.append(f'{kind} {{ name: "{name}" data_type: TYPE_{dtype} dims: {list(dims)} }}')
    lines.append(f"instance_group {{ count: {instances} kind: KIND_CPU }}")
    for key, value in (parameters or {}).items():
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text("\n".join([*lines, indent(more, "")]) + "\n")
    return version


ONE_THREAD = {"intra_op_thread_count": "1"}
IMAGE = {"image": ("FP32", [2, 3]), "scale": ("INT32", [1])}
SCALED = {"scaled": ("FP32", [2, 3])}
X, Y = {"x": ("FP32", [4])}, {"y": ("FP32", [4])}
OPEN_X, OPEN_Y = {"x": ("FP32", [-1, 4])}, {"y": ("FP32", [-1, 4])}
ACCELERATED = (
    'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }'
)
IDS, MEAN = {"ids": ("INT64", [-1])}, {"mean": ("FP32", [4])}


def write_repository(root: Path, runtime: str, strings: bool) -> Path:
    """Write the models that a runtime must serve.

    Args:
        root: The repository.
        runtime: `native` leaves out what makes the native backends end the whole server.
        strings: Whether string tensors reach a Python stub unharmed here.
    """
    types = [name for name in TYPES if strings or name != "STRING"]
    version = write_config(
        root / "two_inputs",
        "onnxruntime",
        IMAGE,
        SCALED,
        instances=2,
        parameters=ONE_THREAD,
        more="dynamic_batching { max_queue_delay_microseconds: 20000 }",
    )
    save_two_inputs(version / "model.onnx")
    version = write_config(
        root / "tokens",
        "onnxruntime",
        IDS,
        MEAN,
        parameters=ONE_THREAD,
        more="dynamic_batching { max_queue_delay_microseconds: 300000 }\n"
        'model_warmup { name: "zeros" batch_size: 2 inputs { key: "ids" value: '
        "{ data_type: TYPE_INT64 dims: [5] zero_data: true } } }",
    )
    save_tokens(version / "model.onnx")
    version = write_config(
        root / "every_type",
        "onnxruntime",
        {f"in_{t}": (t, [3]) for t in types},
        {f"out_{t}": (t, [3]) for t in types},
        parameters=ONE_THREAD,
    )
    save_every_type(version / "model.onnx", types)
    version = write_config(
        root / "unbatched",
        "onnxruntime",
        {"x": ("FP32", [3, 4])},
        {"y": ("FP32", [3, 4])},
        batch=0,
        parameters={"execution_mode": "1", "inter_op_thread_count": "1", **ONE_THREAD},
        more='default_model_filename: "other.onnx"\noptimization { graph { level: 1 } }',
    )
    save_double(version / "other.onnx", batch=3)
    version = write_config(
        root / "accelerated",
        "onnxruntime",
        X,
        Y,
        more=ACCELERATED,
    )
    save_double(version / "model.onnx")
    limits = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    version = write_config(root / "ir", "openvino", OPEN_X, OPEN_Y, 0, parameters=limits)
    save_ir(version / "model.xml")
    version = write_config(
        root / "openvino_onnx",
        "openvino",
        IDS | {"ids": ("INT64", [-1, -1])},
        {"mean": ("FP32", [-1, 4])},
        batch=0,
        parameters=limits,
        more='default_model_filename: "model.onnx"',
    )
    save_tokens(version / "model.onnx")
    version = write_config(root / "static", "openvino", X, Y, 4, parameters=limits)
    save_ir(version / "model.xml")
    threads = {"INTRA_OP_THREAD_COUNT": "1"}
    if runtime != "native":  # where padding corrupts the heap, and a second model may not set these
        padding = limits | {"ENABLE_BATCH_PADDING": "YES"}
        version = write_config(root / "padded", "openvino", X, Y, 4, parameters=padding)
        save_ir(version / "model.xml")
        threads["INTER_OP_THREAD_COUNT"] = "1"
    version = write_config(  # arguments by name, in the other order; outputs by number, one of two
        root / "torch_named",
        "pytorch",
        {"second": ("FP32", [2]), "first": ("INT64", [2])},
        {"OUTPUT__1": ("FP32", [2])},
        parameters=threads | {"INFERENCE_MODE": "false"},
    )
    save_torchscript(version / "model.pt", TwoArguments())
    version = write_config(
        root / "torch_numbered",
        "pytorch",
        {"INPUT__1": ("FP32", [2]), "INPUT__0": ("INT64", [2])},
        {"second__1": ("FP32", [2]), "sum__0": ("FP32", [2])},
        parameters=threads | {"DISABLE_OPTIMIZED_EXECUTION": "true"},
        more="dynamic_batching { }",
    )
    save_torchscript(version / "model.pt", TwoArguments())
    if not strings:
        return root
    version = write_config(
        root / "torch_words",
        "pytorch",
        {"words": ("STRING", [-1])},
        {"words__0": ("STRING", [-1])},
        batch=0,
        parameters=threads,
    )
    save_torchscript(version / "model.pt", Words())
    return root
