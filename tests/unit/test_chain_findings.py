"""What an executed notebook's cells show, in the words in which it is told."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit.chain import cell_failure, cell_findings, code_cell_numbers, progress_line


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("\n \n    x = 1\ny = 2", "x = 1"),
        ("# a remark\nprint(1)", "# a remark"),
        ("y" * 100, "y" * 60),
    ],
)
def test_a_cell_is_named_by_its_first_line_that_is_not_blank(source: str, shown: str) -> None:
    (finding,) = cell_findings([new_code_cell(source)])
    assert finding.first_line == shown
    assert finding.where == f"code cell 1 of 1 (`{shown}`)"


LOG = """\
Executing Cell 6---------------------------------------
epoch 1 of 8: 41.2 % of the validation images
Ending Cell 6------------------------------------------
Executing Cell 7---------------------------------------
{printed}
"""


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        ("", ""),
        ("epoch 2 of 8", ": epoch 2 of 8"),
        ("epoch 2 of 8\n<Figure size 800x320 with 1 Axes>", ": epoch 2 of 8"),
        ('I1129 00:37:44.119688 16867 http_server.cc:362] "Started Metrics Service"', ""),
        ("done\nEnding Cell 7----------------", ": done"),
    ],
)
def test_progress_is_the_running_cells_own(printed: str, line: str) -> None:
    numbers = [0, 1, 2, 2, 3, 4, 5, 5, 6]
    assert progress_line(LOG.format(printed=printed), numbers) == f"code cell 5 of 6{line}"
    assert progress_line("Input Notebook:  01_data.ipynb\n", numbers) == ""


def notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return new_notebook(cells=list(cells))


def test_progress_and_failures_count_cells_alike(tmp_path: Path) -> None:
    tagged = new_code_cell("profile = 'smoke'", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Train"), tagged, new_code_cell(" "), new_markdown_cell("now")]
    path = tmp_path / "02_train.ipynb"
    nbformat.write(notebook(*cells, new_code_cell("train()")), path)
    assert code_cell_numbers(path) == [0, 1, 2, 2, 2, 3]  # papermill puts its own parameters third
    own = new_code_cell("profile = 'full'")
    executed = cell_findings([*cells[:2], own, *cells[2:], new_code_cell("train()")])
    assert (executed[-1].number, executed[-1].total) == (3, 3)


def test_a_slow_cell_is_not_told_as_one_that_did_not_run(tmp_path: Path) -> None:
    path = tmp_path / "02_train.ipynb"
    nbformat.write(notebook(new_code_cell("a", execution_count=1), new_code_cell("train()")), path)
    assert cell_failure(path, timed_out=True) == "it was in code cell 2 of 2 (`train()`)"
    assert "code cell 2 of 2 (`train()`) did not run" in cell_failure(path)
