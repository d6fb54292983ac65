"""Inside the sandbox: the bytes of a model's weights by type, which is what makes it INT8."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def count_weights(path: Path) -> dict[str, int]:
    """Count what a file computes with: numbers of `int8`, of `float` (more bits), and `unknown`.

    Eight bits count as `int8` only where an operator multiplies by them. More bits count wherever
    an operator is given them, as a constant or an attribute: which of them are weights, nobody can
    tell from a graph that somebody has composed to hide it.
    """
    found = {"int8": 0, "float": 0, "unknown": 0}
    for bits, count in WEIGHTS[path.suffix](path):
        kind = "unknown" if bits == 0 else "int8" if bits <= 8 else "float"
        found[kind] += count
    return found


def onnx_weights(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (bits, elements) of what an ONNX file computes with; 0 bits where that is not clear."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        for value in node.attribute:
            if value.name == "value" and node.op_type == "Constant" and value.type == value.TENSOR:
                tensors[node.output[0]] = value.t
                continue
            count = len(value.floats) + len(value.ints) + len(value.s)
            count += sum(map(len, value.strings))
            yield 32, count + sum(int(np.prod(t.dims)) for t in (value.t, *value.tensors))
            if value.type in ONNX_HIDES:
                yield 0, 1  # a loop or branch: what is in it is not looked at
        if node.op_type == "BitCast":
            yield 0, 1
    if model.functions or graph.sparse_initializer:
        yield 0, 1
    given = {name for node in graph.node for name in node.input}
    steps = [(node.op_type, list(node.input), list(node.output)) for node in graph.node]
    multiplied = behind(steps, ONNX_MULTIPLIES, set(tensors))
    for name in given & set(tensors):
        kind, count = tensors[name].data_type, int(np.prod(tensors[name].dims))
        text = kind == TensorProto.STRING
        bits = 0 if text else 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
        if bits == 0 or bits > 8 or name in multiplied:
            yield bits, count


def behind(
    steps: list[tuple[str, list[str], list[str]]], multiplies: frozenset[str], constants: set[str]
) -> set[str]:
    """Return the constants of which the operands are made that depend on no input.

    Args:
        steps: Kind, inputs and outputs of each operator, in the order in which they run.
        multiplies: The kinds that multiply by weights.
        constants: Their names.
    """
    made: dict[str, set[str]] = {name: {name} for name in constants}
    found: set[str] = set()
    for kind, inputs, outputs in steps:
        sources = [made.get(name) for name in inputs if name]
        if kind in multiplies:
            found.update(*(source for source in sources if source))
        elif all(source is not None for source in sources):
            for name in outputs:
                made.setdefault(name, set().union(*(source for source in sources if source)))
    return found


def torch_weights(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (bits, elements) of what a TorchScript file computes with; 0 where it is not clear."""
    import torch

    model = torch.jit.load(str(path))
    graph = model.inlined_graph
    known: dict[str, Any] = {next(graph.inputs()).debugName(): model}
    for node in graph.nodes():
        if node.kind() in TORCH_HIDES or any(
            node.kindOf(name) in ("g", "gs") for name in node.attributeNames()
        ):
            yield 0, 1
        if node.kind() == "prim::Constant":
            yield from torch_sizes(node.output().toIValue())
        if node.kind() == "prim::GetAttr":
            held = getattr(known.get(node.inputsAt(0).debugName()), node.s("name"), ...)
            known[node.output().debugName()] = held
            if not isinstance(held, torch.nn.Module):
                yield from torch_sizes(held)


def torch_sizes(held: Any) -> Iterator[tuple[int, int]]:
    """Yield (bits, elements) of a value that a TorchScript file holds."""
    import torch

    if hasattr(held, "unpack"):  # weights and bias of an operator with eight bits
        held = held.unpack()
    if isinstance(held, torch.Tensor) and held.is_quantized:
        yield 8 * held.element_size(), held.numel()
        if held.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            yield 32, held.q_per_channel_scales().numel()
    elif isinstance(held, torch.Tensor):  # of whole numbers too: bytes may be read as others
        yield 32, held.numel()
    elif isinstance(held, list | tuple):
        for entry in held:
            yield from torch_sizes(entry)
    elif isinstance(held, str):
        yield 32, len(held)
    elif held is None or isinstance(held, bool | int | float | torch.device):
        yield 32, 1
    else:
        yield 0, 1


def openvino_weights(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (bits, elements) of what an OpenVINO file computes with; 0 where it is not clear."""
    import openvino

    nodes = openvino.Core().read_model(path).get_ordered_ops()
    steps, constants = [], {}
    for node in nodes:
        kind, name = node.get_type_name(), str(node.get_name())
        inputs = [str(value.get_node().get_name()) for value in node.input_values()]
        if kind == "Constant":
            constants[name] = node
        else:
            # What has no input of its own, such as a parameter, is no constant.
            steps.append((kind, inputs or ["?"], [name]))
            values = node.get_attributes().values()
            yield 32, sum(len(v) for v in values if isinstance(v, str | list | tuple))
        if kind in ("If", "Loop", "TensorIterator"):
            yield 0, 1
    multiplied = behind(steps, OPENVINO_MULTIPLIES, set(constants))
    for name, node in constants.items():
        bits, count = node.get_element_type().get_bitwidth(), int(np.prod(node.get_output_shape(0)))
        if bits > 8 or name in multiplied:
            yield bits, count


WEIGHTS = {".onnx": onnx_weights, ".pt": torch_weights, ".xml": openvino_weights}
ONNX_HIDES = (5, 10, 11, 12)  # AttributeProto: GRAPH, GRAPHS, SPARSE_TENSOR, SPARSE_TENSORS
ONNX_MULTIPLIES = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger", "QGemm", "FusedConv", "FusedMatMul", "FusedGemm", "MatMulNBits", "Einsum"}
)  # fmt: skip
TORCH_HIDES = ("prim::CallMethod", "prim::CallFunction", "prim::If", "prim::Loop", "prim::fork")
OPENVINO_MULTIPLIES = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul", "Einsum"}
)
