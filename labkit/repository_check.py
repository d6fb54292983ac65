"""Hold a model repository against its own files: what the server would refuse, and the fix.

Works on any repository, also one written by hand. What decides is what decides when it is served:
`core_rules` says what Triton's core refuses, the backends' `rules` what a backend does. Each
finding is one line: where, what was found, what was expected, and the fix.
"""

import difflib
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as pb

from labkit.backends.rules import GRAPH_LEVELS, KNOWN_PARAMETERS
from labkit.backends.settings import ConfigError, Settings
from labkit.core_rules import refused_by_core
from labkit.profiles import available_cores
from labkit.repository import (
    CONFIG,
    MODEL_FILES,
    PLATFORMS,
    THREAD_PARAMETERS,
    RepositoryError,
    model_config,
    served_versions,
)
from labkit.repository_safety import is_model, own_repository, unsafe
from labkit.signature import MAX_IR_VERSION, MAX_OPSET, onnx_versions

ERROR, WARNING = "error", "warning"


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


class Problem(NamedTuple):
    """A finding of a model whose name its caller knows."""

    severity: str
    message: str
    fix: str


_error = partial(Problem, ERROR)
_warning = partial(Problem, WARNING)


def check_repository(
    repository: Path,
    models: Iterable[str] | None = None,
    cores: int | None = None,
    allow_python_models: bool = False,
    runtime: str | None = None,
) -> list[Finding]:
    """Check every model of a repository, or the named ones.

    TorchScript files are loaded to learn their tensors, which runs code in them.

    Args:
        repository: The model repository.
        models: Folders to look at; all of them when None.
        cores: CPU cores that threads × instances of a model may use; this machine's when None.
        allow_python_models: Find nothing wrong with Python code in somebody else's repository.
        runtime: What is to serve it: `native`, `stand-in` or `container`; that of this machine
            when None.

    Returns:
        Findings, errors first within each model; empty when all is well.
    """
    if not repository.is_dir():
        return [Finding("", ERROR, f"{repository} is not a folder", "name a model repository")]
    present = sorted(entry.name for entry in repository.iterdir() if is_model(entry))
    wanted = present if models is None else list(models)
    if not wanted:
        return [Finding("", ERROR, f"{repository} holds no model", "run notebook 05_configure")]
    from labkit.server import choose_runtime
    from labkit.server.refused import refused_here

    runtime = choose_runtime(runtime or "auto")
    findings = []
    folders = [repository / name for name in wanted if name in present]
    here = refused_here(folders, runtime)
    python_allowed = allow_python_models or own_repository(repository)
    for name in wanted:
        if name in present:
            found = list(_foreign_code(repository / name, python_allowed))
            # What would run code is not opened.
            if not found:
                found = list(_readable(repository / name, cores or available_cores(), runtime))
                if name in here and all(problem.severity != ERROR for problem in found):
                    found.append(_error(*here[name]))
            found.sort(key=lambda problem: problem.severity != ERROR)
            findings += [Finding(name, *problem) for problem in found]
        else:
            near = difflib.get_close_matches(name, present, n=1)
            fix = f"did you mean {near[0]}?" if near else f"make the folder {name}/"
            findings.append(Finding(name, ERROR, "no such folder", fix))
    return findings


def _foreign_code(folder: Path, python_allowed: bool) -> Iterator[Problem]:
    """What the server refuses to start with."""
    try:
        for message, fix in unsafe(folder, python_allowed):
            yield _error(message, fix)
    except (OSError, RepositoryError):
        return  # found below, in words of its own


def _readable(folder: Path, cores: int, runtime: str) -> Iterator[Problem]:
    """Check one model folder; what cannot be read in it is a finding too."""
    try:
        yield from _check_model(folder, cores, runtime)
    except OSError as error:
        path = Path(error.filename) if error.filename else folder
        shown = path.relative_to(folder.parent) if path.is_relative_to(folder) else path
        reason = error.strerror or type(error).__name__
        fix = "make it a file or folder that you and the server may read"
        yield _error(f"{shown} cannot be read: {reason}", fix)


def _check_model(folder: Path, cores: int, runtime: str) -> Iterator[Problem]:
    """Check one model folder, from the text of its configuration to the tensors of its file."""
    try:
        config = model_config(folder)
        written = (folder / CONFIG).is_file()
    except UnicodeDecodeError:
        yield _error(f"{CONFIG} is not UTF-8 text", "write it again as plain text")
        return
    except RepositoryError as error:
        yield _error(str(error), _schema_fix(str(error)))
        return
    if not written and not config.backend:
        yield _error(f"{CONFIG} is missing", "write it, see notebook 05_configure")
        return
    if not written:
        yield _warning(
            f"{CONFIG} is missing: Triton completes it from the model file",
            "write it, so that batching, instances and threads are yours",
        )
    yield from _check_backend(config)
    gpus = runtime == "container" or config.backend == "tensorrt"
    for message, fix in refused_by_core(config, folder, gpus):
        yield _error(message, fix)
    yield from _check_labels(config, folder)
    yield from _check_batching(config)
    yield from _check_resources(config, cores)
    yield from _check_ignored(config)
    if config.HasField("ensemble_scheduling"):
        yield from _check_steps(config, folder)
    else:
        yield from _check_versions(config, folder, runtime)


