"""What an executed notebook's cells show, in the words in which it is told."""

import pytest
from nbformat.v4 import new_code_cell

from labkit.chain import cell_findings


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("# NBVAL_CHECK_OUTPUT\nprint(1)", "print(1)"),
        ("\n  # NBVAL_IGNORE_OUTPUT\n\n# NBVAL_SKIP\n    x = 1\ny = 2", "x = 1"),
        ("# a remark\nprint(1)", "# a remark"),
        ("# NBVAL_CHECK_OUTPUT", "# NBVAL_CHECK_OUTPUT"),
        ("y" * 100, "y" * 60),
    ],
)
def test_a_cell_is_named_by_its_first_line_that_is_no_marker(source: str, shown: str) -> None:
    (finding,) = cell_findings([new_code_cell(source)])
    assert finding.first_line == shown
    assert finding.where == f"code cell 1 of 1 (`{shown}`)"
