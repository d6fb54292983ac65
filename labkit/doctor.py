"""What this machine has for the lab, and what to do about what it has not."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.utils import canonicalize_name

from labkit.errors import LabError
from labkit.profiles import available_cores
from labkit.workspace import cache_dir, project_root

Status = Literal["ok", "missing", "warning"]

PYTHONS = ((3, 11), (3, 12), (3, 13))
PORTS = (8000, 8001, 8002)  # Triton's own: HTTP, gRPC, metrics
DISK_NEEDED_GB = 1.0  # a `standard` run, its models and the data set
DISK_COMFORT_GB = 5.0
SHM_NEEDED_MB = 32  # each model instance takes about 1 MB and more with its batches
SHM_COMFORT_MB = 256
MEMORY_COMFORT_GB = 4.0
COMMAND_TIMEOUT_S = 10.0
ENGINE_VERSION = {  # what only a working engine answers; Podman has no server to ask
    "docker": ("version", "--format", "{{.Server.Version}}"),
    "podman": ("info", "--format", "{{.Version.Version}}"),
}


@dataclass(frozen=True)
class Check:
    """One line of `labkit doctor`.

    Attributes:
        name: What was looked at.
        status: `ok`; `warning`: the lab runs, but something differs; `missing`: it cannot run.
        detail: What was found, with units.
        advice: What to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def run_checks(root: Path | None = None) -> list[Check]:
    """Look at everything; a check that itself breaks becomes a line and stops no other."""
    folder = root or project_root()
    container = _guarded("container", check_container)
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("Python", lambda: check_python(sys.version_info[:3])),
        ("packages", lambda: check_packages(folder / "constraints.txt", installed_versions())),
        ("parts", lambda: check_parts(installed_versions())),
        ("Triton", lambda: check_triton(container.status == "ok")),
        ("runtime", check_runtime),
        ("CIFAR-10", lambda: check_data(cache_dir())),
        ("disk", lambda: check_disk(shutil.disk_usage(folder).free)),
        ("temp folder", lambda: check_temporary(Path(tempfile.gettempdir()))),
        ("/dev/shm", lambda: check_shared_memory(Path("/dev/shm"))),
        ("ports", lambda: check_ports(PORTS)),
        ("CPU", check_this_cpu),
        ("cores", lambda: check_cores(available_cores(), os.environ)),
        ("memory", lambda: check_memory(psutil.virtual_memory().total)),
        ("container", lambda: container),
        ("nginx", check_nginx),
        ("GPU", check_gpu),
        *_GRADING_CHECKS,
    )
    return [_guarded(name, check) for name, check in checks]


def check_sandbox() -> Check:
    """What confines student code when a class is graded; students do not need it."""
    from labkit.grading.sandbox import SandboxUnavailable, find_isolation

    try:
        return Check("sandbox", "ok", f"{find_isolation()}, for grading")
    except SandboxUnavailable as error:
        advice = "only `labkit grade` needs it: install bubblewrap, allow user namespaces"
        return Check("sandbox", "warning", str(error).split(". ")[0], advice)


