"""Compile Triton's native backends and its Python stub into the user's cache, with g++ alone.

Each of the two is built in a scratch folder that is renamed into place when it is whole, under a
key of sources, flags and versions (see `built`): nothing half-built is ever used.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from labkit.profiles import available_cores
from labkit.server.errors import BuildError, TritonNotFound
from labkit.server.fetch import fetch_server, locked, triton_cache, unsupported
from labkit.server.libpython import require_headers, require_libpython
from labkit.server.native import recipe
from labkit.server.native.built import (
    LINK,
    STUB,
    backends_folder,
    built_backends,
    built_stub,
    engine_package,
    stub_folder,
)
from labkit.server.native.sources import apply, sources_folder, unpack_sources, unreachable
from labkit.server.wheels import Wheel, obtain, unpack

Say = Callable[[str], None]
AGAIN = "labkit triton build"
DISK_MB = 1_000  # sources, objects and ONNX Runtime's libraries


@dataclass(frozen=True)
class Step:
    """One run of the compiler.

    Attributes:
        what: For the progress line, such as the name of the unit.
        command: With relative paths below the scratch folder.
    """

    what: str
    command: Sequence[str]


@dataclass
class Compiler:
    """Runs the compiler in a scratch folder, several at once, and ends all of them with itself.

    Attributes:
        program: Path of g++.
        folder: The scratch folder.
        log: File for what it prints; kept when the build fails.
        say: Takes progress lines.
    """

    program: str
    folder: Path
    log: Path
    say: Say
    _running: "set[subprocess.Popen[str]]" = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self, steps: Sequence[Step]) -> None:
        """Run steps that do not depend on each other; the first ones should be the longest.

        Raises:
            BuildError: one of them failed; the message names the log.
        """
        pool = ThreadPoolExecutor(available_cores())
        try:
            tasks = {pool.submit(self._one, step): step for step in steps}
            for number, task in enumerate(as_completed(tasks), 1):
                task.result()
                self.say(f"[{number}/{len(steps)}] {tasks[task].what}")
        finally:
            self._stop()
            pool.shutdown(cancel_futures=True)
            self._stopped = False

    def _one(self, step: Step) -> None:
        with self._lock:
            if self._stopped:
                return
            process = subprocess.Popen(
                [self.program, *step.command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=os.environ | {"LC_ALL": "C", "TMPDIR": str(self.folder)},
                start_new_session=True,
            )
            self._running.add(process)
        output, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                return
            with self.log.open("a") as log:
                log.write(f"$ {self.program} {' '.join(step.command)}\n{output}\n")
        if process.returncode:
            raise BuildError(_explain(step, output, self.log))

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)


def _explain(step: Step, output: str, log: Path) -> str:
    """Say in a sentence why a run of the compiler failed."""
    if "No space left on device" in output:
        return (
            f"the disk of {log.parent} is full: about {DISK_MB} MB are needed while building; make "
            "room, or set LABKIT_CACHE to another folder"
        )
    lines = [line for line in output.splitlines() if "error" in line.lower()] or ["no message"]
    return f"{step.what} does not compile: {lines[0].strip()[:300]}. The compiler's output: {log}"


def build_all(say: Say) -> list[str]:
    """Build what is not built yet: the native backends, and the stub for the running Python.

    Args:
        say: Takes progress lines.

    Returns:
        A sentence for each, with its folder and how long it took.

    Raises:
        BuildError: one of the two cannot be built; the message says why and what to do. The other
            is built all the same.
    """
    parts = (
        ("stub", built_stub, stub_folder, _build_stub),
        ("backends", built_backends, backends_folder, _build_backends),
    )
    done: list[str] = []
    problems: list[str] = []
    try:
        with locked(triton_cache() / "build.lock"):
            for left in triton_cache().glob(".build-*"):  # of a build that was killed
                shutil.rmtree(left, ignore_errors=True)
            for name, built, target, make in parts:  # either is of use without the other
                try:
                    done.append(_build(name, built(), target(), say, make))
                except (BuildError, TritonNotFound) as error:
                    problems.append(str(error))
    except OSError as error:
        raise BuildError(
            f"nothing could be built in {triton_cache()} ({error.strerror or error}): about "
            f"{DISK_MB} MB are needed; make room, or set LABKIT_CACHE to another folder"
        ) from error
    if problems:
        raise BuildError("; ".join(dict.fromkeys([*problems, *done])))
    return done


def cannot_build() -> str | None:
    """Say, within seconds, why nothing can be built here; None where it can be tried."""
    if built_backends() and built_stub():
        return None
    try:
        find_compiler()
    except BuildError as error:
        return str(error)
    return unreachable(recipe.ARCHIVES)


def find_compiler() -> str:
    """Return the C++ compiler: $CXX, else g++.

    Raises:
        BuildError: there is none, or the native backends cannot run here.
    """
    if problem := unsupported():
        raise BuildError(problem)
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise BuildError(
            f"there is no {wanted} here: apt-get install g++ (Fedora: dnf install gcc-c++), then "
            f"run `{AGAIN}`. Without it the stand-ins serve"
        )
    return found


def _require_room() -> None:
    free_mb = shutil.disk_usage(triton_cache()).free // 1_000_000
    if free_mb < DISK_MB:
        raise BuildError(
            f"{triton_cache()} has {free_mb} MB free, and building needs {DISK_MB}: make room, or "
            "set LABKIT_CACHE to another folder"
        )


def _build(
    name: str,
    built: Path | None,
    target: Path | None,
    say: Say,
    make: Callable[[Compiler, Path], None],
) -> str:
    """Build one part in a scratch folder and rename the result to `target`."""
    if built is not None:
        return f"{name}: there already, {built}"
    if target is None:
        raise BuildError("torch and openvino must be installed to build the native backends")
    compiler = find_compiler()
    _require_room()
    started = time.monotonic()
    log = triton_cache() / f"build-{name}.log"
    log.write_text("")
    with _scratch() as folder:
        out = folder / "out"
        out.mkdir()
        make(Compiler(compiler, folder, log, lambda line: say(f"{name} {line}")), out)
        out.rename(target)
    log.unlink()
    return f"{name}: {target}, {time.monotonic() - started:.0f} s"


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".build-", dir=triton_cache()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_backends(compiler: Compiler, out: Path) -> None:
    """Compile the three backends, and store ONNX Runtime's libraries beside its backend."""
    unpack_sources([a for a in recipe.ARCHIVES if a.name != "python_backend"], compiler.folder)
    apply(recipe.PATCHES, compiler.folder)
    (out / "onnxruntime").mkdir()
    libraries = out / "onnxruntime" / LINK
    _unpack_wheel(recipe.ONNXRUNTIME_OPENVINO, compiler.folder, libraries, _onnxruntime_library)
    (libraries / "libonnxruntime.so.1").symlink_to(
        next(libraries.glob("libonnxruntime.so.1.*")).name
    )

    units = [(backend.unit, _backend_flags(backend)) for backend in recipe.BACKENDS]
    units += [(unit, [recipe.STANDARD]) for unit in (recipe.UTILITIES, recipe.COMMON)]
    compiler.run([_compile(compiler.folder, unit, flags) for unit, flags in units])
    for backend in recipe.BACKENDS:
        (out / backend.name).mkdir(exist_ok=True)
    compiler.run([_link(backend, out) for backend in recipe.BACKENDS])


