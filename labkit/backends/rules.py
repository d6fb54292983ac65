"""Which configurations a model file fits: the native backends' rules, in their words.

The three functions `match_…` are all that decides, for the stand-ins as for `labkit check`.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from labkit.backends.settings import (
    DTYPES,
    INTERNAL,
    UNSUPPORTED,
    ConfigError,
    Settings,
    Signature,
    Tensor,
)

# Parameter names that the native backends read; others they ignore in silence.
KNOWN_PARAMETERS = {
    "onnxruntime": (
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "share_session_between_instances",
    ),
    "openvino": (
        "INFERENCE_NUM_THREADS",
        "COMPILATION_NUM_THREADS",
        "HINT_BF16",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "ENABLE_BATCH_PADDING",
        "SKIP_OV_DYNAMIC_BATCHSIZE",
        "RESHAPE_IO_LAYERS",
        "TARGET_DEVICE",
    ),
    "pytorch": (
        "INFERENCE_MODE",
        "DISABLE_OPTIMIZED_EXECUTION",
        "INTRA_OP_THREAD_COUNT",
        "INTER_OP_THREAD_COUNT",
        "ENABLE_WEIGHT_SHARING",
        "ENABLE_CACHE_CLEANING",
        "ENABLE_JIT_EXECUTOR",
        "ENABLE_JIT_PROFILING",
        "ENABLE_TENSOR_FUSER",
        "ENABLE_NVFUSER",
    ),
}
GRAPH_LEVELS = (-1, 0, 1, 2)
TORCH_TYPES = tuple(name for name in DTYPES if not re.fullmatch(r"TYPE_UINT(16|32|64)", name))
# What OpenVINO cannot exchange with Triton; it converts between all others.
OPENVINO_TYPES = DTYPES.keys() - {"TYPE_STRING", "TYPE_FP64"}
DEFAULT_MAX_BATCH_SIZE = 4  # Triton's, for a model that completes its own configuration
_NUMBERED = re.compile(r"(?:(?!__).)*__(\d*)", re.DOTALL)  # what follows the first __ is a number


def shown(shape: Iterable[int]) -> str:
    """Return a shape as Triton prints it."""
    return f"[{','.join(map(str, shape))}]"


def complete(settings: Settings, signature: Signature, backend: str) -> dict[str, Any]:
    """Return the fields that the native backend adds to a configuration without them.

    Raises:
        ConfigError: The native backend refuses to complete it.
    """
    missing = {"input": not settings.inputs, "output": not settings.outputs}
    if backend == "pytorch" or not any(missing.values()):
        return {}
    tensors = (*signature.inputs, *signature.outputs)
    added: dict[str, Any] = {}
    batch = settings.max_batch_size
    if backend == "onnxruntime":
        can_batch = all(t.shape and t.shape[0] == -1 for t in tensors)
        if can_batch:
            batch = added["max_batch_size"] = batch or DEFAULT_MAX_BATCH_SIZE
            if batch > 1 and not settings.config.keys() & {"dynamic_batching", "sequence_batching"}:
                added["dynamic_batching"] = {}
        elif batch:
            raise ConfigError(
                f"autofill failed for model '{settings.model}': model does not support batching "
                "while non-zero max_batch_size is specified",
                "write max_batch_size: 0, or export the model with a dynamic batch axis",
            )
    for kind, found in (("input", signature.inputs), ("output", signature.outputs)):
        if missing[kind]:
            ordered = sorted(found, key=lambda t: t.name) if backend == "onnxruntime" else found
            added[kind] = [_entry(tensor, batch, backend) for tensor in ordered]
    return added


def _entry(tensor: Tensor, batch: int, backend: str) -> dict[str, Any]:
    dims = list((tensor.shape or ())[bool(batch) :])
    if backend == "openvino" and -1 in (tensor.shape or ()):
        dims = [-1] * len(dims)
    return {"name": tensor.name, "data_type": tensor.dtype, "dims": dims or [1]}


def match_onnx(settings: Settings, signature: Signature) -> None:
    """Hold a configuration against an ONNX file, as the onnxruntime backend does.

    Raises:
        ConfigError: It does not fit.
    """
    for tensor in (*signature.inputs, *signature.outputs):
        if tensor.dtype is not None and not tensor.dtype.startswith("TYPE_"):
            raise ConfigError(
                f"Unsupported ONNX Type '{tensor.dtype}' for I/O '{tensor.name}', expected "
                "'ONNX_TYPE_TENSOR'.",
                "export the model so that it gives tensors only (a classifier: zipmap=False)",
                UNSUPPORTED,
            )
    required = [tensor for tensor in settings.inputs if not tensor.optional]
    _count(settings, len(required), signature.inputs)
    known = {t.name: t for t in (*signature.initializers, *signature.inputs)}
    for tensor in settings.inputs:
        if tensor.optional and settings.batched:
            raise ConfigError(
                f"unable to load model '{settings.model}', optional input '{tensor.name}' is not "
                "supported for models that support batching",
                "leave optional out, or write max_batch_size: 0",
            )
        found = _found(tensor, known, "input")
        _onnx_dtype(settings, tensor, found, "input")
        if tensor.ragged:
            _refuse_ragged(settings, tensor, found)
            continue
        _onnx_dims(settings, tensor, found, exact=False)
    known = {tensor.name: tensor for tensor in signature.outputs}
    for tensor in settings.outputs:
        found = _found(tensor, known, "output")
        _onnx_dtype(settings, tensor, found, "output")
        _onnx_dims(settings, tensor, found, exact=True)


def _count(settings: Settings, listed: int, inputs: Sequence[Tensor]) -> None:
    if listed != len(inputs):
        raise ConfigError(
            f"unable to load model '{settings.model}', configuration expects {listed} inputs, "
            f"model provides {len(inputs)}",
            f"list exactly: {', '.join(tensor.name for tensor in inputs)}",
        )


def _refuse_optional(settings: Settings) -> None:
    for tensor in settings.inputs:
        if tensor.optional:
            raise ConfigError(
                f"'optional' is set to true for input '{tensor.name}' while the backend model "
                "doesn't support optional input",
                "leave optional out",
            )


def _found(tensor: Tensor, known: dict[str, Tensor], kind: str) -> Tensor:
    if tensor.name not in known:
        names = ", ".join(sorted(known))
        raise ConfigError(
            f"unexpected inference {kind} '{tensor.name}', allowed {kind}s are: {names}",
            f"use the name that the model file has: {names}",
        )
    return known[tensor.name]


def _known_dtype(settings: Settings, tensor: Tensor, kind: str, allowed: Collection[str]) -> None:
    if tensor.dtype not in allowed:
        raise ConfigError(
            f"unsupported datatype {tensor.dtype} for {kind} '{tensor.name}' for model "
            f"'{settings.model}'",
            "export the model with another type, such as FP32 or FP16",
            INTERNAL,
        )


def _onnx_dtype(settings: Settings, tensor: Tensor, found: Tensor, kind: str) -> None:
    _known_dtype(settings, tensor, kind, DTYPES)
    if found.dtype is not None and tensor.dtype != found.dtype:
        raise ConfigError(
            f"unable to load model '{settings.model}', configuration expects datatype "
            f"{tensor.dtype} for {kind} '{tensor.name}', model provides {found.dtype}",
            f"write data_type: {found.dtype}",
        )


def _refuse_ragged(settings: Settings, tensor: Tensor, found: Tensor) -> None:
    if found.shape != (-1,):
        raise ConfigError(
            f"unable to load model '{settings.model}', configuration expects model provides input "
            f"with shape [-1]  for ragged input '{tensor.name}', model provides "
            f"{shown(found.shape or ())}",
            "leave allow_ragged_batch out",
        )
    if settings.native:
        return
    raise ConfigError(
        f"model '{settings.model}': allow_ragged_batch of input '{tensor.name}' is not supported "
        "by the stand-in backends",
        "leave allow_ragged_batch out, or serve with native backends",
        UNSUPPORTED,
    )


def _onnx_dims(settings: Settings, tensor: Tensor, found: Tensor, exact: bool) -> None:
    dims, shape = tensor.shape or (), found.shape
    if shape is None:
        return
    if shape == ():
        if settings.batched:
            raise ConfigError(
                f"model '{settings.model}', tensor '{tensor.name}': a scalar, one for the whole "
                "batch, which cannot be split into the rows of requests",
                "write max_batch_size: 0, all dims of the other tensors, and dims: [1] for it",
                ours=True,
            )
        if any(size != 1 for size in dims):
            raise ConfigError(
                f"unable to load model '{settings.model}', scalar tensor '{tensor.name}', should "
                "only provide 1 in the model configuration when the model doesn't support "
                f"batching. Model configuration provided: {shown(dims)}.",
                "write dims: [1]",
            )
        return
    if settings.batched and shape[0] != -1:
        raise ConfigError(
            f"model '{settings.model}', tensor '{tensor.name}': for the model to support batching "
            "the shape should have at least 1 dimension and the first dimension must be -1; but "
            f"shape expected by the model is {shown(shape)}",
            "export the model with a dynamic batch axis, or write max_batch_size: 0 and all dims",
        )
    full = (-1, *dims) if settings.batched else dims
    fits = len(full) == len(shape) and all(
        size == theirs or (theirs == -1 and not exact)
        for size, theirs in zip(full, shape, strict=True)
    )
    if not fits:
        raise _wrong_dims(settings, tensor, shape, full)


def _wrong_dims(
    settings: Settings, tensor: Tensor, shape: Sequence[int], full: Sequence[int]
) -> ConfigError:
    note = (
        "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor "
        "shape, making complete shape "
        if settings.batched
        else "shape "
    )
    expected = list(shape[settings.batched :])
    entries = [*settings.config.get("input", []), *settings.config.get("output", [])]
    reshaped = any(e["name"] == tensor.name and "reshape" in e for e in entries)
    written = f"reshape {{ shape: {expected} }}" if reshaped else f"dims: {expected}"
    if not expected and settings.batched and not reshaped:
        written = "dims: [1] reshape { shape: [] }"
    hint = ", without the batch axis, because max_batch_size > 0" if settings.batched else ""
    return ConfigError(
        f"model '{settings.model}', tensor '{tensor.name}': the model expects {len(shape)} "
        f"dimensions (shape {shown(shape)}) but the model configuration specifies {len(full)} "
        f"dimensions ({note}{shown(full)})",
        f"write {written}{hint}",
    )


def match_openvino_inputs(settings: Settings, signature: Signature) -> None:
    """Hold the inputs against an OpenVINO model, before its batch is fixed.

    Raises:
        ConfigError: They do not fit.
    """
    _refuse_optional(settings)
    _count(settings, len(settings.inputs), signature.inputs)
    known = {name: t for t in signature.inputs for name in (t.name, *t.aliases)}
    for tensor in settings.inputs:
        found = _found(tensor, known, "input")
        _known_dtype(settings, tensor, "input", OPENVINO_TYPES)
        _openvino_dims(settings, tensor, found, exact=False)


def match_openvino_outputs(settings: Settings, outputs: Iterable[Tensor]) -> None:
    """Hold the outputs against an OpenVINO model, after its batch was fixed.

    Raises:
        ConfigError: They do not fit.
    """
    known = {name: t for t in outputs for name in (t.name, *t.aliases)}
    for tensor in settings.outputs:
        found = _found(tensor, known, "output")
        _known_dtype(settings, tensor, "output", OPENVINO_TYPES)
        _openvino_dims(settings, tensor, found, exact=True)


def _openvino_dims(settings: Settings, tensor: Tensor, found: Tensor, exact: bool) -> None:
    """Compare shapes: a fixed batch is compiled, so a batched input's first axis is free."""
    dims, shape = tensor.shape or (), found.shape
    if shape is None:
        return
    full = (settings.max_batch_size, *dims) if settings.batched else dims
    fits = len(full) == len(shape) and all(
        theirs in (-1, size) or (settings.batched and not exact and (axis == 0 or size == -1))
        for axis, (size, theirs) in enumerate(zip(full, shape, strict=True))
    )
    if not fits:
        raise _wrong_dims(settings, tensor, shape, full)


