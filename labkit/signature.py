"""What a model file says about its own inputs and outputs."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError

# The newest formats that ONNX Runtime 1.19 reads, which is the one in Triton 24.10.
MAX_IR_VERSION = 10
MAX_OPSET = 21


class UnreadableModel(LabError):
    """A model file cannot be read in the format that its name says."""


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
        name: As the file has it; empty where the format keeps none.
        dtype: Triton's name, such as `TYPE_FP32`; empty where the format keeps none.
        dims: Sizes with the batch axis first; -1 where any size is taken. None when unknown.
        aliases: Further names of the same tensor.
    """

    name: str
    dtype: str
    dims: tuple[int, ...] | None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model file, and the versions of its format where it has any."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ir_version: int | None = None
    opset: int | None = None


_ONNX_TYPES = {  # onnx.TensorProto.DataType name → Triton's
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "BFLOAT16": "TYPE_BF16",
    "DOUBLE": "TYPE_FP64",
    "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
    **{
        f"{sign}INT{bits}": f"TYPE_{sign}INT{bits}"
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
}
_OPENVINO_TYPES = {
    "f32": "TYPE_FP32",
    "f16": "TYPE_FP16",
    "bf16": "TYPE_BF16",
    "f64": "TYPE_FP64",
    "boolean": "TYPE_BOOL",
    "string": "TYPE_STRING",
    **{f"i{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}


def read_signature(path: Path) -> Signature | None:
    """Read inputs and outputs of a model file.

    Reading a TorchScript file runs code that is inside it: call this only on files you trust, or
    in a sandbox.

    Args:
        path: `.onnx`, `.xml` (OpenVINO IR, with its `.bin` beside it) or `.pt` (TorchScript).

    Returns:
        The signature; None for formats that do not tell (`.plan`, `.py`).

    Raises:
        UnreadableModel: the file is damaged or of another format.
    """
    readers = {".onnx": _read_onnx, ".xml": _read_openvino, ".pt": _read_torchscript}
    reader = readers.get(path.suffix)
    if reader is None:
        return None
    try:
        return reader(path)
    except Exception as error:  # each library has error types of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnreadableModel(f"{path.name} cannot be read as {path.suffix}: {reason}") from error


def _read_onnx(path: Path) -> Signature:
    """Read an ONNX graph, without its weights; constants listed as inputs are left out."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    constants = {initializer.name for initializer in model.graph.initializer}

    def tensor(value: "onnx.ValueInfoProto") -> Tensor:
        kind = value.type.tensor_type
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        return Tensor(value.name, _ONNX_TYPES.get(name, name), dims)

    if not model.graph.node:
        raise ValueError("the graph has no operators")
    opset = next((entry.version for entry in model.opset_import if not entry.domain), None)
    return Signature(
        tuple(tensor(value) for value in model.graph.input if value.name not in constants),
        tuple(tensor(value) for value in model.graph.output),
        ir_version=model.ir_version,
        opset=opset,
    )


def _read_openvino(path: Path) -> Signature:
    """Read an OpenVINO IR."""
    import openvino

    if not path.with_suffix(".bin").is_file():
        raise FileNotFoundError(f"{path.with_suffix('.bin').name} is missing beside it")
    model = openvino.Core().read_model(path)

    def tensor(port: "openvino.Output") -> Tensor:
        dims = tuple(-1 if d.is_dynamic else d.get_length() for d in port.get_partial_shape())
        name, *aliases = sorted(port.get_names()) or [""]
        kind = port.get_element_type().get_type_name()
        return Tensor(name, _OPENVINO_TYPES.get(kind, kind), dims, tuple(aliases))

    return Signature(tuple(map(tensor, model.inputs)), tuple(map(tensor, model.outputs)))


def _read_torchscript(path: Path) -> Signature:
    """Read the arguments of `forward`; TorchScript keeps neither dtypes nor shapes of tensors."""
    # PyTorch's C++ side writes a notice to stderr for every quantized file; errors still show.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, Triton is not
        module = torch.jit.load(str(path), map_location="cpu")
    schema = module.forward.schema
    arguments = [argument.name for argument in schema.arguments[1:]]  # the first is `self`
    outputs = tuple(Tensor(value.name, "", None) for value in schema.returns)
    return Signature(tuple(Tensor(name, "", None) for name in arguments), outputs)
