"""The committed notebooks: outputs stored, the lesson said, and CI's comparison really compares."""

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest

from labkit.chain import PRACTICE, STAGES
from labkit.client import LabClient
from labkit.data import load_cifar10, preprocess
from labkit.repository import VARIANTS
from labkit.runtime import load_runner
from labkit.server import TritonServer, runtime_of
from labkit.server.native.built import built_backends
from labkit.workspace import project_root

FOLDER = project_root() / "notebooks"
NAMES = (*STAGES, *PRACTICE)
PATHS = [FOLDER / f"{name}.ipynb" for name in NAMES]
CHECKED = "nbval-check-output"  # the tag of a cell whose output nbval compares
LONG_CELL = 45  # lines; a cell is as long as its idea, so this is a question, not a limit
Ran = tuple["subprocess.CompletedProcess[str]", Path]


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, project_root() / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


notebooks = pytest.mark.parametrize("path", PATHS, ids=NAMES)


@notebooks
def test_outputs_are_stored_and_clean(path: Path) -> None:
    """nbval compares nothing where nothing is stored, so an unexecuted notebook must fail here."""
    assert load_tool("execute_notebooks").flaws(read(path)) == []


@notebooks
def test_deterministic_cells_are_marked_for_comparison(path: Path) -> None:
    marked = [cell for cell in code_cells(read(path)) if CHECKED in cell.metadata.get("tags", [])]
    assert marked
    assert all(cell.outputs for cell in marked), "a marked cell without output compares nothing"


@notebooks
def test_the_file_of_the_chains_log_is_left_to_it(path: Path) -> None:
    """A server that logs into it too would show its lines as the notebook's progress."""
    assert not [cell for cell in code_cells(read(path)) if f"{path.stem}.log" in cell.source]


