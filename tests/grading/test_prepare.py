"""A student's notebook is made ready to run without losing what the student did."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from labkit.chain import STAGES
from labkit.grading import notebook as notebook_module
from labkit.grading.notebook import (
    IntakeError,
    Prepared,
    grade_id,
    grade_ids,
    prepare,
    read_notebook,
)
from labkit.workspace import project_root

PARAMETERS = 'profile = "standard"  # smoke, standard or full\nworkspace = "runs/lab"'


def cell(source: str, *tags: str, name: str = "", check: bool = False) -> NotebookNode:
    made = new_code_cell(source)
    if tags:
        made.metadata["tags"] = list(tags)
    if name:
        flags = {"grade": check, "locked": check, "solution": not check}
        made.metadata["nbgrader"] = {"grade_id": name, **flags}
    return made


def reference() -> NotebookNode:
    return new_notebook(
        cells=[
            new_markdown_cell("# Data"),
            cell("import numpy as np"),
            cell(PARAMETERS, "parameters"),
            cell("def f():\n    ...", name="ex-01-leak"),
            cell("expect('f', f() == 1, 'hint')", name="check-01-leak", check=True),
        ]
    )


def prepared(notebook: NotebookNode) -> Prepared:
    return prepare(notebook, reference(), "smoke", "/run")


def tags(notebook: NotebookNode) -> list[list[str]]:
    return [cell.metadata.get("tags", []) for cell in notebook.cells if cell.cell_type == "code"]


# ---- preparing


def test_a_notebook_in_order_is_not_remarked_on() -> None:
    found = prepared(reference())
    assert found.notes == []
    assert [c.source for c in found.notebook.cells] == [c.source for c in reference().cells]
    assert tags(found.notebook) == [[], ["parameters"], [], []]


@pytest.mark.parametrize("stage", STAGES)
def test_the_committed_notebooks_are_in_order(stage: str) -> None:
    committed = read_notebook(project_root() / "notebooks" / f"{stage}.ipynb")
    found = prepare(committed, committed, "smoke", "/run")
    assert found.notes == []
    assert grade_ids(found.notebook) == grade_ids(committed)
    assert grade_ids(committed)
    nbformat.validate(found.notebook)


def test_outputs_attachments_and_foreign_metadata_are_dropped() -> None:
    notebook = reference()
    notebook.metadata["widgets"] = {"a": 1}
    notebook.cells[0]["attachments"] = {"a.png": {"image/png": "x"}}
    notebook.cells[1].update(execution_count=7, outputs=[new_output("stream", text="x")])
    notebook.cells[1].metadata.update(
        {"tags": ["skip-execution"], "collapsed": True, "papermill": {"status": "completed"}}
    )
    found = prepared(notebook).notebook
    assert found.cells[1].outputs == []
    assert found.cells[1].execution_count is None
    assert found.cells[1].metadata == {}
    assert "attachments" not in found.cells[0]
    assert set(found.metadata) == {"kernelspec", "language_info"}
    assert notebook.cells[1].outputs, "the notebook that was given must stay as it is"


def test_magics_and_input_and_raw_cells_stay() -> None:
    notebook = reference()
    sources = ["%%bash\nls", "!ls", "x = input()", "%matplotlib inline"]
    notebook.cells += [*map(cell, sources), new_raw_cell("raw")]
    assert [c.source for c in prepared(notebook).notebook.cells[5:]] == [*sources, "raw"]


def test_blank_cells_are_not_required() -> None:
    notebook = reference()
    notebook.cells += [cell(""), cell(" \n\t"), cell("# only a comment")]
    assert prepared(notebook).notebook.cells[-1].source == notebook.cells[-1].source


def test_a_changed_check_is_put_back() -> None:
    notebook = reference()
    notebook.cells[4].source = "print('all checks passed')"
    found = prepared(notebook)
    assert found.notes == ["the check cell check-01-leak was put back"]
    assert found.notebook.cells[4].source == reference().cells[4].source
    assert found.notebook.cells[4].metadata.nbgrader.locked


@pytest.mark.parametrize("overwritten", [False, True])
def test_what_an_editor_has_merged_into_a_check_stays(overwritten: bool) -> None:
    """JupyterLab calls merged cells as the active one; a pasted copy keeps its name, too."""
    own, notebook = "def helper(a):\n    return a\n", reference()
    check = notebook.cells[4]
    check.source = own if overwritten else f"{own}\n{check.source}"
    found = prepared(notebook)
    assert found.notes == ["the check cell check-01-leak was put back"]
    assert [c.source.strip() for c in found.notebook.cells[4:6]] == [
        own.strip(), reference().cells[4].source.strip(),
    ]  # fmt: skip
    assert not found.notebook.cells[4].metadata


def test_a_check_that_became_text_runs_again() -> None:
    notebook = reference()
    check = notebook.cells[4]
    notebook.cells[4] = new_markdown_cell(check.source, metadata=check.metadata)
    found = prepared(notebook)
    assert found.notes == ["the check cell check-01-leak was put back"]
    assert found.notebook.cells[4].cell_type == "code"


def test_blanks_at_line_ends_are_no_change() -> None:
    notebook = reference()
    notebook.cells[4].source += "  \r\n\n"
    found = prepared(notebook)
    assert found.notes == []
    assert found.notebook.cells[4].source == reference().cells[4].source


def test_a_missing_check_is_only_noted() -> None:
    notebook = reference()
    del notebook.cells[4]
    found = prepared(notebook)
    assert found.notes == [
        "the check cell check-01-leak is missing; its exercise is graded all the same"
    ]
    assert len(found.notebook.cells) == 4


def test_solutions_are_the_students() -> None:
    notebook = reference()
    notebook.cells[3].source = "def f():\n    return 1"
    found = prepared(notebook)
    assert found.notes == []
    assert found.notebook.cells[3].source == "def f():\n    return 1"
    assert found.notebook.cells[3].metadata.nbgrader == {
        "grade_id": "ex-01-leak",
        "schema_version": 3,
        "task": False,
        "grade": False,
        "locked": False,
        "solution": True,
    }


@pytest.mark.parametrize("entry", [None, "text", 1, [], {}, {"grade_id": 5}, {"grade_id": None}])
def test_odd_nbgrader_metadata_is_as_good_as_none(entry: object) -> None:
    notebook = reference()
    notebook.cells[1].metadata["nbgrader"] = entry
    assert grade_id(notebook.cells[1]) == ""
    assert "nbgrader" not in prepared(notebook).notebook.cells[1].metadata


@pytest.mark.parametrize(
    "source",
    [PARAMETERS, 'workspace = "runs/lab"', "profile='full'", f"{PARAMETERS}\n%time x = 1"],
)
def test_a_lost_parameters_tag_is_given_back(source: str) -> None:
    notebook = reference()
    notebook.cells[2] = cell(source)
    notebook.cells.insert(0, cell("profiled = 'x'\nif profile == 'smoke': pass"))
    found = prepared(notebook)
    assert found.notes == ["the cell that sets profile and workspace got its tag `parameters` back"]
    assert found.notebook.cells[3].metadata.tags == ["parameters"]


def test_of_cells_without_tag_the_one_that_sets_both_is_meant() -> None:
    notebook = reference()
    notebook.cells[2].metadata.clear()
    notebook.cells.insert(1, cell('profile = "smoke"'))
    notebook.cells.append(cell(PARAMETERS))
    tagged = ["parameters" in found for found in tags(prepared(notebook).notebook)]
    assert tagged == [False, False, True, False, False, False]


@pytest.mark.parametrize(("imports", "place"), [(True, 2), (False, 1)])
def test_missing_parameters_are_added_after_the_imports(imports: bool, place: int) -> None:
    notebook = reference()
    del notebook.cells[2]
    if not imports:
        notebook.cells[1].source = "x = 1"
    found = prepared(notebook)
    assert found.notes == ["a cell that sets profile and workspace was missing and was added"]
    added = found.notebook.cells[place]
    assert added.source == "profile = 'smoke'\nworkspace = '/run'"
    assert added.metadata.tags == ["parameters"]


def test_a_notebook_without_code_gets_a_cell() -> None:
    found = prepare(new_notebook(cells=[new_markdown_cell("x")]), new_notebook(), "smoke", "/run")
    assert found.notebook.cells[1].metadata.tags == ["parameters"]


def test_of_several_parameters_cells_the_first_keeps_the_tag() -> None:
    notebook = reference()
    notebook.cells[0].metadata["tags"] = ["parameters"]  # papermill would take this one
    notebook.cells.append(cell("profile = 'full'", "parameters"))
    found = prepared(notebook)
    assert found.notes == ["3 cells were tagged `parameters`; the first one kept the tag"]
    assert ["parameters" in some for some in tags(found.notebook)] == [False, True] + [False] * 3
    assert not found.notebook.cells[0].metadata.get("tags")


def test_parameters_of_an_earlier_run_are_left_out() -> None:
    """Papermill would replace such a cell, wherever it is, and not add its own."""
    notebook = reference()
    notebook.cells.append(cell('profile = "full"', "injected-parameters"))
    found = prepared(notebook)
    assert found.notes == ["a cell that papermill had added in an earlier run was left out"]


def test_another_kernel_is_replaced() -> None:
    notebook = reference()
    notebook.metadata["kernelspec"] = {"name": "ir\n", "display_name": "R"}
    notebook.metadata["language_info"] = {"name": "R"}
    found = prepared(notebook)
    assert found.notes == ["it was run with the kernel python3, not with ir"]
    assert found.notebook.metadata.kernelspec.name == "python3"
    assert found.notebook.metadata.language_info == {"name": "python"}


def test_ids_are_repaired_in_the_same_way_each_time() -> None:
    notebook = reference()
    notebook.cells[1]["id"] = notebook.cells[0]["id"] = "same"
    notebook.cells[2]["id"] = "not valid!"
    del notebook.cells[3]["id"]
    notebook.cells[4]["id"] = "cell-3"
    ids = [c.id for c in prepared(notebook).notebook.cells]
    assert ids[0] == "same"
    assert ids[1:4] == ["cell-1", "cell-2", "cell-3"]
    assert len(set(ids)) == 5
    assert ids[:4] == [c.id for c in prepared(notebook).notebook.cells][:4]


# ---- reading


def write(path: Path, content: object) -> Path:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(raw)
    return path


def test_links_pipes_and_folders_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "link.ipynb").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.ipynb")  # must not block
    (tmp_path / "folder.ipynb").mkdir()
    for name in ("link", "pipe", "folder", "nothing", "no/where"):
        with pytest.raises(IntakeError, match="hand it in again") as caught:
            read_notebook(tmp_path / f"{name}.ipynb")
        assert "root:" not in str(caught.value)


def test_the_size_limit_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ipynb", {"nbformat": 4, "cells": []})
    size = path.stat().st_size
    assert read_notebook(path, size).cells == []
    with pytest.raises(IntakeError, match=r"x\.ipynb is larger than"):
        read_notebook(path, size - 1)


def test_a_bomb_of_small_parts_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook_module, "MAX_PARTS", 100)
    monkeypatch.setattr(notebook_module.json, "loads", None)
    with pytest.raises(IntakeError, match="more than 100 parts"):
        read_notebook(write(tmp_path / "x.ipynb", b"[" + b"{}," * 100 + b"1]"))


def test_nan_and_halves_of_characters_are_readable_and_writable(tmp_path: Path) -> None:
    raw = (
        b'{"nbformat": 4, "metadata": {"a": NaN, "b": -Infinity}, "cells": '
        b'[{"cell_type": "code", "source": ["x = \\"\\ud800 \\ud83d\\ude00\\""]}]}'
    )
    notebook = read_notebook(write(tmp_path / "x.ipynb", raw))
    assert notebook.cells[0].source == 'x = "? 😀"'
    nbformat.write(prepared(notebook).notebook, tmp_path / "again.ipynb")
    assert read_notebook(tmp_path / "again.ipynb").nbformat_minor == 5


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    cells = [{"cell_type": "code", "source": "x = 'ö'"}]
    raw = json.dumps({"nbformat": 4, "cells": cells}, ensure_ascii=False).encode(encoding)
    assert read_notebook(write(tmp_path / "x.ipynb", raw)).cells[0].source == "x = 'ö'"


CODE = {"cell_type": "code", "source": "x = 1", "outputs": []}


@pytest.mark.parametrize(
    ("cell", "kind", "source"),
    [
        ({**CODE, "source": None}, "code", ""),
        ({**CODE, "source": ["x = 1\n", 7, None, ["y"], "z"]}, "code", "x = 1\nz"),
        ({**CODE, "cell_type": "Code"}, "code", "x = 1"),
        ({"source": "x = 1", "outputs": []}, "code", "x = 1"),
        ({"source": "words"}, "markdown", "words"),
        ({**CODE, "cell_type": None}, "code", "x = 1"),
        ({"cell_type": "heading", "level": None, "source": "x"}, "markdown", "# x"),
        ({"cell_type": "heading", "level": "h1", "source": "x"}, "markdown", "# x"),
        ({"cell_type": "heading", "level": float("inf"), "source": "x"}, "markdown", "# x"),
    ],
    ids=str,
)
def test_an_odd_cell_costs_itself_only(
    tmp_path: Path, cell: dict[str, object], kind: str, source: str
) -> None:
    raw = {"nbformat": 4, "cells": [None, "garbage", cell, CODE]}
    odd, last = read_notebook(write(tmp_path / "x.ipynb", raw)).cells
    assert (odd.cell_type, odd.source) == (kind, source)
    assert last.source == "x = 1"


@pytest.mark.parametrize(
    "frame",
    [
        {"nbformat": 4.0, "cells": [CODE]},
        {"nbformat": "4", "cells": [CODE]},
        {"cells": [CODE]},
        {"nbformat": 4, "worksheets": [{}, {"cells": [CODE]}]},
        {"nbformat": 3, "cells": [CODE]},
    ],
    ids=str,
)
def test_a_frame_that_is_not_quite_right_is_no_matter(
    tmp_path: Path, frame: dict[str, object]
) -> None:
    assert read_notebook(write(tmp_path / "x.ipynb", frame)).cells[0].source == "x = 1"


@pytest.mark.parametrize(
    ("before", "after", "source"),
    [
        (b"gr\xf6\xdfe = 1  # \xc3\xa9", b"", "größe = 1  # é"),
        (b"x = 1", b"\0\0\x1a", "x = 1"),
        (b"x =\t1", b"\r\n ", "x =\t1"),
        (b"x = 1", b"\xff\xff}", "x = 1"),
    ],
)
def test_a_few_wrong_bytes_cost_no_notebook(
    tmp_path: Path, before: bytes, after: bytes, source: str
) -> None:
    raw = b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "' + before + b'"}]}' + after
    assert read_notebook(write(tmp_path / "x.ipynb", raw)).cells[0].source == source


DAMAGE = {
    "kernelspec": ({"kernelspec": {}}, []),
    "kernelspec with a name only": ({"kernelspec": {"name": "python3"}}, []),
    "kernelspec without a name": ({"kernelspec": {"display_name": "Python"}}, []),
    "kernelspec that is a text": ({"kernelspec": "python3"}, []),
    "language_info": ({"language_info": {}}, []),
    "metadata": ([], []),
    "display without metadata": ({}, [{"output_type": "display_data", "data": {}}]),
    "error without traceback": ({}, [{"output_type": "error", "ename": "E", "evalue": ""}]),
    "stream without name": ({}, [{"output_type": "stream", "text": "x"}]),
    "an output that is none": ({}, [7]),
}


@pytest.mark.parametrize("metadata, outputs", DAMAGE.values(), ids=DAMAGE)
def test_what_is_replaced_anyway_may_be_damaged(
    tmp_path: Path, metadata: object, outputs: list[object]
) -> None:
    cells = [{"cell_type": "code", "source": "x = 1", "metadata": {}, "outputs": outputs}]
    raw = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
    notebook = read_notebook(write(tmp_path / "x.ipynb", raw))
    nbformat.validate(prepared(notebook).notebook)
    assert notebook.cells[0].source == "x = 1"


@pytest.mark.parametrize("version", [2, 3])
def test_notebooks_of_older_formats_are_read(tmp_path: Path, version: int) -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Data"], "metadata": {}},
        {"cell_type": "code", "language": "python", "input": ["x = 1\n", "y"], "outputs": [],
         "metadata": {"nbgrader": {"grade_id": "ex-01-leak", "solution": True}}},
    ]  # fmt: skip
    raw = {
        "nbformat": version,
        "nbformat_minor": 0,
        "metadata": {},
        "worksheets": [{"cells": cells}],
    }
    heading, code = read_notebook(write(tmp_path / "x.ipynb", raw)).cells
    assert (heading.cell_type, heading.source) == ("markdown", "## Data")
    assert (code.source, grade_id(code)) == ("x = 1\ny", "ex-01-leak")


@pytest.mark.parametrize("version", [1, 5, 99])
def test_a_format_that_is_not_known_is_refused_with_a_reason(tmp_path: Path, version: int) -> None:
    raw = {"nbformat": version, "nbformat_minor": 0, "metadata": {}, "cells": []}
    with pytest.raises(IntakeError, match=f"has notebook format {version}, expected 4"):
        read_notebook(write(tmp_path / "x.ipynb", raw))


def test_very_many_cells_are_refused(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": ""}] * (notebook_module.MAX_CELLS + 1)
    with pytest.raises(IntakeError, match="2,001 cells, expected at most 2,000"):
        read_notebook(write(tmp_path / "x.ipynb", {"nbformat": 4, "cells": cells}))


def test_what_is_left_out_where_it_is_no_matter_is_filled_in(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": ["a = 1\n", "b"], "id": "x", "vendor": 1}] * 2
    notebook = read_notebook(write(tmp_path / "x.ipynb", {"nbformat": 4, "cells": cells}))
    assert notebook.cells[1].source == "a = 1\nb"
    assert notebook.cells[0].id == "x"
    assert notebook.cells[1].id == "cell-1"


@pytest.mark.parametrize("depth", [20, 100, 200, 300, 400, 600, 900, 100_000])
def test_nesting_of_any_depth_is_read_or_refused(tmp_path: Path, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    cells = b'[{"cell_type":"code","source":"1","metadata":{"nbgrader":%s,"a":%s}}]'
    raw = b'{"nbformat":4,"cells":' + cells % (nested, nested) + b"}"
    path = write(tmp_path / "x.ipynb", raw)
    try:
        notebook = read_notebook(path)
    except IntakeError:
        assert depth > 100
        return
    assert depth < 100_000
    assert len(prepared(notebook).notebook.cells) == 2
