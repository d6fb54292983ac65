"""What the native backends and the Python stub are compiled from, with which patches and flags.

Nothing but data: a change here, or in sources.sha256, is another key in the cache and a new build.
All of it is Triton's own source of release 24.10, the release of the server. Without CMake, because
its build files fetch a container's worth of dependencies for what are a few dozen files.
"""

from dataclasses import dataclass

from labkit.server.wheels import Wheel


@dataclass(frozen=True)
class Archive:
    """A repository on GitHub at one commit; its files are verified against sources.sha256."""

    repository: str
    commit: str

    @property
    def name(self) -> str:
        """The repository's own name, which is also its folder here."""
        return self.repository.rpartition("/")[2]

    @property
    def file(self) -> str:
        """Name of the archive where it is placed by hand."""
        return f"{self.name}-{self.commit}.tar.gz"

    @property
    def address(self) -> str:
        """Path of the archive below the host's address."""
        return f"{self.repository}/archive/{self.commit}.tar.gz"


ARCHIVES = (
    Archive("triton-inference-server/backend", "ac03a5d97403dec841ad46d0439e93db12c9268f"),
    Archive("triton-inference-server/common", "578491fc3944f77d16a6a38e3d7691c485c47ba0"),
    Archive("triton-inference-server/core", "bfec7c61dc0939433f64f14e89b1973073eac8ba"),
    Archive(
        "triton-inference-server/onnxruntime_backend", "17e5cb23a6fbeb37282eb7079dd0b580cd79530d"
    ),
    Archive("triton-inference-server/openvino_backend", "ddda22f31f35009a6a80d4774980b2aad6e00569"),
    Archive("triton-inference-server/pytorch_backend", "e97a90061f7399b25368e2cb1f6d5c40f8cbae4e"),
    Archive("triton-inference-server/python_backend", "01d0ad82f9f5d63978456e26c8a2a9746a9d68d8"),
    Archive("Tencent/rapidjson", "24b5e7a8b27f42fa16b96fc70aade9106cf7102f"),
    # Holds ONNX Runtime's C headers, which its wheels leave out.
    Archive("yalue/onnxruntime_go", "8ce7fa5882bb3ac038bacdd53bfe02da3691899f"),
)


# ONNX Runtime with OpenVINO's execution provider, as the official container has it. It would
# replace the package `onnxruntime` in the environment, which therefore has the same version.
ONNXRUNTIME_OPENVINO = Wheel(
    "onnxruntime-openvino",
    "1.24.1",
    "onnxruntime_openvino-1.24.1-cp312-cp312-manylinux_2_28_x86_64.whl",
    "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e",
    megabytes=84,
    python="3.12",
)
BOOST = Wheel(
    "boost-headers",
    "1.85.0.post1",
    "boost_headers-1.85.0.post1-py3-none-any.whl",
    "4510a571d3bf6c5e913b31d2a9b2441ee79f883ae42d42a5882dd1da46b35e7f",
    megabytes=27,
)
PYBIND11 = Wheel(
    "pybind11",
    "3.1.0",
    "pybind11-3.1.0-py3-none-any.whl",
    "b8488090f8acffbcb6b5d6a85571a6827a0a2981ffb75e5a0b27b87c4a6b7dd0",
    megabytes=1,
)


@dataclass(frozen=True)
class Patch:
    """A search and replace that must find exactly so many places."""

    file: str
    old: str
    new: str
    places: int


PATCHES = (
    # OpenVINO 2026 has one name for what were two: `undefined` and `dynamic`.
    Patch("openvino_backend/src/openvino.cc", "element::undefined", "element::dynamic", 4),
    Patch("openvino_backend/src/openvino_utils.cc", "case ov::element::dynamic:", "", 1),
    Patch("openvino_backend/src/openvino_utils.cc", "element::undefined", "element::dynamic", 3),
    # ONNX Runtime's C interface is versioned: a program asks for the version that it knows, and the
    # headers at hand know a later one than the library of 1.24.
    Patch("onnxruntime_go/onnxruntime_c_api.h", "ORT_API_VERSION 29", "ORT_API_VERSION 24", 1),
)

FLAGS = ("-O2", "-DNDEBUG", "-fPIC", "-DTRITON_ENABLE_STATS=1", "-DTRITON_ENABLE_LOGGING=1")
STANDARD = "-std=c++17"
INCLUDES = ("core/include", "common/include", "backend/include", "backend/src", "rapidjson/include")


@dataclass(frozen=True)
class Unit:
    """Sources that are compiled as one, which parses their common headers once.

    Attributes:
        name: Of the object file.
        folder: Folder of the sources.
        sources: Their names, without suffix.
    """

    name: str
    folder: str
    sources: tuple[str, ...]

    @property
    def object(self) -> str:
        """The object file, below the scratch folder."""
        return f"{self.name}.o"

    @property
    def text(self) -> str:
        """The file that is compiled."""
        return "".join(f'#include "{self.folder}/{name}.cc"\n' for name in self.sources)


COMMON = Unit("common", "common/src", ("async_work_queue", "error", "logging", "thread_pool"))
UTILITIES = Unit(  # linked into each backend, with COMMON
    "utilities",
    "backend/src",
    (
        "backend_common",
        "backend_input_collector",
        "backend_memory",
        "backend_model",
        "backend_model_instance",
        "backend_output_responder",
    ),
)


@dataclass(frozen=True)
class Backend:
    """A backend: its own sources, and the libraries of its engine.

    Attributes:
        name: As in `backend: "…"`.
        unit: What is compiled.
        flags: Beyond the common ones.
        includes: Folders of headers below the engine's package.
        libraries: What to link, in the engine's folder of libraries; patterns.
    """

    name: str
    unit: Unit
    flags: tuple[str, ...]
    includes: tuple[str, ...]
    libraries: tuple[str, ...]

    @property
    def version_script(self) -> str:
        """The list of symbols that the library shows."""
        return f"{self.unit.folder}/libtriton_{self.name}.ldscript"


BACKENDS = (  # the longest to compile first
    Backend(
        "pytorch",
        Unit("pytorch", "pytorch_backend/src", ("libtorch", "libtorch_utils")),
        ("-std=c++20",),
        ("include", "include/torch/csrc/api/include"),
        ("libtorch.so", "libtorch_cpu.so", "libc10.so"),
    ),
    Backend(
        "onnxruntime",
        Unit(
            "onnxruntime",
            "onnxruntime_backend/src",
            ("onnxruntime", "onnxruntime_utils", "onnxruntime_loader"),
        ),
        ("-DTRITON_ENABLE_ONNXRUNTIME_OPENVINO=1",),
        (),
        ("libonnxruntime.so.1",),
    ),
    Backend(
        "openvino",
        Unit("openvino", "openvino_backend/src", ("openvino", "openvino_utils")),
        (),
        ("include",),
        ("libopenvino.so.*",),
    ),
)

STUB_FLAGS = ("-fvisibility=hidden", "-DTRITON_PB_STUB")
STUB = (
    Unit("stub", "python_backend/src", ("pb_stub",)),
    Unit(
        "stub-parts",
        "python_backend/src",
        (
            "response_sender",
            "infer_request",
            "infer_response",
            "pb_tensor",
            "pb_stub_utils",
            "pb_response_iterator",
            "pb_cancel",
            "correlation_id",
            "infer_trace",
            "ipc_message",
            "pb_string",
            "pb_map",
            "scoped_defer",
            "pb_error",
            "pb_log",
            "pb_memory",
            "pb_utils",
            "shm_manager",
            "metric",
            "metric_family",
            "gpu_buffers",
            "model_loader",
        ),
    ),
)
