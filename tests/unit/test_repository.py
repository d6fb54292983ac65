from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from labkit.data import CLASSES
from labkit.repository import (
    PIPELINE,
    VARIANTS,
    ModelSpec,
    RepositoryError,
    available_variants,
    parse_config,
    to_config,
    to_text,
    write_config,
    write_model,
    write_repository,
)
from labkit.workspace import MissingInput, Workspace, project_root

ONNX = VARIANTS["cifar10_onnx"]


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_text_survives_the_real_schema(spec: ModelSpec) -> None:
    assert parse_config(to_text(to_config(spec))) == to_config(spec)


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_takes_images_and_gives_ten_logits(spec: ModelSpec) -> None:
    config = to_config(spec)
    batch = [] if config.max_batch_size else [-1]
    assert list(config.input[0].dims) == [*batch, 3, 32, 32]
    assert list(config.output[0].dims) == [*batch, 10]
    assert config.input[0].data_type == config.output[0].data_type == pb.TYPE_FP32
    assert config.instance_group[0].count * (spec.threads or 1) <= 2, "fits two cores"


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "cifar10_tensorrt"])
def test_tracked_configs_are_the_generated_ones(name: str) -> None:
    folder = project_root() / "model_repository" / name
    assert (folder / "config.pbtxt").read_text() == to_text(to_config(VARIANTS[name]))
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES)


def test_no_model_is_unknown_to_the_lab() -> None:
    folders = {
        path.name for path in (project_root() / "model_repository").iterdir() if path.is_dir()
    }
    assert folders <= {*VARIANTS, PIPELINE, "cifar10_preprocess"}  # the last two: made by 10


def test_the_accelerator_is_written_where_triton_reads_it() -> None:
    config = to_config(VARIANTS["cifar10_onnx_openvino"])
    names = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert [accelerator.name for accelerator in names] == ["openvino"]
    assert not config.parameters, "the accelerator ignores thread parameters"


def test_dynamic_batching_is_written_even_when_empty() -> None:
    assert "dynamic_batching {" in to_text(to_config(ONNX))
    assert "dynamic_batching" not in to_text(to_config(VARIANTS["cifar10_torchscript"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "onnx"}, "got backend 'onnx', expected: onnxruntime"),
        ({"max_batch_size": 0}, "dynamic batching needs max_batch_size ≥ 1"),
        ({"instances": 0}, "instances 0.*expected"),
        ({"threads": 0}, "got 0 threads, expected ≥ 1"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us -1"),
    ],
)
def test_a_spec_that_triton_would_refuse_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        replace(ONNX, **changes)


def test_text_that_is_no_config_gives_line_and_column() -> None:
    with pytest.raises(RepositoryError, match=r'1:1 .* no field named "max_batchsize"'):
        parse_config("max_batchsize: 3")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "run")


def test_write_model_copies_the_artifact_under_the_name_the_backend_wants(
    workspace: Workspace,
) -> None:
    workspace.path("model_int8.onnx").write_bytes(b"model")
    spec = VARIANTS["cifar10_onnx_int8"]
    folder = write_model(workspace.repository, spec, workspace)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (folder / "1" / "model.onnx").read_bytes() == b"model"


def test_write_model_without_its_artifact_names_the_notebook(workspace: Workspace) -> None:
    with pytest.raises(MissingInput, match="run notebook 03_export"):
        write_model(workspace.repository, ONNX, workspace)
    assert not (workspace.repository / ONNX.name).exists()


def test_only_variants_with_all_their_files_are_available(workspace: Workspace) -> None:
    workspace.path("model_int8.xml").write_bytes(b"xml")
    assert available_variants(workspace) == []
    workspace.path("model_int8.bin").write_bytes(b"bin")
    assert [spec.name for spec in available_variants(workspace)] == ["cifar10_openvino_int8"]
    assert [path.name for path in write_repository(workspace)] == ["cifar10_openvino_int8"]


def test_a_named_config_goes_where_triton_looks_for_it(tmp_path: Path) -> None:
    path = write_config(tmp_path, replace(ONNX, instances=2), name="tuned")
    assert path == tmp_path / "cifar10_onnx" / "configs" / "tuned.pbtxt"
    assert parse_config(path.read_text()).instance_group[0].count == 2