def _backend_flags(backend: recipe.Backend) -> list[str]:
    package = engine_package(backend.name)
    headers = [f"-I{package / folder}" for folder in backend.includes] if package else []
    return [recipe.STANDARD, *backend.flags, *headers, "-Ionnxruntime_go"]


def _link(backend: recipe.Backend, out: Path) -> Step:
    """Return the step that links a backend with its engine, which it finds through a link."""
    folder = out / "onnxruntime" / LINK
    if (package := engine_package(backend.name)) is not None:
        folder = next(package / name for name in ("lib", "libs") if (package / name).is_dir())
    engines = [str(path) for name in backend.libraries for path in sorted(folder.glob(name))]
    if len(engines) < len(backend.libraries):
        raise BuildError(f"{folder} lacks one of {', '.join(backend.libraries)}")
    target = f"out/{backend.name}/libtriton_{backend.name}.so"
    options = ["-shared", "-o", target, f"-Wl,--version-script,{backend.version_script}"]
    objects = [unit.object for unit in (backend.unit, recipe.UTILITIES, recipe.COMMON)]
    # RPATH and not RUNPATH: it comes before whatever LD_LIBRARY_PATH a user has.
    found = [f"-Wl,-rpath,$ORIGIN/{LINK}", "-Wl,--disable-new-dtags", "-Wl,--no-as-needed"]
    return Step(target, [*options, *objects, *found, *engines, "-lpthread"])


