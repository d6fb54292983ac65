"""What the server of this machine refuses before it starts, for `labkit serve` and `labkit check`.

Native backends end the whole server where a stand-in refuses one model: when an OpenVINO file is
missing or damaged, for two settings, and at the first request to a model whose tensors are numbered
wrongly. The Python stub of Triton's wheel garbles strings with numpy 2.
"""

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2 as pb

Problem = tuple[str, str]  # what is wrong, and what to do


def refused_here(folders: Iterable[Path], runtime: str) -> dict[str, Problem]:
    """Return model → why the server is not started with it.

    Args:
        folders: Of the models to serve.
        runtime: `native`, `stand-in` or `container`.
    """
    from labkit.repository import RepositoryError, model_config
    from labkit.server.engine import NATIVE
    from labkit.server.find import find_triton

    found: dict[str, Problem] = {}
    if runtime == "container":
        return found
    binary = find_triton()
    garbled = binary is not None and not binary.stub_fits_numpy
    inter_op: list[str] = []
    for folder in folders:
        try:
            config = model_config(folder)
        except (OSError, ValueError, RepositoryError):
            continue  # found elsewhere, in words of its own
        native = runtime == NATIVE and config.backend != "python"
        problem = next(_ends_the_server(folder, config), None) if native else None
        if problem is None and garbled and not native and _has_strings(config):
            problem = STRINGS
        if problem is not None:
            found[folder.name] = problem
        if native and config.backend == "pytorch" and "INTER_OP_THREAD_COUNT" in config.parameters:
            inter_op.append(folder.name)
    if len(inter_op) > 1:
        found[inter_op[1]] = (
            f"INTER_OP_THREAD_COUNT is set by {', '.join(inter_op)}: PyTorch takes it once in a "
            "process, and the native backend ends the server at the second",
            "leave it to one model",
        )
    return found


STRINGS = (
    "it has a string tensor (TYPE_STRING), and the Python stub of Triton's wheel predates numpy 2 "
    "and would garble it",
    "build the stub for this Python with `labkit triton build` (needs g++), or install numpy<2",
)


def _has_strings(config: "pb.ModelConfig") -> bool:
    from tritonclient.grpc import model_config_pb2 as pb

    tensors = [*config.input, *config.output]
    return any(tensor.data_type == pb.TYPE_STRING for tensor in tensors)


def _ends_the_server(folder: Path, config: "pb.ModelConfig") -> Iterator[Problem]:
    """Yield what would end a server with native backends as a whole."""
    if config.backend == "openvino":
        padding = "ENABLE_BATCH_PADDING"
        if (
            padding in config.parameters
            and config.parameters[padding].string_value.lower() == "yes"
        ):
            yield "ENABLE_BATCH_PADDING corrupts the memory of the native backend", "leave it out"
    elif not _suspicious(folder, config):
        return
    from labkit.backends.settings import ConfigError
    from labkit.repository import served_versions
    from labkit.repository_check import verify

    for version in served_versions(config, folder):
        try:
            verify(config, version, native=True)
        except ConfigError as error:
            if error.ours:
                yield error.words, error.fix


def _suspicious(folder: Path, config: "pb.ModelConfig") -> bool:
    """Say whether a model might load and then end the server: its file has to be read."""
    from labkit.backends.rules import name_numbers

    if config.backend == "pytorch":
        for tensors in (config.input, config.output):
            numbers = name_numbers([tensor.name for tensor in tensors])
            if sorted(numbers) != list(range(len(numbers))):
                return True
        if not numbers:  # outputs in order: there may be more of them than forward returns
            return True
        return any(_returns_dictionary(path) for path in folder.glob("*/*.pt"))
    return config.backend == "onnxruntime" and any(
        config.max_batch_size > 0
        and (list(tensor.dims) == [1] or (tensor.HasField("reshape") and not tensor.reshape.shape))
        for tensor in [*config.input, *config.output]
    )


def _returns_dictionary(path: Path) -> bool:
    """Say whether a TorchScript file looks as if its forward returns a dictionary: by its text."""
    try:
        with zipfile.ZipFile(path) as archive:
            code = [name for name in archive.namelist() if "/code/" in name and name[-3:] == ".py"]
            texts = [archive.read(name) for name in code]
    except (OSError, zipfile.BadZipFile):
        return False
    return any(b"-> Dict[" in text for text in texts)
