"""Run cells of the lab's notebooks in tests: what is tested is what stands on the page."""

import linecache
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
from torch import nn

from labkit.workspace import project_root


@cache
def _sources(stage: str) -> dict[str, str]:
    path = project_root() / "notebooks" / f"{stage}.ipynb"
    return {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}


def cell_source(stage: str, cell: str) -> str:
    """Return the text of a notebook's cell."""
    return _sources(stage)[cell]


def run_cells(stage: str, *cells: str, **given: Any) -> SimpleNamespace:
    """Execute cells of a notebook, by their ids, with some variables given.

    Returns:
        All names that are then defined.
    """
    names: dict[str, Any] = {"__name__": __name__, **given}
    for cell in cells:
        file = f"{stage}, cell {cell}"  # its source is to be found, as in a notebook's kernel
        source = cell_source(stage, cell)
        linecache.cache[file] = (0, None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), names)
    return SimpleNamespace(**names)


def write_pipeline(repository: Path) -> None:
    """Write the two models of notebook 10, as its cells do, into a repository."""
    page = run_cells("10_pipeline", "model-py", "model-config", "ensemble-config")
    for name, text in (
        ("cifar10_preprocess", page.PREPROCESS_CONFIG),
        ("cifar10_pipeline", page.PIPELINE_CONFIG),
    ):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)
    (repository / "cifar10_preprocess" / "1" / "model.py").write_text(page.MODEL_PY)


def network(widths: tuple[int, ...] = (8, 16, 16)) -> nn.Module:
    """Return the network of notebook 02, untrained, for pixels around 0.5."""
    return run_cells("02_train", "network").CifarNet([0.5] * 3, [0.25] * 3, widths)


def export_files(model: nn.Module, folder: Path, *cells: str) -> SimpleNamespace:
    """Export a model into `folder` as notebook 03 does: `trace`, `optimize`, `onnx`, or some."""
    lab = SimpleNamespace(path=lambda name: folder / name)
    wanted = cells or ("trace", "optimize", "onnx")
    return run_cells("03_export", "imports", "example", *wanted, model=model, lab=lab)


def quantizers(scratch: Path) -> SimpleNamespace:
    """Return the quantizers of notebook 04: `quantize_torchscript`, `_onnx` and `_openvino`."""
    return run_cells("04_quantize", "imports", "torchscript", "onnx", "openvino", scratch=scratch)
