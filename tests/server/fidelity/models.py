"""The models of the fidelity test, each small: linear, two inputs, scalars, free axes, strings."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

WEIGHT = (np.random.default_rng(0).standard_normal((3072, 10)) * 0.02).astype(np.float32)
IMAGE, LOGITS = ("input", "FLOAT", ["batch", 3, 32, 32]), ("logits", "FLOAT", ["batch", 10])
LINEAR = (("Flatten", ["input"], ["flat"]), ("MatMul", ["flat", "weight"], ["logits"]))
Port = tuple[str, str, list[int | str]]

# Name → operators, inputs, outputs.
ONNX: dict[str, tuple[tuple[tuple[str, list[str], list[str]], ...], list[Port], list[Port]]] = {
    "base": (LINEAR, [IMAGE], [LOGITS]),
    "fixed4": (LINEAR, [("input", "FLOAT", [4, 3, 32, 32])], [("logits", "FLOAT", [4, 10])]),
    "two_out": (
        (*LINEAR, ("Softmax", ["logits"], ["probs"])),
        [IMAGE],
        [LOGITS, ("probs", "FLOAT", ["batch", 10])],
    ),
    "two_in": (
        (("Add", ["a", "b"], ["y"]),),
        [("a", "FLOAT", ["batch", 4]), ("b", "FLOAT", ["batch", 4])],
        [("y", "FLOAT", ["batch", 4])],
    ),
    "scalar_in": (
        (("Mul", ["x", "s"], ["y"]),),
        [("x", "FLOAT", ["n", 4]), ("s", "FLOAT", [])],
        [("y", "FLOAT", ["n", 4])],
    ),
    "scalar_out": (
        (("ReduceSum", ["x"], ["y"]),),
        [("x", "FLOAT", ["n", 4])],
        [("y", "FLOAT", [])],
    ),
    "vec": (
        (("Add", ["x", "x"], ["y"]),),
        [("x", "FLOAT", ["batch"])],
        [("y", "FLOAT", ["batch"])],
    ),
    "dynout": (
        (("NonZero", ["x"], ["t"]), ("Transpose", ["t"], ["y"])),
        [("x", "FLOAT", ["batch", 4])],
        [("y", "INT64", ["k", 2])],
    ),
    "dynw": (
        (("Add", ["x", "x"], ["y"]),),
        [("x", "FLOAT", ["batch", "w"])],
        [("y", "FLOAT", ["batch", "w"])],
    ),
    "gather": (
        (("Gather", ["weight", "i"], ["y"]),),
        [("i", "INT64", ["batch", 2])],
        [("y", "FLOAT", ["batch", 2, 10])],
    ),
    "string": (
        (("Identity", ["x"], ["y"]),),
        [("x", "STRING", ["batch", 1])],
        [("y", "STRING", ["batch", 1])],
    ),
}
AS_IR = ("base", "fixed4", "two_out", "two_in", "scalar_in", "scalar_out", "vec", "dynw")


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(1) @ self.weight


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class Dictionary(nn.Module):
    def forward(self, d: dict[str, Tensor]) -> Tensor:
        return d["p"] - d["q"]


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class TakesList(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] - xs[1]


SCRIPTED = {
    "two_in": TwoInputs,
    "two_out": TwoOutputs,
    "dict_in": Dictionary,
    "nobatch": Total,
    "list_in": TakesList,
}


def write_models(folder: Path) -> Path:
    """Write every file that the table of configurations names."""
    folder.mkdir(parents=True)
    for name in ONNX:
        _save_onnx(folder / f"{name}.onnx", name)
    for name in AS_IR:
        model = openvino.convert_model(folder / f"{name}.onnx")
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Linear().eval(), torch.zeros(2, 3, 32, 32)).save(folder / "base.pt")
        for name, module in SCRIPTED.items():
            torch.jit.script(module().eval()).save(folder / f"{name}.pt")
    whole = (folder / "base.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.bin").write_bytes((folder / "base.bin").read_bytes()[:100])
    (folder / "corrupt.onnx").write_bytes(b"\x08\x08this is not onnx" * 20)
    (folder / "corrupt.xml").write_text("<net><broken")
    (folder / "corrupt.pt").write_bytes(b"PK\x03\x04 nope" * 30)
    (folder / "empty.bin").touch()
    return folder


def _save_onnx(path: Path, name: str) -> None:
    operators, inputs, outputs = ONNX[name]
    nodes = [helper.make_node(kind, given, made) for kind, given, made in operators]
    if name == "scalar_out":
        nodes[0].attribute.append(helper.make_attribute("keepdims", 0))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, t, s in outputs],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