def match_torch(settings: Settings, arguments: Sequence[Tensor]) -> list[str]:
    """Return the configured inputs in the order of `forward`'s arguments, by Triton's three rules.

    Args:
        settings: The configuration.
        arguments: Of `forward`: the `dtype` is TorchScript's name of the type.

    Returns:
        Names of the configuration; keys, where `forward` takes a dictionary.

    Raises:
        ConfigError: They do not fit.
    """
    _refuse_optional(settings)
    names = [tensor.name for tensor in settings.inputs]
    takes_dictionary = len(arguments) == 1 and str(arguments[0].dtype).startswith("Dict")
    if not takes_dictionary:
        for argument in arguments:
            if not str(argument.dtype).startswith(("Tensor", "List")):
                raise ConfigError(
                    f"An input of type '{argument.dtype}' was detected in the model. Only a single "
                    "input of type Dict(str, Tensor) or input(s) of type Tensor are supported.",
                    "export a forward that takes tensors",
                    INTERNAL,
                )
        _count(settings, len(names), arguments)
    if not names:
        raise ConfigError(
            "model configuration must contain at least one input, none were specified.",
            f"list: {', '.join(argument.name for argument in arguments)}",
            INTERNAL,
        )
    for tensor in settings.inputs:
        _known_dtype(settings, tensor, "input", TORCH_TYPES)
        _torch_string(settings, tensor, "input")
    if takes_dictionary:
        return names
    allowed = [argument.name for argument in arguments]
    positions = input_positions(names, allowed)
    if sorted(positions) != list(range(len(names))):
        fix = ", ".join(allowed)
        numbered = ", ".join(f"{_stem(name)}__{at}" for at, name in enumerate(names))
        raise ConfigError(
            f"model '{settings.model}': inputs {', '.join(names)} do not give each argument of "
            f"forward({fix}) one tensor: numbers begin at 0 and none comes twice",
            f"name them {fix}, or {numbered}",
            ours=True,
        )
    return [names[positions.index(at)] for at in range(len(names))]


