"""Hold a model repository against its own files, before Triton does it less politely.

Works on any repository, also one written by hand. Each finding is one line: where, what was found,
what was expected, and the fix.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from labkit.profiles import available_cores
from labkit.repository import (
    CONFIG,
    MODEL_FILES,
    THREAD_PARAMETERS,
    RepositoryError,
    parse_config,
)
from labkit.signature import UnreadableModel, read_signature
from labkit.tensor_check import ERROR, WARNING, Finding, check_signature

# Triton's older way to name a backend, which it still takes; OpenVINO never had one.
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
}
TRUE_WORDS = ("true", "yes", "on", "1")  # of a boolean parameter


def check_repository(
    repository: Path, models: Iterable[str] | None = None, cores: int | None = None
) -> list[Finding]:
    """Check every model of a repository, or the named ones.

    TorchScript files are loaded to learn their tensors, which runs code in them.

    Args:
        repository: The model repository.
        models: Folders to look at; all of them when None.
        cores: CPU cores that threads × instances of a model may use; this machine's when None.

    Returns:
        Findings, errors first within each model; empty when all is well.
    """
    if not repository.is_dir():
        return [Finding("", ERROR, f"{repository} is not a folder", "name a model repository")]
    present = sorted(entry.name for entry in repository.iterdir() if entry.is_dir())
    wanted = present if models is None else list(models)
    if not wanted:
        return [Finding("", ERROR, f"{repository} holds no model", "run notebook 05_configure")]
    findings = []
    for name in wanted:
        if name in present:
            found = _readable(repository / name, cores or available_cores())
            findings += sorted(found, key=lambda finding: finding.severity != ERROR)
        else:
            near = difflib.get_close_matches(name, present, n=1)
            fix = f"did you mean {near[0]}?" if near else f"make the folder {name}/"
            findings.append(Finding(name, ERROR, "no such folder", fix))
    return findings


def _readable(folder: Path, cores: int) -> Iterator[Finding]:
    """Check one model folder; what cannot be read in it is a finding too."""
    try:
        yield from _check_model(folder, cores)
    except OSError as error:
        path = Path(error.filename) if error.filename else folder
        shown = path.relative_to(folder.parent) if path.is_relative_to(folder) else path
        reason = error.strerror or type(error).__name__
        fix = "make it a file or folder that you and the server may read"
        yield Finding(folder.name, ERROR, f"{shown} cannot be read: {reason}", fix)


def _check_model(folder: Path, cores: int) -> Iterator[Finding]:
    """Check one model folder, from the text of its configuration to the tensors of its file."""
    name = folder.name
    try:
        config = parse_config((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield Finding(name, ERROR, f"{CONFIG} is missing", "write it, see notebook 05_configure")
        return
    except UnicodeDecodeError:
        yield Finding(name, ERROR, f"{CONFIG} is not UTF-8 text", "write it again as plain text")
        return
    except RepositoryError as error:
        yield Finding(name, ERROR, str(error), _schema_fix(str(error)))
        return
    yield from _check_identity(config, folder)
    config.backend = config.backend or PLATFORMS.get(config.platform, "")
    yield from _check_tensors(config, name)
    yield from _check_labels(config, folder)
    yield from _check_batching(config, name)
    yield from _check_resources(config, name, cores)
    yield from _check_versions(config, folder)


def _schema_fix(error: str) -> str:
    """Suggest the field that was meant, for a name that the schema does not know."""
    match = re.search(r'type "inference\.(\w+)" has no field named "(\w+)"', error)
    message = getattr(pb, match[1], None) if match else None
    if not match or message is None:
        return "correct the line and column named"
    fields = [field.name for field in message.DESCRIPTOR.fields]
    near = difflib.get_close_matches(match[2], fields, n=1)
    return f"did you mean {near[0]}?" if near else f"fields of {match[1]}: {', '.join(fields)}"


def _check_identity(config: pb.ModelConfig, folder: Path) -> Iterator[Finding]:
    """The name and the backend."""
    name = folder.name
    if config.name and config.name != name:
        yield Finding(
            name,
            ERROR,
            f"name is {config.name!r}, the folder is {name!r}",
            f'write name: "{name}", or leave the name out',
        )
    if config.HasField("ensemble_scheduling"):
        return
    if not config.backend and config.platform:
        if config.platform not in PLATFORMS:
            near = difflib.get_close_matches(config.platform, PLATFORMS, n=1)
            fix = f'did you mean platform: "{near[0]}"?' if near else "write backend instead"
            yield Finding(name, ERROR, f"platform {config.platform!r} is not known", fix)
    elif not config.backend:
        yield Finding(
            name, ERROR, "no backend is given", f"write backend: one of {', '.join(MODEL_FILES)}"
        )
    elif config.backend not in MODEL_FILES:
        near = difflib.get_close_matches(config.backend, MODEL_FILES, n=1)
        fix = f'did you mean backend: "{near[0]}"?' if near else f"use {', '.join(MODEL_FILES)}"
        yield Finding(name, ERROR, f"backend {config.backend!r} is not one of this lab's", fix)


def _check_tensors(config: pb.ModelConfig, name: str) -> Iterator[Finding]:
    """Inputs and outputs are there, named, typed and shaped."""
    for title, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield Finding(
                name, ERROR, f"no {title} is listed", f"add {title} {{ name, data_type, dims }}"
            )
        for tensor in tensors:
            label = f"{title} {tensor.name!r}"
            if not tensor.name:
                yield Finding(name, ERROR, f"an {title} has no name", "name it as the model does")
            if tensor.data_type == pb.TYPE_INVALID:
                yield Finding(name, ERROR, f"{label} has no data_type", "add data_type: TYPE_FP32")
            if not tensor.dims:
                yield Finding(name, ERROR, f"{label} has no dims", "add dims, without the batch")
            elif any(size == 0 or size < -1 for size in tensor.dims):
                yield Finding(
                    name,
                    ERROR,
                    f"{label} has dims {list(tensor.dims)}",
                    "each size is ≥ 1, or -1 for any",
                )


def _check_labels(config: pb.ModelConfig, folder: Path) -> Iterator[Finding]:
    """A label file has a line for each class."""
    for output in config.output:
        if not output.label_filename:
            continue
        path = folder / output.label_filename
        if not path.is_file():
            yield Finding(
                folder.name,
                ERROR,
                f"label file {output.label_filename} is missing",
                "write one class per line, in the order of the output",
            )
            continue
        try:
            labels = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            yield Finding(
                folder.name,
                ERROR,
                f"{output.label_filename} is not UTF-8 text",
                "write it again as plain text",
            )
            continue
        classes = output.dims[-1] if output.dims else -1
        if classes > 0 and len(labels) != classes:
            yield Finding(
                folder.name,
                ERROR,
                f"{output.label_filename} has {len(labels)} lines, output {output.name!r} has "
                f"{classes} classes",
                f"write exactly {classes} lines",
            )


def _check_batching(config: pb.ModelConfig, name: str) -> Iterator[Finding]:
    """Batching settings agree with each other."""
    if config.max_batch_size < 0:
        yield Finding(name, ERROR, f"max_batch_size is {config.max_batch_size}", "use 0 or more")
    key = "ENABLE_BATCH_PADDING"
    padded = key in config.parameters and config.parameters[key].string_value.lower() in TRUE_WORDS
    if config.backend == "openvino" and config.max_batch_size > 0 and not padded:
        yield Finding(
            name,
            WARNING,
            "the openvino backend compiles a static batch when max_batch_size > 0 and refuses "
            "partial ones",
            "use max_batch_size: 0 with dims [-1, …] and several instances",
        )
    if not config.HasField("dynamic_batching"):
        return
    if config.max_batch_size < 1:
        yield Finding(
            name,
            ERROR,
            "dynamic_batching with max_batch_size 0: Triton has no batch axis to join along",
            "set max_batch_size ≥ 1 and leave the batch out of dims, or drop dynamic_batching",
        )
    too_large = [
        size
        for size in config.dynamic_batching.preferred_batch_size
        if size > config.max_batch_size
    ]
    if too_large:
        yield Finding(
            name,
            ERROR,
            f"preferred_batch_size {too_large} is above max_batch_size {config.max_batch_size}",
            "leave preferred_batch_size out",
        )


def _check_resources(config: pb.ModelConfig, name: str, cores: int) -> Iterator[Finding]:
    """Threads × instances fit the machine, and accelerators exist."""
    for accelerator in config.optimization.execution_accelerators.cpu_execution_accelerator:
        if accelerator.name != "openvino":
            yield Finding(
                name,
                ERROR,
                f"unknown CPU execution accelerator {accelerator.name!r}",
                'the only one is name: "openvino"',
            )
    key = THREAD_PARAMETERS.get(config.backend)
    if key is None:
        return
    threads = 1
    if key in config.parameters:
        text = config.parameters[key].string_value
        if not text.isdecimal() or int(text) < 1:
            yield Finding(name, ERROR, f"{key} is {text!r}", "write a whole number ≥ 1 in quotes")
            return
        threads = int(text)
    elif not config.optimization.execution_accelerators.cpu_execution_accelerator:
        yield Finding(
            name,
            WARNING,
            f"no {key}: each instance takes as many threads as there are cores",
            f'add parameters {{ key: "{key}" value {{ string_value: "1" }} }}',
        )
        threads = cores
    on_cpu = [g for g in config.instance_group if g.kind != pb.ModelInstanceGroup.KIND_GPU]
    if not config.instance_group:
        yield Finding(
            name,
            WARNING,
            "no instance_group: the number of instances is the backend's own default",
            "add instance_group { count: 1 kind: KIND_CPU }",
        )
    instances = sum(max(group.count, 1) for group in on_cpu)
    if instances and threads * instances > cores:
        yield Finding(
            name,
            WARNING,
            f"{threads} threads × {instances} instances = {threads * instances}, on {cores} cores",
            "threads × instances ≤ cores, or they take turns",
        )


def _check_versions(config: pb.ModelConfig, folder: Path) -> Iterator[Finding]:
    """There is a version, and each version's file fits the configuration."""
    if config.HasField("ensemble_scheduling") or config.backend not in MODEL_FILES:
        return
    filename = config.default_model_filename or MODEL_FILES[config.backend]
    versions = [v for v in folder.iterdir() if v.is_dir() and re.fullmatch(r"[1-9]\d*", v.name)]
    if not versions:
        yield Finding(
            folder.name,
            ERROR,
            "no version folder",
            f"put the model at {folder.name}/1/{filename}",
        )
    for version in sorted(versions, key=lambda v: int(v.name)):
        path = version / filename
        if not path.exists():
            yield Finding(
                folder.name,
                ERROR,
                f"{version.name}/{filename} is missing",
                _wrong_file_fix(version, filename),
            )
            continue
        try:
            signature = read_signature(path)
        except UnreadableModel as error:
            yield Finding(folder.name, ERROR, f"{version.name}/{error}", "export the model again")
            continue
        if signature is not None:
            yield from check_signature(config, folder.name, signature)


def _wrong_file_fix(version: Path, filename: str) -> str:
    """Say what to do about a missing model file: rename what is there, or export."""
    others = sorted(entry.name for entry in version.iterdir() if entry.is_file())
    return f"found {', '.join(others)}: rename it" if others else f"export the model to {filename}"
