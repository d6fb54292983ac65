"""What Triton's core refuses about a configuration, whatever the backend: its rules, its words."""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

Problem = tuple[str, str]  # what the core says, and what to do


def refused_by_core(config: pb.ModelConfig, folder: Path, gpus: bool) -> Iterator[Problem]:
    """Yield what the core refuses.

    Args:
        config: The configuration, with its backend.
        folder: Of the model.
        gpus: Whether the server may have GPUs.
    """
    name = folder.name
    if config.name and config.name != name:
        yield (
            f"name is {config.name!r}, the folder is {name!r}",
            f'write name: "{name}", or leave the name out',
        )
    if config.max_batch_size < 0:
        yield f"'max_batch_size' must be non-negative value for {name}", "use 0 or more"
    for title, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            for words, fix in _tensor(tensor, config.max_batch_size):
                yield f"model {title} {words} for {name}", fix
    yield from _batching(config, name)
    if not config.HasField("ensemble_scheduling"):
        yield from _instances(config, name, gpus)
    yield from _warm_ups(config, folder)
    for output in config.output:
        if output.label_filename and not (folder / output.label_filename).is_file():
            yield (
                f"failed to open text file for read {output.label_filename}: label file is missing",
                "write one class per line, in the order of the output",
            )


def _tensor(tensor: pb.ModelInput, max_batch_size: int) -> Iterator[Problem]:
    """Yield what is wrong with one input or output."""
    label = f"'{tensor.name}'"
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    if not tensor.name:
        yield "must specify 'name'", "name it as the model does"
    elif tensor.data_type == pb.TYPE_INVALID:
        yield f"{label} must specify 'data_type'", "add data_type, such as TYPE_FP32"
    elif not dims:
        yield (
            f"{label} must specify 'dims'",
            "write dims, without the batch; dims: [1] for a scalar, with max_batch_size: 0",
        )
    elif any(size < 1 and size != -1 for size in dims + shape):
        yield (
            f"{label} dimension must be integer >= 1, or -1 to indicate a variable-size dimension",
            "each size is ≥ 1, or -1 for any",
        )
    elif not tensor.HasField("reshape"):
        return
    elif not shape and max_batch_size == 0:
        yield (
            f"{label} cannot have empty reshape for non-batching model as scalar tensors are not "
            "supported",
            "leave reshape out and write dims: [1]",
        )
    elif _chunks(dims) != _chunks(shape):
        yield f"{label} has different size for dims and reshape", "give both the same size"


def _chunks(sizes: list[int]) -> list[int]:
    """Return the number of elements before, between and after the variable sizes."""
    free = [at for at, size in enumerate(sizes) if size == -1]
    ends = [-1, *free, len(sizes)]
    return [prod(sizes[a + 1 : b]) for a, b in pairwise(ends)]


def _batching(config: pb.ModelConfig, name: str) -> Iterator[Problem]:
    batching = config.dynamic_batching
    for size in batching.preferred_batch_size:
        if size <= 0:
            yield (
                f"dynamic batching preferred size must be positive for {name}",
                "write sizes of 1 and more, or leave preferred_batch_size out",
            )
        elif size > config.max_batch_size:
            yield (
                f"dynamic batching preferred size must be <= max batch size for {name}: "
                f"preferred_batch_size {size} is above max_batch_size {config.max_batch_size}",
                "leave preferred_batch_size out",
            )
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield (
            f"default priority level must be in range [1, {levels}] for {name}",
            f"write default_priority_level: {(levels + 1) // 2}",
        )
    if levels and any(not 1 <= level <= levels for level in batching.priority_queue_policy):
        yield (
            f"priority queue policy must have priority level in range [1, {levels}] for {name}",
            "number the policies by the levels that there are",
        )
    if batching.preserve_ordering and levels > 1:
        yield (
            f"Only one priority level is allowed when 'preserve_ordering' is true for {name}",
            "leave one of the two settings out",
        )
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    delays = any(policy.timeout_action == pb.ModelQueuePolicy.DELAY for policy in policies)
    if batching.preserve_ordering and delays:
        yield (
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true "
            f"for {name}",
            "leave one of the two settings out",
        )


def _instances(config: pb.ModelConfig, name: str, gpus: bool) -> Iterator[Problem]:
    group_kind = pb.ModelInstanceGroup
    for number, group in enumerate(config.instance_group):
        label = f"instance group {group.name or f'{name}_{number}'} of model {name}"
        if group.kind == group_kind.KIND_GPU and not gpus:
            yield f"{label} has kind KIND_GPU but no GPUs are available", "write kind: KIND_CPU"
        elif group.kind in (group_kind.KIND_CPU, group_kind.KIND_MODEL) and group.gpus:
            kind = group_kind.Kind.Name(group.kind)
            yield f"{label} has kind {kind} but specifies one or more GPUs", "leave gpus out"


def _warm_ups(config: pb.ModelConfig, folder: Path) -> Iterator[Problem]:
    inputs = {tensor.name for tensor in config.input}
    required = {tensor.name for tensor in config.input if not tensor.optional}
    for warm_up in config.model_warmup:
        given = set(warm_up.inputs)
        if inputs and (given - inputs or required - given):
            yield (
                f"warm-up {warm_up.name!r} gives the inputs {sorted(given)}, missing required "
                f"input(s) {sorted(required - given)}",
                f"give the inputs that the model has: {', '.join(sorted(inputs))}",
            )
        for tensor in warm_up.inputs.values():
            file = tensor.input_data_file
            if file and not (folder / "warmup" / file).is_file():
                yield (
                    f"warm-up {warm_up.name!r} reads warmup/{file}, which is missing",
                    "put it there, or write zero_data: true",
                )
