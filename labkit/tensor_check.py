"""Findings about the tensors of a model: does the configuration fit the model file."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as pb

from labkit.signature import MAX_IR_VERSION, MAX_OPSET, Signature, Tensor

ERROR, WARNING = "error", "warning"
_INDEXED_NAME = re.compile(r".+__\d+")  # how the pytorch backend names tensors


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        model: Folder of the model; empty for the repository itself.
        severity: `error`: Triton refuses it or answers wrongly; `warning`: it works, badly.
        message: What was found and what was expected.
        fix: What to do.
    """

    model: str
    severity: str
    message: str
    fix: str

    def __str__(self) -> str:
        """One line, as `labkit check` prints it."""
        return f"{self.model or '(repository)'}: {self.severity}: {self.message} → {self.fix}"


def check_signature(config: pb.ModelConfig, name: str, signature: Signature) -> Iterator[Finding]:
    """Names, dtypes and shapes of the configuration are those of the file."""
    if signature.ir_version is not None and signature.ir_version > MAX_IR_VERSION:
        yield Finding(
            name,
            ERROR,
            f"the file has ONNX IR version {signature.ir_version}; the server's ONNX Runtime "
            f"reads up to {MAX_IR_VERSION}",
            f"export with IR version ≤ {MAX_IR_VERSION}",
        )
    if signature.opset is not None and signature.opset > MAX_OPSET:
        yield Finding(
            name,
            ERROR,
            f"the file has opset {signature.opset}; the server reads up to {MAX_OPSET}",
            "export with opset_version=17",
        )
    by_position = config.backend == "pytorch"
    batched = config.max_batch_size > 0
    for title, wanted, had in (
        ("input", config.input, signature.inputs),
        ("output", config.output, signature.outputs),
    ):
        if by_position:
            yield from _check_positions(name, title, wanted, had)
            continue
        in_file = {name: tensor for tensor in had for name in (tensor.name, *tensor.aliases)}
        for tensor in wanted:
            if tensor.name in in_file:
                yield from _check_tensor(name, title, tensor, in_file[tensor.name], batched)
            else:
                yield Finding(
                    name,
                    ERROR,
                    f"{title} {tensor.name!r} is not in the model file",
                    f"the file has: {', '.join(tensor.name for tensor in had)}",
                )
        if title == "input":
            listed = {in_file[tensor.name].name for tensor in wanted if tensor.name in in_file}
            for missing in sorted({tensor.name for tensor in had} - listed):
                yield Finding(
                    name, ERROR, f"the model file needs input {missing!r}", "add it to the config"
                )


def _check_positions(
    name: str, title: str, wanted: Iterable[pb.ModelInput], had: tuple[Tensor, ...]
) -> Iterator[Finding]:
    """Names for the pytorch backend: `<name>__<index>`, or an argument of `forward`."""
    arguments = {tensor.name for tensor in had} if title == "input" else set()
    tensors = list(wanted)
    for tensor in tensors:
        if tensor.name not in arguments and not _INDEXED_NAME.fullmatch(tensor.name):
            yield Finding(
                name,
                ERROR,
                f"{title} {tensor.name!r} cannot be matched by the pytorch backend",
                f"name it {tensor.name}__0, by its position",
            )
    if title == "input" and len(tensors) != len(had):
        yield Finding(
            name,
            ERROR,
            f"{len(tensors)} inputs are listed, forward takes {len(had)}",
            f"list: {', '.join(tensor.name for tensor in had)}",
        )


def _check_tensor(
    name: str, title: str, wanted: pb.ModelInput, had: Tensor, batched: bool
) -> Iterator[Finding]:
    """One tensor of the configuration against the one of that name in the file."""
    label = f"{title} {wanted.name!r}"
    dtype = pb.DataType.Name(wanted.data_type)
    if had.dtype and dtype != had.dtype:
        yield Finding(
            name, ERROR, f"{label} is {dtype}, the file has {had.dtype}", f"write {had.dtype}"
        )
    if had.dims is None:
        return
    if batched and (not had.dims or had.dims[0] != -1):
        size = had.dims[0] if had.dims else "none"
        yield Finding(
            name,
            ERROR,
            f"max_batch_size > 0, but the file's {label} has a fixed first axis ({size})",
            "export with a dynamic batch axis, or set max_batch_size: 0 and write all dims",
        )
        return
    expected = had.dims[1:] if batched else had.dims
    # What the model sees is the shape that Triton makes of dims, where the configuration has one.
    field = "reshape" if wanted.HasField("reshape") else "dims"
    given = tuple(wanted.reshape.shape if field == "reshape" else wanted.dims)
    fits = len(given) == len(expected) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(given, expected, strict=True)
    )
    if not fits:
        hint = " (the batch axis is not written when max_batch_size > 0)" if batched else ""
        yield Finding(
            name,
            ERROR,
            f"{label} has {field} {list(given)}, the file has {list(expected)}",
            f"write {_written(field, expected)}{hint}",
        )


def _written(field: str, sizes: tuple[int, ...]) -> str:
    """Return sizes as the configuration has them."""
    return f"reshape {{ shape: {list(sizes)} }}" if field == "reshape" else f"dims: {list(sizes)}"
