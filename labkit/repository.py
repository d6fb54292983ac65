"""The model repository: what each variant of the lab is, and its `config.pbtxt`.

A `ModelSpec` says what a person decides; `to_config` turns it into Triton's own protobuf message,
so that the schema, not a template, decides what is valid.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from labkit.data import CLASSES
from labkit.errors import LabError
from labkit.workspace import Workspace, atomic_path, write_text

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
MAX_BATCH_SIZE = 64

# The file that each backend looks for in a version folder.
MODEL_FILES: dict[str, str] = {
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "pytorch": "model.pt",
    "tensorrt": "model.plan",
    "python": "model.py",
}

# Triton's older way to name a backend, which it still takes; OpenVINO never had one.
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
}

# How each backend is told its threads per instance. TensorRT computes on the GPU.
THREAD_PARAMETERS: dict[str, str] = {
    "onnxruntime": "intra_op_thread_count",
    "openvino": "INFERENCE_NUM_THREADS",
    "pytorch": "INTRA_OP_THREAD_COUNT",
}


class RepositoryError(LabError):
    """A model repository, or a specification for one, is not what it should be."""


@dataclass(frozen=True)
class ModelSpec:
    """What a person decides about one served model.

    Attributes:
        name: Folder in the repository and name in every URL.
        backend: `pytorch`, `onnxruntime`, `openvino` or `tensorrt`.
        artifacts: Artifact of the run → file name in the version folder.
        point: What this variant teaches, one phrase.
        input_name, output_name: Tensor names, as the model file has them.
        max_batch_size: Largest batch of one request; 0: the model file handles the batch axis.
        dynamic_batching: Let Triton put concurrent requests together.
        max_queue_delay_us: How long a request may wait for company, in microseconds.
        instances: Copies of the model that run at the same time, a process each for stand-ins.
        threads: Threads per instance; None where the backend takes no such setting.
        accelerator: CPU execution accelerator of ONNX Runtime: `openvino` or None.
        parameters: Further backend parameters.
    """

    name: str
    backend: str
    artifacts: Mapping[str, str]
    point: str
    input_name: str = "input"
    output_name: str = "logits"
    max_batch_size: int = MAX_BATCH_SIZE
    dynamic_batching: bool = True
    max_queue_delay_us: int = 0
    instances: int = 1
    threads: int | None = 1
    accelerator: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what Triton would refuse, in plainer words."""
        if self.backend not in MODEL_FILES:
            known = ", ".join(MODEL_FILES)
            raise RepositoryError(f"{self.name}: got backend {self.backend!r}, expected: {known}")
        if self.max_batch_size < 0 or self.instances < 1 or self.max_queue_delay_us < 0:
            raise RepositoryError(
                f"{self.name}: got max_batch_size {self.max_batch_size}, instances "
                f"{self.instances}, max_queue_delay_us {self.max_queue_delay_us}; "
                "expected ≥ 0, ≥ 1, ≥ 0"
            )
        if self.dynamic_batching and self.max_batch_size == 0:
            raise RepositoryError(
                f"{self.name}: dynamic batching needs max_batch_size ≥ 1, got 0; "
                "Triton can only join requests along a batch axis that it knows"
            )
        if self.threads is not None and self.threads < 1:
            raise RepositoryError(f"{self.name}: got {self.threads} threads, expected ≥ 1")


# The pytorch backend matches tensors by position: <name>__<index>.
_INPUT_0, _OUTPUT_0 = "input__0", "logits__0"

VARIANTS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "cifar10_torchscript",
            "pytorch",
            {"model.pt": "model.pt"},
            "the original model, as traced",
            dynamic_batching=False,
            input_name=_INPUT_0,
            output_name=_OUTPUT_0,
        ),
        ModelSpec(
            "cifar10_torchscript_optimized",
            "pytorch",
            {"model_optimized.pt": "model.pt"},
            "optimization, batching, load balancing",
            instances=2,
            max_queue_delay_us=500,
            input_name=_INPUT_0,
            output_name=_OUTPUT_0,
        ),
        ModelSpec(
            "cifar10_torchscript_int8",
            "pytorch",
            {"model_int8.pt": "model.pt"},
            "quantized serialization, engines",
            input_name=_INPUT_0,
            output_name=_OUTPUT_0,
        ),
        ModelSpec(
            "cifar10_onnx",
            "onnxruntime",
            {"model.onnx": "model.onnx"},
            "dynamic shapes",
        ),
        ModelSpec(
            "cifar10_onnx_openvino",
            "onnxruntime",
            {"model.onnx": "model.onnx"},
            "acceleration is a hypothesis: measure",
            accelerator="openvino",
            threads=None,  # the accelerator ignores every thread parameter
        ),
        ModelSpec(
            "cifar10_onnx_int8",
            "onnxruntime",
            {"model_int8.onnx": "model.onnx"},
            "calibration, per-channel, reduce-range without VNNI",
        ),
        ModelSpec(
            "cifar10_openvino_int8",
            "openvino",
            {"model_int8.xml": "model.xml", "model_int8.bin": "model.bin"},
            "why this backend's batching differs",
            max_batch_size=0,  # the native backend compiles a static batch otherwise
            dynamic_batching=False,
            instances=2,
            parameters={"NUM_STREAMS": "1"},
        ),
        ModelSpec(
            "cifar10_tensorrt",
            "tensorrt",
            {"model.plan": "model.plan"},
            "the GPU's own engine",
            threads=None,
        ),
    )
}


