"""A repository from somebody else runs no code of its author: each door is shut before the start.

Every payload writes a file. Those that need no compiler are also run with the doors open, which
shows that they would have written it.
"""

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import X, Y, save_double, write_config

from labkit.repository_check import ERROR, check_repository
from labkit.server import ModelLoadError, ServerError, TritonServer
from labkit.server import server as server_module

PYTHON = """\
open({owned!r}, "w").write("owned")
import triton_python_backend_utils
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
CONSTRUCTOR = """\
#include <stdio.h>
__attribute__((constructor)) static void run(void) {{ FILE *f = fopen("{owned}", "w"); fclose(f); }}
"""


def set_line(folder: Path, line: str) -> None:
    """Add a line to the configuration."""
    config = folder / "config.pbtxt"
    config.write_text(f"{config.read_text()}{line}\n")


def shell(owned: Path) -> str:
    return f"x$(touch${{IFS}}{owned})"


def library(path: Path, owned: Path) -> None:
    """A shared library whose constructor writes the file; without a compiler, its first bytes."""
    if (compiler := shutil.which("cc") or shutil.which("gcc")) is None:
        path.write_bytes(b"\x7fELF")
        return
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=CONSTRUCTOR.format(owned=owned), text=True, check=True)


def elsewhere(owned: Path) -> Path:
    """Return a library outside the repository, at a path without a space."""
    path = owned.parent / "outside" / "x.so"
    path.parent.mkdir(exist_ok=True)
    library(path, owned)
    return path


def names_a_library(line: str) -> Callable[[Path, Path], None]:
    """Return a door: a line of the configuration with a library's path in it."""
    return lambda folder, owned: set_line(folder, line % elsewhere(owned))


def backend_elsewhere(folder: Path, owned: Path) -> None:
    """A Python-based backend outside the folder for backends: its model.py is run."""
    place = owned.parent / "outside"
    place.mkdir()
    (place / "model.py").write_text(PYTHON.format(owned=str(owned)))
    text = (folder / "config.pbtxt").read_text()
    name = "../" * 32 + str(place).lstrip("/")
    (folder / "config.pbtxt").write_text(text.replace("onnxruntime", name))


def extension(folder: Path, owned: Path) -> None:
    """OpenVINO loads the extension before it reads a model."""
    text = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(text.replace("onnxruntime", "openvino"))
    (folder / "1" / "model.onnx").rename(folder / "1" / "model.xml")
    value = f'value {{ string_value: "{elsewhere(owned)}" }}'
    set_line(folder, f'parameters {{ key: "CPU_EXTENSION_PATH" {value} }}')


def python_model(folder: Path, owned: Path) -> None:
    (folder / "1" / "model.py").write_text(PYTHON.format(owned=str(owned)))
    text = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(text.replace("onnxruntime", "python"))


def python_by_another_name(folder: Path, owned: Path) -> None:
    python_model(folder, owned)
    (folder / "1" / "model.py").rename(folder / "1" / "model.txt")
    set_line(folder, 'default_model_filename: "model.txt"')


def python_without_configuration(folder: Path, owned: Path) -> None:
    python_model(folder, owned)
    (folder / "1" / "model.onnx").unlink()
    (folder / "config.pbtxt").unlink()


def imported(folder: Path, owned: Path) -> None:
    """Stand-ins have the model's folder on their path; engines try imports."""
    for name in ("opt_einsum.py", "numba.py", "cupy.py"):
        (folder / "1" / name).write_text(f"open({str(owned)!r}, 'w')")


def environment(folder: Path, owned: Path) -> None:
    activate = folder.parent / "activate"
    activate.write_text(f"touch {owned}\n")
    with tarfile.open(folder / "env.tar.gz", "w:gz") as archive:
        archive.add(activate, "bin/activate")
    activate.unlink()
    set_line(
        folder,
        'parameters { key: "EXECUTION_ENV_PATH" value { '
        'string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }',
    )


def other_configuration(folder: Path, owned: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "tuned.pbtxt").write_text(
        f'{(folder / "config.pbtxt").read_text()}default_model_filename: "{shell(owned)}"\n'
    )


def instance_name(folder: Path, owned: Path) -> None:
    text = (folder / "config.pbtxt").read_text()
    named = f'instance_group {{ name: "{shell(owned)}" '
    (folder / "config.pbtxt").write_text(text.replace("instance_group { ", named))


def link(path: Path, owned: Path) -> None:
    outside = owned.parent / "outside"
    outside.mkdir(exist_ok=True)
    library(outside / "any", owned)
    path.symlink_to(outside / "any")