def _schema_fix(error: str) -> str:
    """Suggest the field that was meant, for a name that the schema does not know."""
    match = re.search(r'type "inference\.(\w+)" has no field named "(\w+)"', error)
    message = getattr(pb, match[1], None) if match else None
    if not match or message is None:
        return "correct the line and column named"
    fields = [field.name for field in message.DESCRIPTOR.fields]
    near = difflib.get_close_matches(match[2], fields, n=1)
    return f"did you mean {near[0]}?" if near else f"fields of {match[1]}: {', '.join(fields)}"


def _check_backend(config: pb.ModelConfig) -> Iterator[Problem]:
    """The backend is one that there is."""
    if config.HasField("ensemble_scheduling"):
        return
    if not config.backend and config.platform:
        near = difflib.get_close_matches(config.platform, PLATFORMS, n=1)
        fix = f'did you mean platform: "{near[0]}"?' if near else "write backend instead"
        yield _error(f"platform {config.platform!r} is not known", fix)
    elif not config.backend:
        yield _error("no backend is given", f"write backend: one of {', '.join(MODEL_FILES)}")
    elif config.backend not in MODEL_FILES:
        near = difflib.get_close_matches(config.backend, MODEL_FILES, n=1)
        fix = f'did you mean backend: "{near[0]}"?' if near else f"use {', '.join(MODEL_FILES)}"
        yield _error(f"backend {config.backend!r} is not one of this lab's", fix)


def _check_labels(config: pb.ModelConfig, folder: Path) -> Iterator[Problem]:
    """A label file has a line for each class, and nothing but the class in it."""
    for output in config.output:
        path = folder / output.label_filename
        if not output.label_filename or not path.is_file():
            continue
        file = output.label_filename
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            yield _error(f"{file} is not UTF-8 text", "write it again as plain text")
            continue
        for found, what in (("\ufeff", "begins with a byte order mark"), ("\r", "has \\r in it")):
            if found in text:
                yield _warning(
                    f"{file} {what}, which becomes a part of the class",
                    "save it as UTF-8 without BOM, lines ending in \\n",
                )
        labels = text.rstrip("\r\n").split("\n")
        classes = output.dims[-1] if output.dims else -1
        if classes > 0 and len(labels) != classes:
            yield _error(
                f"{file} has {len(labels)} lines, output {output.name!r} has {classes} classes",
                f"write exactly {classes} lines",
            )


def _check_batching(config: pb.ModelConfig) -> Iterator[Problem]:
    """Batching works as it is meant to."""
    key = "ENABLE_BATCH_PADDING"
    padded = key in config.parameters and config.parameters[key].string_value.lower() == "yes"
    if config.backend == "openvino" and config.max_batch_size > 0 and not padded:
        yield _warning(
            "the openvino backend compiles a static batch when max_batch_size > 0 and refuses "
            "partial ones",
            "use max_batch_size: 0 with dims [-1, …] and several instances",
        )
    if config.HasField("dynamic_batching") and config.max_batch_size == 0:
        yield _warning(
            "dynamic_batching with max_batch_size 0: Triton has no batch axis to join along",
            "set max_batch_size ≥ 1 and leave the batch out of dims, or drop dynamic_batching",
        )


def _check_resources(config: pb.ModelConfig, cores: int) -> Iterator[Problem]:
    """Threads × instances fit the machine."""
    key = THREAD_PARAMETERS.get(config.backend)
    if key is None:
        return
    accelerated = config.optimization.execution_accelerators.cpu_execution_accelerator
    threads = 1
    text = config.parameters[key].string_value if key in config.parameters else "0"
    if re.fullmatch(r"0*[1-9]\d*", text):
        threads = int(text)
        if [entry.name for entry in accelerated] == ["openvino"]:
            yield _warning(
                f"{key} is {text!r}, which the accelerator ignores: it takes every core",
                f"leave {key} out, or the accelerator",
            )
    elif not accelerated:
        yield _warning(
            f"{f'{key} is {text!r}' if key in config.parameters else f'no {key}'}: each instance "
            "takes as many threads as there are cores",
            f'add parameters {{ key: "{key}" value {{ string_value: "1" }} }}',
        )
        threads = cores
    if not config.instance_group:
        yield _warning(
            "no instance_group: the number of instances is the backend's own default",
            "add instance_group { count: 1 kind: KIND_CPU }",
        )
    on_cpu = [g for g in config.instance_group if g.kind != pb.ModelInstanceGroup.KIND_GPU]
    instances = sum(max(group.count, 1) for group in on_cpu)
    if instances and threads * instances > cores:
        yield _warning(
            f"{threads} threads × {instances} instances = {threads * instances}, on {cores} cores",
            "threads × instances ≤ cores, or they take turns",
        )