def input_positions(names: Sequence[str], arguments: Sequence[str]) -> list[int]:
    """Return the position of each input: by argument, else by number, else by its own order."""
    if all(name in arguments for name in names):
        return [arguments.index(name) for name in names]
    return name_numbers(names) or list(range(len(names)))


def name_numbers(names: Sequence[str]) -> list[int]:
    """Return the number of each name `<name>__<number>`; none where one has none."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    return [int(match[1] or 0) for match in found if match] if all(found) else []


def _stem(name: str) -> str:
    return name.partition("__")[0]


def torch_outputs(settings: Settings, returned: Sequence[str] | None) -> dict[str, int]:
    """Return output name → its position in what `forward` returns.

    Args:
        settings: The configuration.
        returned: TorchScript's types of what `forward` returns; None where they are not known.

    Raises:
        ConfigError: There is no such output.
    """
    if not settings.outputs:
        raise ConfigError(
            "model configuration must contain at least one output, none were specified.",
            "list one for each value that forward returns: OUTPUT__0, …",
            INTERNAL,
        )
    names = [tensor.name for tensor in settings.outputs]
    for tensor in settings.outputs:
        _known_dtype(settings, tensor, "output", TORCH_TYPES)
        _torch_string(settings, tensor, "output")
    numbers = name_numbers(names) or list(range(len(names)))
    advised = ", ".join(f"{_stem(name)}__{at}" for at, name in enumerate(names))
    if len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"model '{settings.model}': outputs {', '.join(names)} have the same number twice",
            f"name them by position: {advised}",
            ours=True,
        )
    for kind in returned or ():
        if not kind.startswith(("Tensor", "List[str]")):
            raise ConfigError(
                f"output must be of type Tensor, List[str] or Tuple containing one of these two "
                f"types: forward returns {kind}",
                "return a tuple of tensors",
                ours=True,
            )
    for name, number in zip(names, numbers, strict=True):
        if returned is not None and number >= len(returned):
            raise ConfigError(
                f"The output {name} in the model configuration refers to an output index which "
                f"doesn't exist. This model has {len(returned)} outputs",
                f"number the outputs from 0 to {len(returned) - 1}: {advised}",
                ours=True,
            )
    return dict(zip(names, numbers, strict=True))


def _torch_string(settings: Settings, tensor: Tensor, kind: str) -> None:
    if tensor.dtype == "TYPE_STRING" and len(tensor.shape or ()) + settings.batched > 1:
        raise ConfigError(
            f"Triton only supports 1 dimensional List of String as {kind} for '{tensor.name}' for "
            f"model '{settings.model}'",
            "write max_batch_size: 0 and dims: [-1]",
            INTERNAL,
        )