PIPELINE = "cifar10_pipeline"  # the ensemble of notebook 10: raw pixels in, a label out


def to_config(spec: ModelSpec) -> pb.ModelConfig:
    """Build Triton's configuration message for a model of this lab.

    Shapes leave out the batch axis when `max_batch_size` > 0, and spell it as -1 otherwise.
    """
    config = pb.ModelConfig(
        name=spec.name, backend=spec.backend, max_batch_size=spec.max_batch_size
    )
    batch_axis = [] if spec.max_batch_size else [-1]
    config.input.add(name=spec.input_name, data_type=pb.TYPE_FP32, dims=[*batch_axis, 3, 32, 32])
    config.output.add(
        name=spec.output_name,
        data_type=pb.TYPE_FP32,
        dims=[*batch_axis, len(CLASSES)],
        label_filename=LABELS,
    )
    on_gpu = spec.backend == "tensorrt"
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=spec.instances, kind=kind)
    if spec.dynamic_batching:
        config.dynamic_batching.SetInParent()
        if spec.max_queue_delay_us:
            config.dynamic_batching.max_queue_delay_microseconds = spec.max_queue_delay_us
    if spec.accelerator:
        accelerators = config.optimization.execution_accelerators
        accelerators.cpu_execution_accelerator.add(name=spec.accelerator)
    parameters = dict(spec.parameters)
    if spec.threads is not None:
        parameters[THREAD_PARAMETERS[spec.backend]] = str(spec.threads)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def to_text(config: pb.ModelConfig) -> str:
    """Print a configuration as `config.pbtxt`, fields in the order of the schema."""
    return text_format.MessageToString(config, use_short_repeated_primitives=True, as_utf8=True)


def parse_config(text: str) -> pb.ModelConfig:
    """Read the text of a `config.pbtxt`.

    Raises:
        RepositoryError: the text does not fit Triton's schema; the message gives line and column.
    """
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"config.pbtxt does not fit Triton's schema: {error}") from error


def model_config(folder: Path) -> pb.ModelConfig:
    """Read a model's `config.pbtxt`, with the backend that Triton makes of it.

    Where it names none, the file in a version folder does; a configuration may also be missing.

    Raises:
        RepositoryError: the text does not fit Triton's schema.
        UnicodeDecodeError: it is no text.
        OSError: it cannot be read.
    """
    path = folder / CONFIG
    config = parse_config(path.read_text(encoding="utf-8")) if path.exists() else pb.ModelConfig()
    config.backend = config.backend or PLATFORMS.get(config.platform, "")
    if not (config.backend or config.platform or config.HasField("ensemble_scheduling")):
        names = {file.name for file in folder.glob("[0-9]*/*")} | {config.default_model_filename}
        found = [backend for backend, file in MODEL_FILES.items() if file in names]
        config.backend = found[0] if found else ""
    return config


def served_versions(config: pb.ModelConfig, folder: Path) -> list[Path]:
    """Return the version folders that Triton loads by the model's version policy."""
    present = {int(p.name): p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()}
    policy = config.version_policy
    if policy.HasField("specific"):
        wanted = [number for number in policy.specific.versions if number in present]
    elif policy.HasField("all"):
        wanted = sorted(present)
    else:
        count = policy.latest.num_versions if policy.HasField("latest") else 1
        wanted = sorted(present)[-count:] if count else []
    return [present[number] for number in wanted]


def write_config(repository: Path, spec: ModelSpec, name: str | None = None) -> Path:
    """Write `config.pbtxt` and `labels.txt` of a model, without its files.

    Args:
        repository: The model repository.
        spec: The model.
        name: Write `configs/<name>.pbtxt` instead, which Triton takes with
            `--model-config-name=<name>`: for settings that differ per host.

    Returns:
        The path of the configuration.
    """
    folder = repository / spec.name
    path = folder / "configs" / f"{name}.pbtxt" if name else folder / CONFIG
    write_text(path, to_text(to_config(spec)))
    write_text(folder / LABELS, "".join(f"{label}\n" for label in CLASSES))
    return path


def write_model(repository: Path, spec: ModelSpec, workspace: Workspace) -> Path:
    """Write one model into a repository: configuration, labels and the files of version 1.

    Args:
        repository: The model repository.
        spec: The model.
        workspace: The run whose artifacts are copied.

    Returns:
        The folder of the model.

    Raises:
        MissingInput: an artifact has not been made yet.
    """
    sources = {file: workspace.require(artifact) for artifact, file in spec.artifacts.items()}
    write_config(repository, spec)
    for file, source in sources.items():
        with atomic_path(repository / spec.name / "1" / file) as temporary:
            shutil.copyfile(source, temporary)
    return repository / spec.name


def available_variants(workspace: Workspace) -> list[ModelSpec]:
    """Return the variants whose artifacts this run has made."""
    return [
        spec
        for spec in VARIANTS.values()
        if all(workspace.path(artifact).is_file() for artifact in spec.artifacts)
    ]


def write_repository(workspace: Workspace, specs: Iterable[ModelSpec] | None = None) -> list[Path]:
    """Write every variant whose artifacts exist into the repository of the run."""
    specs = available_variants(workspace) if specs is None else specs
    return [write_model(workspace.repository, spec, workspace) for spec in specs]