def _check_ignored(config: pb.ModelConfig) -> Iterator[Problem]:
    """Nothing is misspelt: the backends ignore in silence what they do not know."""
    known = KNOWN_PARAMETERS.get(config.backend, ())
    for key in sorted(config.parameters):
        if known and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"it knows {', '.join(known)}"
            yield _warning(f"unknown parameter {key!r}, which the backend ignores", fix)
    level = config.optimization.graph.level
    if config.backend == "onnxruntime" and level not in GRAPH_LEVELS:
        yield _warning(
            f"optimization.graph.level is {level}, which is taken as 0",
            f"write one of {', '.join(map(str, GRAPH_LEVELS))}",
        )


def _check_steps(config: pb.ModelConfig, folder: Path) -> Iterator[Problem]:
    """Each step of an ensemble is a model of this repository."""
    for number, step in enumerate(config.ensemble_scheduling.step, 1):
        if not is_model(folder.parent / step.model_name):
            yield _error(
                f"ensemble {folder.name!r} contains models that are not available: step {number} "
                f"is {step.model_name!r}",
                f"put {step.model_name}/ into this repository, or correct the name",
            )


def _check_versions(config: pb.ModelConfig, folder: Path, runtime: str) -> Iterator[Problem]:
    """A version is served, and its file fits the configuration."""
    if config.backend not in MODEL_FILES:
        return
    filename = config.default_model_filename or MODEL_FILES[config.backend]
    versions = served_versions(config, folder)
    if not versions:
        there = [p.name for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]
        yield _error(
            "no version folder: at least one version must be available under the version policy "
            f"of model '{folder.name}', and there is {', '.join(there) or 'none'}",
            f"put the model at {folder.name}/1/{filename}, and name it in version_policy",
        )
    for version in versions:
        path = version / filename
        if not path.exists():
            yield _error(
                f"{version.name}/{filename} is missing", _wrong_file_fix(version, filename)
            )
        elif config.backend in KNOWN_PARAMETERS:
            yield from _check_file(config, path, runtime)


def _wrong_file_fix(version: Path, filename: str) -> str:
    """Say what to do about a missing model file: rename what is there, or export."""
    others = sorted(entry.name for entry in version.iterdir() if entry.is_file())
    return f"found {', '.join(others)}: rename it" if others else f"export the model to {filename}"


def _check_file(config: pb.ModelConfig, path: Path, runtime: str) -> Iterator[Problem]:
    """A model file fits its configuration, as the backend that serves it decides."""
    version = path.parent
    if path.suffix == ".onnx" and path.is_file():
        yield from _check_age(path, runtime)
    try:
        verify(config, version, runtime == "native")
    except ConfigError as error:
        fix = error.fix or "correct it"
        yield _error(f"version {version.name}: {error.words}", fix)
    except Exception as error:  # an engine's own: each has error types of its own
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        yield _error(f"version {version.name}: {words}", "export it again")


def verify(config: pb.ModelConfig, version: Path, native: bool) -> None:
    """Hold a configuration against its model file, as the backend does when it loads it.

    Raises:
        ConfigError: The backend would refuse it, or answer wrongly.
    """
    engine = importlib.import_module(f"labkit.backends.{config.backend}.engine")
    fields = json_format.MessageToDict(config, preserving_proto_field_name=True)
    settings = _settings(fields, version, native)
    completed = engine.completed(settings)
    engine.verify(_settings(fields | completed, version, native) if completed else settings)


def _settings(fields: dict[str, Any], version: Path, native: bool) -> Settings:
    args = {
        "model_config": json.dumps(fields),
        "model_name": version.parent.name,
        "model_repository": str(version.parent),
        "model_version": version.name,
    }
    return Settings(args, native)


def _check_age(path: Path, runtime: str) -> Iterator[Problem]:
    """The official container's ONNX Runtime reads the file, which is older than this one's."""
    versions = onnx_versions(path)
    severity = ERROR if runtime == "container" else WARNING
    for what, found, limit, fix in (
        ("ONNX IR version", versions[0], MAX_IR_VERSION, "export with IR version ≤ 10"),
        ("opset", versions[1], MAX_OPSET, "export with opset_version=17"),
    ):
        if found > limit:
            yield Problem(
                severity,
                f"the file has {what} {found}; the ONNX Runtime of the official container reads "
                f"up to {limit}",
                fix,
            )