def _build_stub(compiler: Compiler, out: Path) -> None:
    """Compile the Python backend's stub for the running Python."""
    fetch_server()
    library, headers = require_libpython(), require_headers()
    names = ("backend", "common", "core", "python_backend", "rapidjson")
    unpack_sources([a for a in recipe.ARCHIVES if a.name in names], compiler.folder)
    _unpack_wheel(recipe.BOOST, compiler.folder, compiler.folder / "boost", _boost_header)
    _unpack_wheel(recipe.PYBIND11, compiler.folder, compiler.folder / "pybind11", _pybind11_header)
    dlpack = compiler.folder / "dlpack" / "dlpack"
    dlpack.mkdir(parents=True)
    torch = engine_package("pytorch")
    assert torch is not None
    header = torch / "include" / "ATen" / "dlpack.h"
    if not header.is_file():
        raise BuildError(f"{header} is missing: install PyTorch anew, with its headers")
    shutil.copy2(header, dlpack)

    includes = ["boost", "pybind11", "dlpack", "python_backend/src", *map(str, headers)]
    flags = [recipe.STANDARD, *recipe.STUB_FLAGS, *(f"-I{folder}" for folder in includes)]
    units = [(unit, flags) for unit in recipe.STUB] + [(recipe.COMMON, [recipe.STANDARD])]
    compiler.run([_compile(compiler.folder, unit, chosen) for unit, chosen in units])
    objects = [unit.object for unit, _ in units]
    linked = [str(library), "-lrt", "-lpthread", "-ldl"]
    compiler.run([Step(STUB, ["-o", f"out/{STUB}", *objects, *linked])])


def _compile(folder: Path, unit: recipe.Unit, flags: Sequence[str]) -> Step:
    """Write the file that is a unit of sources, and return the step that compiles it."""
    source = f"{unit.name}.cc"
    (folder / source).write_text(unit.text)
    includes = [f"-I{path}" for path in (".", *recipe.INCLUDES)]
    command = [*recipe.FLAGS, *flags, *includes, "-c", source, "-o", unit.object]
    return Step(f"{unit.name}: {len(unit.sources)} sources of {unit.folder}", command)


def _unpack_wheel(
    wheel: Wheel, scratch: Path, folder: Path, rename: Callable[[str], str | None]
) -> None:
    places = [place for place in (sources_folder(),) if place is not None]
    unpack(obtain(wheel, scratch, AGAIN, *places), folder, rename)


def _onnxruntime_library(name: str) -> str | None:
    """Take the shared libraries, each once: the wheel has copies where systems have links."""
    base = name.rpartition("/")[2]
    is_library = name.startswith("onnxruntime/capi/lib") and ".so" in base
    return base if is_library and base not in _UNUSED else None


# For other devices, and second names that nothing asks for.
_UNUSED = frozenset(
    {
        "libopenvino.so",
        "libopenvino.so.2025.4.1",
        "libopenvino_c.so",
        "libopenvino_c.so.2025.4.1",
        "libopenvino_onnx_frontend.so",
        "libopenvino_onnx_frontend.so.2025.4.1",
        "libopenvino_intel_gpu_plugin.so",
        "libopenvino_intel_npu_plugin.so",
        "libtbb.so",
    }
)


def _boost_header(name: str) -> str | None:
    return _below("boost_headers/include/", name)


def _pybind11_header(name: str) -> str | None:
    return _below("pybind11/include/", name)


def _below(prefix: str, name: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None