# The student edition comes without the grader.
_GRADING_CHECKS: tuple[tuple[str, Callable[[], Check]], ...] = (
    (("sandbox", check_sandbox),) if (Path(__file__).parent / "grading").is_dir() else ()
)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Run one check; an unforeseen error is reported, not raised: this is a diagnosis."""
    try:
        return check()
    except Exception as error:
        detail = f"could not be looked at: {type(error).__name__}: {error}"
        return Check(name, "warning", detail, "please report this line")


def check_python(version: tuple[int, ...]) -> Check:
    """The interpreter that runs the lab, as (major, minor, micro); a newer one needs a stub."""
    from labkit.server.native.built import built_stub

    found = ".".join(map(str, version[:3]))
    if tuple(version[:2]) in PYTHONS:
        return Check("Python", "ok", found)
    newer = tuple(version[:2]) > PYTHONS[-1]
    if newer and built_stub():
        advice = "the lab was not tried with this Python; the stub that was built for it serves"
        return Check("Python", "warning", found, advice)
    build = " Or, with g++: labkit triton build" if newer else ""
    advice = f"install Python 3.11, 3.12 or 3.13, then: make env.{build}"
    return Check("Python", "missing", found, advice)


def installed_versions() -> dict[str, str]:
    """Return canonical name → version of every installed package."""
    return {
        canonicalize_name(distribution.metadata["Name"]): distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }


def read_pins(constraints: Path) -> dict[str, str]:
    """Return canonical name → version for the `name==version` lines of a constraints file."""
    lines = (line.split("#", 1)[0].strip() for line in constraints.read_text().splitlines())
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def check_packages(constraints: Path, installed: dict[str, str]) -> Check:
    """Every direct dependency is there, and what is there has its pinned version."""
    needed = {canonicalize_name(name) for name in _direct_dependencies()}
    if absent := sorted(needed - installed.keys()):
        detail = f"not installed: {', '.join(absent)}"
        return Check("packages", "missing", detail, _install(absent))
    if not constraints.is_file():
        return Check("packages", "ok", f"{len(needed)} needed, all there; no pins to compare with")
    pins = read_pins(constraints)
    present = sorted(pins.keys() & installed.keys())
    other = [name for name in present if installed[name] != pins[name]]
    if other:
        found = _some(f"{name} {installed[name]}" for name in other)
        return Check(
            "packages",
            "warning",
            f"{len(other)} of {len(present)} differ from constraints.txt: {found}",
            f"{_install(f'{name}=={pins[name]}' for name in other)}; other versions may well work, "
            "but are not what the lab was tested with",
        )
    return Check("packages", "ok", f"{len(present)}, all at the version in constraints.txt")


def _install(wanted: Iterable[str]) -> str:
    """Return the command that installs packages: `make env` in the lab's own environment only."""
    own = Path(sys.prefix).resolve() == (project_root() / ".venv").resolve()
    return "make env" if own else f"pip install {' '.join(wanted)}"


# What each part of the lab imports; in somebody else's environment a package may be missing.
PARTS = {
    "data": ("numpy", "pillow", "requests"),
    "training": ("torch", "torchvision"),
    "export": ("torch", "onnx", "onnxruntime"),
    "quantization": ("onnxruntime", "openvino", "nncf"),
    "serving": ("tritonclient", "protobuf", "onnxruntime", "openvino", "torch"),
    "notebooks": ("jupyterlab", "ipykernel", "papermill", "matplotlib"),
    "report": ("jinja2", "jsonschema"),
}


def check_parts(installed: Collection[str]) -> Check:
    """Which parts of the lab work in this environment, by the packages that each needs."""
    absent = {
        part: [name for name in packages if name not in installed]
        for part, packages in PARTS.items()
    }
    works = [part for part, names in absent.items() if not names]
    broken = [f"{part} (lacks {', '.join(names)})" for part, names in absent.items() if names]
    if not broken:
        return Check("parts", "ok", f"all work: {', '.join(works)}")
    lacking = sorted({name for names in absent.values() for name in names})
    detail = f"work: {', '.join(works) or 'none'}; do not: {', '.join(broken)}"
    return Check("parts", "missing", detail, _install(lacking))


