"""What in a model repository would run code of whoever wrote it, and is refused before that.

Triton hands parts of a configuration to a shell without quotes, prefers a backend's library in the
model's own folder to its own, and loads libraries and Python files that a model brings along.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as pb

PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+")
PLAIN = "letters, digits, '.', '_' and '-' only"
LIBRARY = re.compile(r".*\.(so|dll|dylib|pyd)(\.[0-9.]+)?", re.IGNORECASE)
PYTHON = (
    ".py",
    ".pyc",
    ".pyo",
)  # beside a model file, they are on the path of a stand-in's imports
BINARY = b"\x7fELF"  # how a shared library begins, whatever it is called

# Parameter → what its value would start or load.
CODE_PARAMETERS = {
    "EXECUTION_ENV_PATH": "starts bin/activate of an environment in a shell",
    "TRITON_BATCH_STRATEGY_PATH": "loads a shared library into the server",
    "CPU_EXTENSION_PATH": "loads a shared library into OpenVINO",
}
ALLOW = "--allow-python-models (allow_python_models=True)"


def is_model(path: Path) -> bool:
    """Say whether an entry of a repository is a model: a folder that is not hidden."""
    return path.is_dir() and not path.name.startswith(".")


def own_repository(repository: Path) -> bool:
    """Say whether a repository is the lab's own: of this checkout, or of one of its runs."""
    root = Path(__file__).resolve().parents[1]
    folder = repository.resolve()
    return folder == root / "model_repository" or folder.is_relative_to(root / "runs")


def unsafe(folder: Path, python_allowed: bool) -> Iterator[tuple[str, str]]:
    """Yield what in a model's folder would run foreign code, each with what to do about it.

    Args:
        folder: Of one model, in its repository.
        python_allowed: Whether Python code in it may run.
    """
    if not PLAIN_NAME.fullmatch(folder.name):
        yield f"model name {folder.name!r} reaches a shell without quotes", f"use {PLAIN}"
    root = folder.parent.resolve()
    if not folder.resolve().is_relative_to(root):
        yield f"{folder.name} links to {folder.resolve()}, out of the repository", "copy it here"
        return
    yield from _unsafe_files(folder, root, python_allowed)
    for path in [folder / "config.pbtxt", *sorted((folder / "configs").glob("*"))]:
        if path.is_file():
            config = read_config(path)
            yield from _unsafe_settings(config, path.name, python_allowed)


def read_config(path: Path) -> "pb.ModelConfig":
    """Read a `config.pbtxt`: what cannot be read cannot be examined, and is not served.

    Raises:
        LabError: It is not text, or does not fit Triton's schema.
    """
    from labkit.repository import RepositoryError, parse_config

    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{path.name} is not UTF-8 text: {error.reason}") from error


def _unsafe_files(folder: Path, root: Path, python_allowed: bool) -> Iterator[tuple[str, str]]:
    for where, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            shown = path.relative_to(folder)
            if not PLAIN_NAME.fullmatch(name):
                yield f"the name {str(shown)!r} could reach a shell", f"rename it: {PLAIN}"
            elif path.is_symlink() and not path.resolve().is_relative_to(root):
                yield f"{shown} links to {path.resolve()}, out of the repository", "copy the file"
            elif path.is_dir():
                continue
            elif not path.is_file():
                yield f"{shown} is neither a file nor a folder", "remove it"
            elif LIBRARY.fullmatch(name) or _begins(path, BINARY):
                yield (
                    f"{shown} is a shared library, which Triton would load as code",
                    "remove it: the server has its own",
                )
            elif name.endswith(PYTHON) and not python_allowed:
                yield f"{shown} is Python code, which would run as you", _python_fix()


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _python_fix() -> str:
    return (
        f"remove it; or read it first, then serve with {ALLOW}, and its author's code runs with "
        "all your rights"
    )


def _unsafe_settings(
    config: "pb.ModelConfig", file: str, python_allowed: bool
) -> Iterator[tuple[str, str]]:
    """Yield the settings of a configuration that reach a shell, or load a library."""
    for field, value in _names(config):
        parts = [value] if field in ("name", "backend", "platform", "runtime") else value.split("/")
        if value and not all(PLAIN_NAME.fullmatch(p) and p not in (".", "..") for p in parts):
            yield (
                f"{file}: {field} is {value!r}, which could reach a shell or lead out of the model",
                f"use {PLAIN}",
            )
    backend = config.backend or config.platform
    if backend == "python" and not python_allowed:
        yield f"{file}: a Python model is a program, which would run as you", _python_fix()
    if config.runtime not in ("", "model.py", f"libtriton_{backend}.so"):
        yield f"{file}: runtime names the library {config.runtime!r}", "leave runtime out"
    for key, does in CODE_PARAMETERS.items():
        if key in config.parameters:
            yield f"{file}: parameter {key} {does}", "leave it out"
    if config.model_operations.op_library_filename:
        names = ", ".join(config.model_operations.op_library_filename)
        yield f"{file}: model_operations loads shared libraries ({names})", "leave it out"
    if config.HasField("model_repository_agents"):
        yield f"{file}: model_repository_agents loads a shared library", "leave it out"


def _names(config: "pb.ModelConfig") -> Iterable[tuple[str, str]]:
    """Return the fields that become a part of a path or of a command line, with their values."""
    yield "name", config.name
    yield "backend", config.backend
    yield "platform", config.platform
    yield "runtime", config.runtime
    yield "default_model_filename", config.default_model_filename
    for value in config.cc_model_filenames.values():
        yield "cc_model_filenames", value
    for group in config.instance_group:
        yield "instance_group.name", group.name
    for output in config.output:
        yield "label_filename", output.label_filename
    for warm_up in config.model_warmup:
        for tensor in warm_up.inputs.values():
            yield "model_warmup.input_data_file", tensor.input_data_file
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            yield "initial_state.data_file", initial.data_file


def refuse_unsafe(folders: Iterable[Path], python_allowed: bool) -> dict[str, str]:
    """Return model → why it is not served, for those that would run foreign code."""
    problems: dict[str, str] = {}
    for folder in folders:
        try:
            found = [f"{what} → {fix}" for what, fix in unsafe(folder, python_allowed)]
        except LabError as error:
            found = [str(error)]
        if found:
            problems[folder.name] = "; ".join(found)
    return problems
