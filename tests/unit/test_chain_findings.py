"""What an executed notebook's cells show, in the words in which it is told."""

import pytest
from nbformat.v4 import new_code_cell

from labkit.chain import cell_findings, progress_line


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
        ("", "cell 7"),
        ("epoch 2 of 8", "cell 7: epoch 2 of 8"),
        ("epoch 2 of 8\n<Figure size 800x320 with 1 Axes>", "cell 7: epoch 2 of 8"),
        ('I1129 00:37:44.119688 16867 http_server.cc:362] "Started Metrics Service"', "cell 7"),
        ("done\nEnding Cell 7----------------", "cell 7: done"),
    ],
)
def test_progress_is_the_running_cells_own(printed: str, line: str) -> None:
    assert progress_line(LOG.format(printed=printed)) == line
    assert progress_line("Input Notebook:  01_data.ipynb\n") == ""