def _direct_dependencies() -> list[str]:
    """Return the packages that labkit itself asks for on this system, without extras."""
    from packaging.requirements import Requirement

    requirements = map(Requirement, metadata.requires("labkit") or [])
    return [
        requirement.name
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _some(items: Iterable[str]) -> str:
    """Join a few items; say how many more there are."""
    items, most = list(items), 4
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def check_triton(has_engine: bool) -> Check:
    """The server in the cache, started once, else a container engine to run the official image."""
    from labkit.server import find_triton
    from labkit.server.fetch import unsupported

    if not (problem := unsupported()):
        binary = find_triton()
        if binary is None:
            advice = "labkit triton fetch brings it, 55 MB; `make lab` does so by itself"
            return Check("Triton", "warning", "the server is not in the cache yet", advice)
        problem = binary.problem or _start_problem(binary.executable, binary.libraries)
        if not problem:
            return Check("Triton", "ok", f"the server {binary.version} in the cache starts")
    if has_engine:
        advice = "the official container serves instead: labkit serve --runtime container"
        return Check("Triton", "warning", problem, advice)
    return Check("Triton", "missing", problem, "or install Docker or Podman for the container")


def check_runtime() -> Check:
    """What computes: native backends built here, or the stand-ins; and how to get the former."""
    from labkit.server import choose_runtime
    from labkit.server.engine import two_onnxruntimes
    from labkit.server.native.build import find_compiler
    from labkit.server.native.built import built_backends, built_stub

    runtime = choose_runtime()
    named = os.environ.get("LABKIT_RUNTIME")
    why = f" (LABKIT_RUNTIME={named})" if named else ""
    parts = [
        f"native backends {'built' if built_backends() else 'not built'}",
        f"Python stub {'built here' if built_stub() else 'of the wheel'}",
    ]
    detail = f"{runtime}{why}; {', '.join(parts)}"
    if runtime == "container" or (built_backends() and built_stub()):
        return Check("runtime", "ok", detail, "" if runtime == "container" else two_onnxruntimes())
    try:
        find_compiler()
        advice = "labkit triton build compiles Triton's own backends, in about 2 minutes"
    except LabError as error:
        advice = str(error)
    if runtime == "native" and not built_backends():  # asked for: no server would start
        return Check("runtime", "missing", detail, f"{advice}; or unset LABKIT_RUNTIME")
    return Check("runtime", "ok", detail, f"optional: {advice}")


def _start_problem(executable: Path, libraries: Path) -> str:
    """Return why the server's binary does not start here; empty when it does."""
    paths = [str(libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            [executable, "--help"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the binary does not start: {error}"
    if "--model-repository" in done.stdout + done.stderr:  # --help itself exits with 1
        return ""
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"the binary does not start: {last}"


def check_data(cache: Path) -> Check:
    """CIFAR-10 in the user's cache, every batch with its checksum."""
    from labkit.download import BATCHES, FOLDER, damaged

    bad = damaged(cache / FOLDER)
    if not bad:
        return Check("CIFAR-10", "ok", f"{len(BATCHES)} batches in {cache / FOLDER}, verified")
    there = [name for name in bad if (cache / FOLDER / name).exists()]
    detail = f"damaged: {_some(there)}" if there else f"not in {cache} yet"
    advice = "labkit data fetches it, about 160 MB; `make lab` does so by itself"
    return Check("CIFAR-10", "warning", detail, advice)


def check_disk(free_bytes: int) -> Check:
    """Free space where the runs are kept."""
    free_gb = free_bytes / 1e9
    detail = f"{free_gb:.1f} GB free"
    if free_gb < DISK_NEEDED_GB:
        return Check("disk", "missing", detail, f"make room: {DISK_NEEDED_GB:.0f} GB are needed")
    if free_gb < DISK_COMFORT_GB:
        return Check("disk", "warning", detail, "enough for one run; old ones lie in runs/")
    return Check("disk", "ok", detail)


def check_temporary(folder: Path) -> Check:
    """The temporary folder, from which Triton's Python backend starts a program for each model."""
    if not os.access(folder, os.W_OK):
        advice = "set TMPDIR to a folder that you may write to"
        return Check("temp folder", "missing", f"{folder} is not writable", advice)
    noexec = getattr(os, "ST_NOEXEC", 0)  # Linux only
    if noexec and os.statvfs(folder).f_flag & noexec:
        advice = "set TMPDIR to a folder that is not: the server cannot start its models there"
        return Check("temp folder", "warning", f"{folder} is mounted noexec", advice)
    return Check("temp folder", "ok", str(folder))


def check_shared_memory(folder: Path) -> Check:
    """Shared memory, through which Triton hands tensors to its Python-based backends."""
    if not folder.is_dir():
        if platform.system() == "Linux":
            return Check("/dev/shm", "missing", "not there", "mount a tmpfs on /dev/shm")
        return Check("/dev/shm", "ok", "not used on this system: the container has its own")
    free_mb = shutil.disk_usage(folder).free / 1e6
    detail = f"{free_mb:.0f} MB free"
    advice = "in a container: docker run --shm-size=1g; else remove stale files in /dev/shm"
    if not os.access(folder, os.W_OK) or free_mb < SHM_NEEDED_MB:
        return Check("/dev/shm", "missing", detail, advice)
    return Check(
        "/dev/shm",
        "ok" if free_mb >= SHM_COMFORT_MB else "warning",
        detail,
        "" if free_mb >= SHM_COMFORT_MB else advice,
    )


def check_ports(ports: Iterable[int]) -> Check:
    """Triton's usual ports on the loopback interface."""
    from labkit.server.ports import can_listen

    ports = tuple(ports)
    busy = [port for port in ports if not can_listen(port)]
    if not busy:
        return Check("ports", "ok", f"{', '.join(map(str, ports))} are free")
    return Check(
        "ports",
        "warning",
        f"in use: {', '.join(map(str, busy))}",
        "the notebooks choose free ports; for the command line: labkit serve --http-port 0 "
        "--grpc-port 0 --metrics-port 0",
    )


def check_this_cpu() -> Check:
    """The CPU of this machine."""
    from labkit.runtime import cpu_features

    return check_cpu(cpu_features())


def check_cpu(features: Collection[str]) -> Check:
    """Vector instructions; VNNI decides whether INT8 is both fast and exact."""
    from labkit.runtime import EXACT_INT8_FEATURES

    detail = ", ".join(sorted(features)) or "no known vector instructions"
    if EXACT_INT8_FEATURES & set(features):
        return Check("CPU", "ok", detail)
    return Check(
        "CPU",
        "warning",
        f"{detail}; no VNNI",
        "nothing to install: without VNNI, INT8 gains less and needs reduce_range (notebook 04)",
    )


def check_cores(cores: int, environment: "os._Environ[str] | dict[str, str]") -> Check:
    """Cores this process may use, and thread settings that would silently overrule the lab's."""
    detail = f"{cores} usable"
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    if settings := [f"{name}={environment[name]}" for name in names if name in environment]:
        advice = "unset them: the lab sets the number of threads wherever it measures"
        return Check("cores", "warning", f"{detail}; {', '.join(settings)}", advice)
    if cores < 2:
        advice = "the lab runs, slowly: times in the notebooks are meant for 2 cores"
        return Check("cores", "warning", detail, advice)
    return Check("cores", "ok", detail)


def check_memory(total_bytes: int) -> Check:
    """Memory of the machine."""
    total_gb = total_bytes / 1e9
    detail = f"{total_gb:.1f} GB"
    if total_gb < MEMORY_COMFORT_GB:
        advice = "close other programs; LABKIT_PROFILE=smoke needs the least"
        return Check("memory", "warning", detail, advice)
    return Check("memory", "ok", detail)


def check_container() -> Check:
    """The container engine that labkit would take; optional where the wheel's binary runs."""
    from labkit.server.container import ENGINES, find_engine

    path = find_engine()
    if path is None:
        detail = f"none of {', '.join(ENGINES)} is installed"
        return Check("container", "warning", detail, "optional: only for docker/")
    engine = Path(path).name
    answer = _output([path, *ENGINE_VERSION[engine]])
    if not answer:
        advice = "optional: only for docker/; start the engine, or join its group"
        return Check("container", "warning", f"{engine} is installed, but does not answer", advice)
    return Check("container", "ok", f"{engine} {answer}")


def check_nginx() -> Check:
    """nginx, behind which notebook 09 and the drills put several servers."""
    from labkit.operate.programs import MissingProgram, find_program

    try:
        return Check("nginx", "ok", str(find_program("nginx")))
    except MissingProgram as error:
        return Check("nginx", "warning", str(error), "only notebook 09 and the drills need it")


def check_gpu() -> Check:
    """An NVIDIA GPU; without one everything runs on the CPU, and the TensorRT row says so."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = _output(query) if shutil.which("nvidia-smi") else None
    if not answer:
        advice = "optional: only the TensorRT model needs one"
        return Check("GPU", "warning", "no NVIDIA GPU", advice)
    return Check("GPU", "ok", "; ".join(answer.splitlines()))


def _output(command: list[str]) -> str | None:
    """Return what a command prints; None when it fails, hangs or does not exist."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