Door = Callable[[Path, Path], None]
DOORS: dict[str, tuple[Door, str]] = {
    "file name in a shell": (
        lambda folder, owned: set_line(folder, f'default_model_filename: "{shell(owned)}"'),
        "default_model_filename is",
    ),
    "instance name in a shell": (instance_name, "instance_group.name is"),
    "another configuration": (other_configuration, "tuned.pbtxt: default_model_filename is"),
    "a file's name": (
        lambda folder, owned: (folder / "1" / "a;touch owned").touch(),
        "'1/a;touch owned' could reach a shell",
    ),
    "environment": (environment, "starts bin/activate"),
    "library in the version": (
        lambda folder, owned: library(folder / "1" / "libtriton_onnxruntime.so", owned),
        "is a shared library",
    ),
    "library in the model": (
        lambda folder, owned: library(folder / "libtriton_python.so", owned),
        "is a shared library",
    ),
    "batch strategy in the model": (
        lambda folder, owned: library(folder / "batchstrategy.so", owned),
        "is a shared library",
    ),
    "library by another name": (
        lambda folder, owned: (
            library(folder / "1" / "plugin.bin", owned),
            set_line(folder, 'runtime: "plugin.bin"'),
        )[-1],
        "is a shared library",
    ),
    "batch strategy elsewhere": (
        names_a_library(
            "dynamic_batching { } parameters "
            '{ key: "TRITON_BATCH_STRATEGY_PATH" value { string_value: "%s" } }'
        ),
        "loads a shared library into the server",
    ),
    "OpenVINO's extension": (extension, "loads a shared library into OpenVINO"),
    "custom operators": (
        names_a_library('model_operations { op_library_filename: "%s" }'),
        "model_operations loads",
    ),
    "agent": (
        lambda folder, owned: set_line(
            folder, 'model_repository_agents { agents { name: "checksum" } }'
        ),
        "model_repository_agents loads",
    ),
    "runtime": (
        lambda folder, owned: set_line(folder, 'runtime: "libtriton_python.so"'),
        "runtime names the library",
    ),
    "backend out of its folder": (backend_elsewhere, "backend is '../"),
    "labels of another folder": (
        lambda folder, owned: set_line(
            folder,
            'output { name: "z" data_type: TYPE_FP32 dims: [4] label_filename: "../../.ssh/id" }',
        ),
        "label_filename is",
    ),
    "link": (
        lambda folder, owned: link(folder / "1" / "model.bin", owned),
        "out of the repository",
    ),
    "pipe": (
        lambda folder, owned: subprocess.run(["mkfifo", folder / "1" / "p"], check=True) and None,
        "neither a file nor a folder",
    ),
    "Python model": (python_model, "would run as you"),
    "Python model by another name": (python_by_another_name, "a Python model is a program"),
    "Python model without a configuration": (python_without_configuration, "is Python code"),
    "module on the path of a stand-in": (imported, "is Python code"),
    "not text": (
        lambda folder, owned: (folder / "config.pbtxt").write_bytes(b"# \xff\n") and None,
        "is not UTF-8 text",
    ),
}
# Doors that are tried open, too, and on which runtime.
LIVE = (
    ("file name in a shell", "stand-in"),
    ("instance name in a shell", "stand-in"),
    ("environment", "stand-in"),
    ("backend out of its folder", "stand-in"),
    ("library in the version", "stand-in"),
    ("batch strategy elsewhere", "stand-in"),
    ("Python model", "stand-in"),
    ("Python model without a configuration", "stand-in"),
    *(
        pytest.param(door, "native", marks=pytest.mark.native)
        for door in (
            "library in the version",
            "batch strategy in the model",
            "library by another name",
            "custom operators",
            "OpenVINO's extension",
        )
    ),
)


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """What a payload writes."""
    return tmp_path / "owned"


def repository_with(door: str, tmp_path: Path, owned: Path) -> Path:
    """Write a repository with a space and an accent in its path, as a user's own may have."""
    folder = tmp_path / "mein Ordner é" / "repository" / "double"
    save_double(write_config(folder, "onnxruntime", X, Y) / "model.onnx")
    DOORS[door][0](folder, owned)
    return folder.parent


@pytest.mark.parametrize("runtime", ["stand-in", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_shut(door: str, runtime: str, tmp_path: Path, owned: Path) -> None:
    repository = repository_with(door, tmp_path, owned)
    found = [f for f in check_repository(repository) if f.severity == ERROR]
    with pytest.raises(ModelLoadError, match="was not started") as error:
        TritonServer(repository, log_path=tmp_path / "log", runtime=runtime).start()
    assert DOORS[door][1] in error.value.models["double"]
    assert any(DOORS[door][1] in str(finding) for finding in found)
    assert not owned.exists()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("door", "runtime"), LIVE)
def test_the_payload_would_have_run(
    door: str, runtime: str, tmp_path: Path, owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = runtime == "native" or door in ("library in the version", "batch strategy elsewhere")
    if compiled and not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no compiler for the payload")
    repository = repository_with(door, tmp_path, owned)
    monkeypatch.setattr(server_module, "refuse_unsafe", lambda folders, allowed: {})
    try:
        with TritonServer(repository, log_path=tmp_path / "log", runtime=runtime):
            pass
    except ServerError:
        pass
    assert owned.exists(), (tmp_path / "log").read_text()


def test_python_models_run_where_they_are_allowed(tmp_path: Path, owned: Path) -> None:
    repository = repository_with("Python model", tmp_path, owned)
    assert not check_repository(repository, allow_python_models=True)
    with TritonServer(repository, log_path=tmp_path / "log", allow_python_models=True):
        assert owned.exists()


def test_a_models_folder_may_not_be_a_link_out_of_the_repository(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "net").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="out of the repository"):
        TritonServer(tmp_path / "repository").start()


@pytest.mark.parametrize("name", ["two words", "$(touch owned)", "a;b"])
def test_a_model_name_that_a_shell_would_read_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ModelLoadError, match="reaches a shell without quotes"):
        TritonServer(tmp_path).start()
    assert any("reaches a shell" in str(finding) for finding in check_repository(tmp_path))
