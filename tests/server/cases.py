"""Small repositories, each with what `labkit check` must say and what the server must do.

A case is data: the files, what check finds, and the answer to one request.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

TENS = [10.0, 20.0, 30.0, 40.0]
FOUR = [1.0, 2.0, 3.0, 4.0]
ASKED = {"x": ("FP32", [1, 4], FOUR)}
TWICE = {"y": [2.0, 4.0, 6.0, 8.0]}
ACCELERATED = (
    'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }'
)
ORT, TORCH = "intra_op_thread_count", "INTRA_OP_THREAD_COUNT"


def port(name: str, kind: str, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Write an ONNX file, with the operators of classical machine learning too."""
    initializers = [numpy_helper.from_array(a, name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "case", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return model


def twice(kind: str = "FLOAT", width: int | str = 4, shown: bool = True) -> Callable[[Path], Any]:
    """`y = 2 x`, (batch, width); of other types than FP32 `y = x`."""
    shape: list[int | str] = ["batch", width]
    return lambda path: save(
        path,
        [
            helper.make_node("Add", ["x", "x"], ["y"])
            if kind == "FLOAT"
            else helper.make_node("Identity", ["x"], ["y"])
        ],
        [port("x", kind, shape)],
        [port("y", kind, shape if shown else None)],
    )


def scaled(path: Path) -> None:
    """`y = factor x`; factor is a scalar."""
    save(
        path,
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [port("x", "FLOAT", ["n", 4]), port("factor", "FLOAT", [])],
        [port("y", "FLOAT", ["n", 4])],
    )


def total(path: Path) -> None:
    """The sum of everything, a scalar."""
    save(
        path,
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        [port("x", "FLOAT", ["n", 4])],
        [port("total", "FLOAT", [])],
    )


def flowers(path: Path) -> None:
    """A classifier whose probabilities are a sequence of maps."""
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=[1.0, 0.0, 0.0, 1.0],
            intercepts=[0.0, 0.0],
            classlabels_ints=[0, 1],
        ),
        helper.make_node(
            "ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
        ),
    ]
    element = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    maps = helper.make_value_info("probabilities", helper.make_sequence_type_proto(element))
    save(path, nodes, [port("x", "FLOAT", ["n", 2])], [port("label", "INT64", ["n"]), maps])


def outside(path: Path, with_weights: bool = False) -> None:
    """`y = x w`, with its weights in a file of its own."""
    folder = path if with_weights else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    model = save(
        folder / "inside.onnx",
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [port("x", "FLOAT", ["n", 4])],
        [port("y", "FLOAT", ["n", 4])],
        {"w": np.array([2, 3, 4, 5], np.float32)},
    )
    (folder / "inside.onnx").unlink()
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    if not with_weights:
        (folder / "model.onnx.data").unlink()


def shift(path: Path) -> None:
    """`y = x + offset`; offset has a value of its own."""
    save(
        path,
        [helper.make_node("Add", ["x", "offset"], ["y"])],
        [port("x", "FLOAT", [4]), port("offset", "FLOAT", [4])],
        [port("y", "FLOAT", [4])],
        {"offset": np.ones(4, np.float32)},
    )


def operator(kind: str, domain: str = "", **attributes: Any) -> Callable[[Path], Any]:
    """One operator on x, which OpenVINO lacks or reads in another way."""
    square: list[int | str] = ["n", 2, 2] if kind == "Det" else ["n", 4]
    return lambda path: save(
        path,
        [helper.make_node(kind, ["x"], ["y"], domain=domain, **attributes)],
        [port("x", "FLOAT", square)],
        [port("y", "FLOAT", square[:1] if kind == "Det" else square)],
    )