@notebooks
def test_the_parameters_are_literals_with_the_lab_as_default(path: Path) -> None:
    tagged = [c for c in code_cells(read(path)) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    values: dict[str, str] = {}
    exec(tagged[0].source, values)
    assert (values["profile"], values["workspace"]) == ("standard", "runs/lab")


@notebooks
def test_the_first_cell_says_what_it_is_about(path: Path) -> None:
    notebook = read(path)
    for cell in code_cells(notebook):
        if (lines := len(cell.source.splitlines())) > LONG_CELL and cell.id != "imports":
            warnings.warn(f"{path.name}, cell {cell.id}: {lines} lines, two ideas?", stacklevel=1)
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    for word in ("Goals", "reads", "writes"):
        assert word in notebook.cells[0].source


@pytest.mark.parametrize(
    ("stage", "calls"),
    [
        ("01_data", ("np.fromfile(", "reshape(-1, RECORD)", "random.permutation(", "v2.ToDtype(")),
        ("02_train", ("class CifarNet(nn.Module)", "torch.linalg.eigh(", "v2.RandomCrop(")),
        ("02_train", ("class Muon(torch.optim.Optimizer)", "torch.optim.SGD(", "learning_rate(p")),
        ("02_train", ("torch.autocast(", "loss.backward()", "torch.save(", "weights_only=True")),
        ("03_export", ("torch.jit.trace(", "torch.jit.freeze(", "torch.onnx.export(")),
        ("03_export", ("onnx.checker.", "InferenceSession(", "torch.export.export(")),
        ("04_quantize", ("prepare_fx(", "convert_fx(", "quantize_static(", "nncf.quantize(")),
        ("05_configure", ("text_format.Parse(", "pb.ModelConfig(", "get_model_config(")),
        ("06_serve", ("httpclient.InferInput(", "set_data_from_numpy(", "class_count=3")),
        ("10_pipeline", ("as_numpy()", "pb_utils.Tensor(", "pb_utils.InferenceResponse(")),
        ("10_pipeline", ("ensemble_scheduling {", "httpclient.InferInput(", "v2.Resize(")),
        ("06_serve", ("grpcclient", "async_infer(", "Inference-Header-Content-Length")),
        ("07_tune", ("def closed_loop(", "def open_loop(", "np.percentile(", "perf_analyzer")),
        ("07_tune", ("/stats", "inference_stats", ".exponential(", "intra_op_num_threads")),
        ("08_report", ("resolve_pointer(", "hashlib.sha256(", "def mcnemar(")),
        ("09_operate", ("proxy_next_upstream", "default_queue_policy", "def first_alert(")),
    ],
)
def test_the_lesson_is_on_the_page(stage: str, calls: tuple[str, ...]) -> None:
    """What a notebook teaches is called in its own cells, in the library that the field uses."""
    code = "\n".join(cell.source for cell in code_cells(read(FOLDER / f"{stage}.ipynb")))
    assert [call for call in calls if call not in code] == []


@notebooks
def test_exercises_can_be_released_and_graded(path: Path) -> None:
    """nbgrader's schema 3: ids unique, a check after each solution, markers in pairs."""
    cells = code_cells(read(path))
    graded = [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]
    ids = [entry["grade_id"] for entry in graded]
    assert len(ids) == len(set(ids))
    assert all(entry["schema_version"] == 3 for entry in graded)
    solutions = [c for c in cells if c.metadata.get("nbgrader", {}).get("solution")]
    assert len(solutions) >= 1
    for cell in solutions:
        assert cell.source.count("### BEGIN SOLUTION") == cell.source.count("### END SOLUTION") >= 1
    assert sum(entry["grade"] for entry in graded) >= len(solutions)
    unmarked = [c.id for c in cells if "### BEGIN SOLUTION" in c.source and c not in solutions]
    assert unmarked == []


@pytest.mark.parametrize("installed", [True, False])
def test_the_first_notebook_installs_the_lab_only_where_it_is_not(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a hosted notebook the checkout is there, and labkit is no package yet."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    find, names = importlib.util.find_spec, {} if installed else {"labkit": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: names.get(name, find(name, *rest))
    )
    (cell,) = [cell for cell in code_cells(read(FOLDER / "01_data.ipynb")) if cell.id == "imports"]
    exec(cell.source, {})
    checkout = [sys.executable, "-m", "pip", "install", "--quiet", ".."]
    assert commands == ([] if installed else [checkout])


def nbval(folder: Path, workspace: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LABKIT_PROFILE": "smoke", "LABKIT_WORKSPACE": str(workspace)}
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env"]
    command += ["--nbval-cell-timeout", "600", "-p", "no:cacheprovider", "-q", "--timeout", "900"]
    command += ["--nbval-sanitize-with", str(project_root() / "tests/notebooks/sanitize.cfg")]
    return subprocess.run(
        [*command, *names], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """nbval on every notebook, in order, in `smoke`, and the run that they made."""
    folder = tmp_path_factory.mktemp("nbval") / "run"
    return nbval(FOLDER, folder, *[path.name for path in PATHS]), folder


@pytest.mark.timeout(1_800)
def test_all_notebooks_run_and_repeat_their_marked_outputs(
    ran: Ran,
) -> None:
    """A failing cell or a changed output fails."""
    result, _ = ran
    assert result.returncode == 0, result.stdout[-6_000:] + result.stderr[-2_000:]
    cells = sum(len(code_cells(read(path))) for path in PATHS)
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) == cells, result.stdout[-1_000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("runtime", ["stand-in", pytest.param("native", marks=pytest.mark.native)])
def test_served_answers_are_those_of_each_models_own_runtime(
    ran: Ran, runtime: str, tmp_path: Path
) -> None:
    """All variants, over HTTP and gRPC, bit for bit: the engine is the same in both places."""
    if runtime == "native" and built_backends() is None:
        pytest.skip("no native backends: labkit triton build")
    artifacts, repository = ran[1] / "artifacts", ran[1] / "model_repository"
    specs = {name: spec for name, spec in VARIANTS.items() if (repository / name / "1").is_dir()}
    assert len(specs) == 7
    images = preprocess(load_cifar10().test.pixels[:64])
    with TritonServer(repository, models=list(specs), runtime=runtime) as server:
        for name, spec in specs.items():
            file = artifacts / next(iter(spec.artifacts))
            # The openvino backend takes OpenVINO's own precision: bf16 where a processor has it.
            options = {"precision": None} if file.suffix == ".xml" else {}
            alone = load_runner(file, **options)(images)
            # The accelerator is OpenVINO, and OnnxRunner is ONNX Runtime.
            tolerance = 1e-4 if name == "cifar10_onnx_openvino" else 0.0
            for protocol, address in (("http", server.http), ("grpc", server.grpc)):
                with LabClient(address, protocol) as client:
                    assert runtime_of(client.config(name)) == runtime
                    served = client.infer(name, images)
                np.testing.assert_allclose(served, alone, atol=tolerance, rtol=0, err_msg=name)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell(
        "print(6 * 7)", execution_count=1, metadata={"tags": [CHECKED]}
    )
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="42\n")]
    notebook.cells = [cell]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    return tmp_path


def test_a_sound_notebook_passes_nbval(tiny: Path) -> None:
    assert nbval(tiny, tiny, "tiny.ipynb").returncode == 0


@pytest.mark.parametrize("fault", ["print(6 * 8)", "1 / 0", "import sys; sys.exit(0)"])
def test_a_broken_notebook_really_fails_nbval(tiny: Path, fault: str) -> None:
    notebook = read(tiny / "tiny.ipynb")
    notebook.cells[0].source = fault
    nbformat.write(notebook, tiny / "tiny.ipynb")
    assert nbval(tiny, tiny, "tiny.ipynb").returncode != 0


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("saved to /home/ada/lab/model.onnx", "an absolute path"),
        ("UserWarning: deprecated", "a warning"),
        (" 50%|#####     | 5/10", "a progress bar"),
    ],
)
def test_unwanted_outputs_are_found(tiny: Path, text: str, flaw: str) -> None:
    notebook = read(tiny / "tiny.ipynb")
    notebook.cells[0].outputs[0].text = text
    found = load_tool("execute_notebooks").flaws(notebook)
    assert [line.split(": ", 1)[1] for line in found] == [flaw]


def test_an_unexecuted_notebook_is_found(tiny: Path) -> None:
    notebook = read(tiny / "tiny.ipynb")
    notebook.cells[0].execution_count = None
    found = load_tool("execute_notebooks").flaws(notebook)
    assert found == [f"{notebook.cells[0].id}: was not executed"]