class Difference(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second


class Both(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first + second, first - second


class TakesDictionary(nn.Module):
    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        return parts["plus"] - parts["minus"]


class GivesDictionary(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"sum": first + second, "dif": first - second}


def script(module: type[nn.Module]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.jit.script(module().eval()).save(str(path))

    return write


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        tensors: Inputs and outputs of the configuration, as text.
        model: Writes the file.
        finds: What an error of check says; empty for no error.
        fix: What its fix says.
        answer: Output → values; None where the server refuses the model.
        asked: Input → type, shape, values.
        warns: What a warning says, where one is due.
        threads: Value of the parameter for threads.
        files: Further files of the model's folder.
        status: Of the answer.
        logs: What the log of a server with stand-ins says of it.
        runtimes: That the case is true of.
    """

    tensors: str
    model: Callable[[Path], Any] = field(default_factory=twice)
    finds: str = ""
    fix: str = ""
    answer: Mapping[str, Any] | None = None
    asked: Mapping[str, tuple[str, list[int], Any]] = field(default_factory=lambda: ASKED)
    batch: int = 8
    backend: str = "onnxruntime"
    more: str = ""
    warns: str = ""
    threads: str = "1"
    instances: str = "count: 1 kind: KIND_CPU"
    files: Mapping[str, bytes] = field(default_factory=dict)
    status: int = 200
    logs: str = ""
    runtimes: tuple[str, ...] = ("stand-in", "native")

    def write(self, folder: Path) -> None:
        """Write the model's folder."""
        name = {"pytorch": "model.pt"}.get(self.backend, "model.onnx")
        self.model(folder / "1" / name)
        lines = [
            f'backend: "{self.backend}"',
            f"max_batch_size: {self.batch}",
            self.tensors,
            self.more,
            f"instance_group {{ {self.instances} }}",
        ]
        if self.backend != "openvino":
            key = TORCH if self.backend == "pytorch" else ORT
            value = f'value {{ string_value: "{self.threads}" }}'
            lines.append(f'parameters {{ key: "{key}" {value} }}')
        else:
            lines.append('default_model_filename: "model.onnx"')
        (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
        for file, content in self.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)


def x(dims: Any, kind: str = "FP32", more: str = "", name: str = "x") -> str:
    return f'input {{ name: "{name}" data_type: TYPE_{kind} dims: {dims} {more} }}\n'


def y(dims: Any, kind: str = "FP32", more: str = "", name: str = "y") -> str:
    return f'output {{ name: "{name}" data_type: TYPE_{kind} dims: {dims} {more} }}\n'


XY = x([4]) + y([4])
EMPTY = "reshape { shape: [] }"
FACTOR = {"x": ("FP32", [1, 4], FOUR), "factor": ("FP32", [1], [3.0])}
SCALED = {"y": [3.0, 6.0, 9.0, 12.0]}
LABELLED = x([4]) + y([4], more='label_filename: "labels.txt"')
WARM_UP = (
    'model_warmup { name: "first" batch_size: 1 inputs { key: "z" value { data_type: TYPE_FP32 '
    "dims: [4] zero_data: true } } }"
)


def factor(dims: Any, more: str = "") -> str:
    return x([-1, 4]) + x(dims, more=more, name="factor") + y([-1, 4])


def summed(dims: Any, more: str = "") -> str:
    return x([-1, 4]) + y(dims, more=more, name="total")


def pair(*names: str, outputs: tuple[str, ...] = ("dif__0",)) -> str:
    given = "".join(x([2], name=name) for name in names)
    return given + "".join(y([2], name=name) for name in outputs)


def torch_case(*names: str, **named: Any) -> Case:
    """A TorchScript model, asked with [5, 5] and [-1, -1] in the order of the names."""
    values = {name: ("FP32", [1, 2], [v, v]) for name, v in zip(names, (5.0, -1.0), strict=True)}
    outputs = named.pop("outputs", ("dif__0",))
    tensors = pair(*names, outputs=outputs)
    return Case(
        tensors, named.pop("model", script(Difference)), asked=values, backend="pytorch", **named
    )


SIX, MINUS = {"dif__0": [6.0, 6.0]}, {"dif__0": [-6.0, -6.0]}
DIMS = "must specify 'dims'"
SCALAR = "cannot have empty reshape for non-batching model as scalar tensors are not supported"

CASES = {
    # ONNX scalars
    "batched_scalar_output": Case(
        x([4]) + y([1], more=EMPTY, name="total"), total, "a scalar", "max_batch_size: 0"
    ),
    "scalar_input": Case(factor([1]), scaled, batch=0, answer=SCALED, asked=FACTOR),
    "scalar_input_no_dims": Case(factor([]), scaled, DIMS, "dims: [1]", batch=0),
    "scalar_input_reshape": Case(factor([1], EMPTY), scaled, SCALAR, "dims: [1]", batch=0),
    "scalar_output": Case(
        summed([1]),
        total,
        batch=0,
        answer={"total": [36.0]},
        asked={"x": ("FP32", [2, 4], [1.0, 2, 3, 4, 5, 6, 7, 8])},
    ),
    "scalar_output_no_dims": Case(summed([]), total, DIMS, "dims: [1]", batch=0),
    "scalar_output_reshape": Case(summed([1], EMPTY), total, SCALAR, "dims: [1]", batch=0),
    # TorchScript names
    "dict_input": torch_case("plus", "minus", model=script(TakesDictionary), answer=SIX),
    "dict_output": torch_case(
        "first", "second", model=script(GivesDictionary), finds="returns Dict", fix="tuple"
    ),
    "dict_output_names": torch_case(
        "first",
        "second",
        model=script(GivesDictionary),
        outputs=("sum", "dif"),
        finds="returns Dict",
        fix="tuple",
    ),
    "inputs_by_order": torch_case("LEFT", "RIGHT", answer=SIX),
    "inputs_from_one": torch_case("I__1", "I__2", finds="begin at 0", fix="I__0, I__1"),
    "inputs_mixed": torch_case("OTHER", "second", answer=SIX),
    "inputs_mixed_turned": torch_case("second", "OTHER", answer=SIX),
    "inputs_named_and_numbered": torch_case("second", "LEFT__0", answer=SIX),
    "inputs_named_turned": torch_case("second", "first", answer=MINUS),
    "inputs_twice_zero": torch_case("L__0", "R__0", finds="none comes twice", fix="L__0, R__1"),
    "output_number_too_high": torch_case(
        "first", "second", outputs=("dif__1",), finds="has 1 outputs", fix="dif__0"
    ),
    "outputs_by_order_one_too_many": torch_case(
        "first",
        "second",
        model=script(Both),
        outputs=("sum__0", "dif__1", "more"),  # one without a number: all go by order
        finds="has 2 outputs",
        fix="sum__0, dif__1, more__2",
    ),
    "outputs_by_order": torch_case(
        "first",
        "second",
        model=script(Both),
        outputs=("sum", "dif"),
        answer={"sum": [4.0, 4.0], "dif": [6.0, 6.0]},
    ),
    "outputs_twice_zero": torch_case(
        "first",
        "second",
        model=script(Both),
        outputs=("sum__0", "dif__0"),
        finds="same number twice",
        fix="sum__0, dif__1",
    ),
    "two_separators": torch_case("in__a__1", "in__b__0", answer=SIX),
    # Dims
    "input_free_where_fixed": Case(x([-1]) + y([4]), finds="[-1,-1]", fix="dims: [4]"),
    "output_fixed_batch_where_free": Case(
        x([1, 4]) + y([1, 4]), finds="shape [1,4]", fix="dims: [-1, 4]", batch=0
    ),
    "output_fixed_where_free": Case(XY, twice(width="w"), "tensor 'y'", "dims: [-1]"),
    "output_free_where_fixed": Case(x([4]) + y([-1]), finds="tensor 'y'", fix="dims: [4]"),
    "input_fixed_where_free": Case(x([4]) + y([-1]), twice(width="w"), answer=TWICE),
    "zipmap_listed": Case(
        x([2]) + y([1], "INT64", EMPTY, "label") + y([2], name="probabilities"),
        flowers,
        "ONNX_TYPE_SEQUENCE",
        "zipmap=False",
    ),
    "zipmap_not_listed": Case(
        x([2]) + y([1], "INT64", EMPTY, "label"), flowers, "ONNX_TYPE_SEQUENCE", "zipmap=False"
    ),
    # What check did not see
    "bf16": Case(
        x([4], "BF16") + y([4], "BF16"), twice("BFLOAT16"), "unsupported datatype", "FP32"
    ),
    "decoupled": Case(
        XY,
        finds="decoupled model is not supported",
        fix="native",
        more="model_transaction_policy { decoupled: true }",
        runtimes=("stand-in",),
    ),
    "external_weights_missing": Case(XY, outside, "model.onnx.data", "put model.onnx.data"),
    "graph_level_3": Case(
        XY, more="optimization { graph { level: 3 } }", answer=TWICE, warns="level is 3"
    ),
    "kind_cpu_with_gpus": Case(
        XY,
        finds="but specifies one or more GPUs",
        fix="leave gpus",
        instances="kind: KIND_CPU gpus: [0]",
    ),
    "kind_gpu": Case(XY, finds="no GPUs are available", fix="KIND_CPU", instances="kind: KIND_GPU"),
    "kind_model": Case(XY, instances="kind: KIND_MODEL", answer=TWICE),
    "preferred_batch_size_zero": Case(
        XY,
        finds="preferred size must be positive",
        fix="1 and more",
        more="dynamic_batching { preferred_batch_size: [0] }",
    ),
    "preserve_ordering_priorities": Case(
        XY,
        finds="Only one priority level is allowed",
        fix="leave one",
        more="dynamic_batching { preserve_ordering: true priority_levels: 2 "
        "default_priority_level: 1 }",
    ),
    "ragged_batch": Case(
        x([4], more="allow_ragged_batch: true") + y([4]), finds="ragged", fix="allow_ragged_batch"
    ),
    "sequence_batching": Case(XY, more="sequence_batching { }", answer={}, status=400),
    "unknown_parameter": Case(
        XY,
        more='parameters { key: "intra_op_threads" value { string_value: "1" } }',
        answer=TWICE,
        warns="unknown parameter 'intra_op_threads'",
    ),
    "version_policy_missing_version": Case(
        XY,
        finds="at least one version must be available",
        fix="version_policy",
        more="version_policy { specific { versions: [3] } }",
    ),
    "warm_up_wrong_input": Case(XY, finds="warm-up 'first'", fix="x", more=WARM_UP),
    # What check was wrong about
    "labels_blank_last_line": Case(
        LABELLED, files={"labels.txt": b"ant\nbee\ncat\nowl\n\n"}, answer=TWICE
    ),
    "old_version_broken": Case(XY, files={"0/model.onnx": b"broken"}, answer=TWICE),
    "optional_initializer_input": Case(
        x([4]) + x([4], more="optional: true", name="offset") + y([4]),
        shift,
        batch=0,
        answer={"y": [11.0, 22.0, 33.0, 44.0]},
        asked={"x": ("FP32", [4], FOUR), "offset": ("FP32", [4], TENS)},
    ),
    "optional_initializer_left_out": Case(
        x([4]) + x([4], more="optional: true", name="offset") + y([4]),
        shift,
        batch=0,
        answer={"y": [2.0, 3.0, 4.0, 5.0]},
        asked={"x": ("FP32", [4], FOUR)},
    ),
    "output_without_shape": Case(XY, twice(shown=False), answer=TWICE),
    "thread_count_zero": Case(XY, threads="0", answer=TWICE, warns="as many threads as"),
    # Layouts, operators, labels
    "accelerator_det": Case(
        x([2, 2]) + y([1], more=EMPTY),
        operator("Det"),
        more=ACCELERATED,
        answer={"y": [-2.0]},
        asked={"x": ("FP32", [1, 2, 2], FOUR)},
    ),
    "accelerator_min_of_one": Case(
        XY,
        operator("Min"),
        more=ACCELERATED,
        answer={"y": FOUR},
        warns="intra_op_thread_count is '1', which the accelerator ignores: it takes every core",
    ),
    "accelerator_unknown_operator": Case(
        XY,
        operator("Scaler", "ai.onnx.ml", offset=[1.0] * 4, scale=[2.0] * 4),
        more=ACCELERATED,
        answer={"y": [0.0, 2.0, 4.0, 6.0]},
        logs="OpenVINO does not take this model, ONNX Runtime's CPU provider does",
    ),
    "labels_bom": Case(
        LABELLED,
        files={"labels.txt": "\ufeffant\nbee\ncat\nowl\n".encode()},
        warns="byte order mark",
        answer=TWICE,
    ),
    "labels_crlf": Case(
        LABELLED,
        files={"labels.txt": b"ant\r\nbee\r\ncat\r\nowl\r\n"},
        warns="has \\r in it",
        answer=TWICE,
    ),
    "onnx_folder": Case(
        XY,
        lambda path: outside(path, with_weights=True),
        answer={"y": [2.0, 6.0, 12.0, 20.0]},
    ),
    "openvino_double_output": Case(
        x([4]) + y([4], "FP64"),
        backend="openvino",
        finds="unsupported datatype TYPE_FP64 for output 'y'",
        fix="FP32",
    ),
    "openvino_min_of_one": Case(
        x([-1, 4]) + y([-1, 4]),
        operator("Min"),
        backend="openvino",
        batch=0,
        answer={"y": FOUR},
        runtimes=("stand-in",),
    ),
    "openvino_min_of_one_natively": Case(
        x([-1, 4]) + y([-1, 4]),
        operator("Min"),
        "Port for tensor name x was not found",
        "onnxruntime backend",
        backend="openvino",
        batch=0,
        runtimes=("native",),
    ),
}
