"""Feedback pages: true to the result, silent on hidden checks, and inert whatever is in them."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from factory import (
    STAGES,
    code_cell,
    display,
    error,
    make_item,
    make_record,
    make_result,
    markdown_cell,
    png,
    stream,
    write_executed,
)

from labkit.grading import notebook_page, results
from labkit.grading.feedback import render_feedback, write_feedback
from labkit.grading.find_submissions import safe_name
from labkit.grading.notebook_page import render_notebook
from labkit.grading.pages import VERDICT_WORDS, feedback_link, points_text, seconds_text
from labkit.grading.results import Result
from labkit.grading.rubric import UNLOCKS
from labkit.workspace import MADE_BY

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
ALLOWED = {
    "a", "b", "bdi", "body", "br", "code", "div", "h1", "h2", "h3", "head", "html", "i", "img",
    "li", "meta", "p", "pre", "section", "small", "span", "style", "table", "tbody", "td", "th",
    "thead", "title", "tr", "ul", "ol", "hr", "blockquote", "figure", "figcaption",
}  # fmt: skip


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str]:
        return [attributes["href"] for tag, attributes in self.tags if tag == "a"]


def assert_inert(html: str) -> Page:
    """Nothing in the page can run or load anything."""
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert "src" not in attributes or attributes["src"].startswith("data:image/png;base64,")
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not [link for link in page.links() if ":" in link or link.startswith("/")]
    return page


def notebook_of(tmp_path: Path, cells: Any) -> Page:
    path = write_executed(tmp_path, "ada", "01_data", cells)
    return assert_inert(render_notebook(path, "ada", "01_data"))


def test_the_page_shows_the_results_numbers() -> None:
    items = [make_item(number, share) for number, share in enumerate([1.0, 0.5, 0.0, 1.0, 0.25])]
    result = make_result("ada", items=items)
    page = assert_inert(render_feedback(result))
    text = " ".join(page.text.split())
    assert f"{points_text(result.points)} of {points_text(result.maximum)}" in text
    assert "2 of 5 checks earned full points." in text
    assert f"01_data ran {points_text(3)} of 8" in text
    assert f"02_train ran {points_text(2.5)} of 4" in text
    for item in items:
        assert item.title in text
        assert item.reason in text
        assert not item.hint or f"Hint: {item.hint}" in text


def test_most_to_gain_names_the_three_largest_losses_first() -> None:
    result = make_result("ada", items=[make_item(number, 0.0) for number in (0, 2, 5, 21)])
    text = Page(render_feedback(result)).text
    gain = text[text.index("Most to gain") : text.index("Notebook by notebook")]
    assert "8 more points" in gain
    assert gain.index("8 more points") < gain.index("6 more points") < gain.index("4 more points")
    assert "2 more points" not in gain


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hidden_items_tell_points_and_title_only(tmp_path: Path, share: float) -> None:
    result = make_result("ada", share)
    hidden = [item for item in result.items if not item.visible]
    assert hidden
    assert all("SECRET" in item.reason for item in hidden)
    index = write_feedback(tmp_path, result, tmp_path / "evidence" / result.student)
    pages = "".join(path.read_text(encoding="utf-8") for path in index.parent.glob("*.html"))
    for item in hidden:
        assert item.title in pages
    assert "SECRET" not in pages
    assert str(result.seed) not in pages


def test_other_students_are_not_named() -> None:
    result = make_result("ada", same_as={"model.pt": ["bob_the_other"]})
    assert "bob_the_other" not in render_feedback(result)


@pytest.mark.parametrize("verdict", results.VERDICTS)
def test_every_verdict_has_a_sentence(tmp_path: Path, verdict: str) -> None:
    record = make_record("03_export", verdict, reason="Because of it.")
    index = write_feedback(
        tmp_path, make_result("ada", stages=[record]), tmp_path / "evidence" / "ada"
    )
    page = Page(index.read_text(encoding="utf-8"))
    assert VERDICT_WORDS[verdict].sentence in page.text
    assert VERDICT_WORDS[verdict].label in page.text
    assert "Because of it." in page.text
    ran = verdict not in (results.MISSING, results.AMBIGUOUS, results.INVALID)
    assert ("03_export.html" in page.links()) is ran
    assert (index.parent / "03_export.html").exists() is ran


def test_a_verdict_that_is_not_known_is_no_accident() -> None:
    assert "no verdict that it knows" in render_feedback(
        make_result(stages=[make_record("01_data", "brand_new")])
    )


def test_what_was_carried_forward_is_explained_once_per_notebook() -> None:
    stages = [
        make_record("03_export", results.ERROR, accepted=False, why_not="model.onnx is missing."),
        make_record("04_quantize", used_reference=["model.onnx"]),
        make_record("05_configure", used_reference=["model.pt", "model.onnx", "made.up"]),
    ]
    text = " ".join(Page(render_feedback(make_result(stages=stages))).text.split())
    assert (
        "Notebook 04 was run on the reference's model.onnx, because yours from notebook 03 was not "
        "used: model.onnx is missing. This costs you nothing here." in text
    )
    assert "reference's model.pt and model.onnx, because yours from notebook 03 were not" in text
    assert "reference's made.up, because yours was not used. This costs" in text
    assert "Its files were not passed on to later notebooks: model.onnx is missing." in text
    assert "instead of those of 03_export" in text


ALL = [name for name, maker in MADE_BY.items() if maker < "04_quantize"]


def text_of(result: Result, **options: Any) -> str:
    return " ".join(Page(render_feedback(result, **options)).text.split())


def only_two_handed_in() -> Result:
    stages = [make_record(stage) for stage in STAGES[:2]]
    for stage in STAGES[2:]:
        stages.append(make_record(stage, results.MISSING, accepted=False, used_reference=ALL))
    items = [make_item(number, 1.0 if number < 7 else 0.0) for number in range(32)]
    return make_result("ada", items=items, stages=stages)


def test_a_notebook_that_was_not_handed_in_was_run_on_nothing() -> None:
    text = text_of(only_two_handed_in())
    assert "on the course's own files" not in text
    assert "was run on the reference's" not in text
    assert "Its files were not passed on" not in text
    assert "notebook 08 was not handed in" in text
    assert " 0% of the cases are right" not in text
    assert "Hint:" not in text


def test_missing_notebooks_are_asked_for_once() -> None:
    result = only_two_handed_in()
    text = text_of(result)
    gain = text[text.index("Most to gain") : text.index("Notebook by notebook")]
    gap = points_text(result.maximum - result.points)
    assert gain.strip() == f"Most to gain Hand in notebooks 03 to 08: {gap} more points"


def test_notebooks_with_a_gap_between_are_named_one_by_one() -> None:
    stages = [
        make_record(stage, verdict, accepted=False)
        for stage, verdict in zip(
            STAGES[:6],
            [results.MISSING, results.OK, results.MISSING, *[results.INVALID] * 3],
            strict=True,
        )
    ]
    text = text_of(make_result(items=[make_item(n, 0.0) for n in range(26)], stages=stages))
    assert "Hand in notebooks 01 and 03: " in text
    assert "Save in JupyterLab and hand in again: notebooks 04 to 06: " in text
    assert "notebook 05 cannot be read" in text


def test_only_files_that_a_notebook_ran_on_are_carried() -> None:
    stages = [
        make_record("02_train", results.ERROR, accepted=False),
        make_record("03_export", results.OK, used_reference=["checkpoint.pt"]),
        make_record("04_quantize", results.ERROR, accepted=False),
        make_record("05_configure", results.MISSING, used_reference=["model_int8.pt"]),
    ]
    assert "own files instead of those of 02_train; that" in text_of(make_result(stages=stages))


def timed_out(tmp_path: Path, verdict: str = results.TIMEOUT) -> tuple[str, Page]:
    result = make_result(
        "ada",
        items=[make_item(number, 0.0) for number in range(7, 13)],
        stages=[make_record("03_export", verdict, accepted=False)],
    )
    busy = code_cell("\n\nloop_forever()\n# on and on", count=None)
    cells = [markdown_cell("# 3"), code_cell("a"), code_cell(" ", count=None), code_cell("b")]
    cells += [busy, code_cell("c", count=None)]
    write_executed(tmp_path / "evidence", "ada", "03_export", cells)
    index = write_feedback(tmp_path, result, tmp_path / "evidence" / "ada")
    page = assert_inert((index.parent / "03_export.html").read_text(encoding="utf-8"))
    return " ".join(Page(index.read_text(encoding="utf-8")).text.split()), page


def test_what_a_stopped_notebook_cost_is_told_by_where_it_was_stopped(tmp_path: Path) -> None:
    text, _ = timed_out(tmp_path)
    gain = text[text.index("Most to gain") : text.index("Notebook by notebook")].strip()
    where = "That was in code cell 3 of 4 (`loop_forever()`)."
    assert gain == (
        "Most to gain See that notebook 03 runs to its end: 18 more points (03_export)"
        f"{VERDICT_WORDS[results.TIMEOUT].sentence} {where}"
    )
    assert where in text[text.index("Notebook by notebook") :]
    assert "Hint:" not in text


def test_the_page_of_a_stopped_notebook_marks_the_cell(tmp_path: Path) -> None:
    _, page = timed_out(tmp_path)
    assert "The notebook was stopped at code cell 3 of 4 (loop_forever())." in page.text
    assert page.links().count("#cell-3") == 1
    place = page.text.index("The notebook was stopped here. It was still running")
    assert page.text.index("on and on") < place


def test_a_kernel_that_ended_is_marked_at_the_first_cell_without_a_count(tmp_path: Path) -> None:
    path = write_executed(
        tmp_path, "ada", "01_data", [code_cell("exit()"), code_cell("b", count=None)]
    )
    cell = notebook_page.stopped_cell(path)
    assert cell is not None
    assert cell.where == "code cell 2 of 2 (`b`)"
    assert notebook_page.stopped_cell(tmp_path / "none.ipynb") is None
    done = write_executed(tmp_path, "bob", "01_data", [code_cell("a")])
    assert notebook_page.stopped_cell(done) is None


@pytest.mark.parametrize("junk", [None, 1, "x", [], [1], {"status": ["running"]}, {"tags": 1}])
def test_no_metadata_is_an_exception(tmp_path: Path, junk: Any) -> None:
    cells = [{**code_cell("x", count=None), "metadata": meta} for meta in (junk, {"tags": junk})]
    cells.append({**code_cell("y", count=None), "metadata": {"papermill": junk}})
    path = write_executed(tmp_path, "ada", "01_data", cells)
    cell = notebook_page.stopped_cell(path)
    assert cell is not None
    assert (cell.number, cell.total) == (1, 3)


def test_a_cell_that_raised_before_the_files_were_made_is_what_cost_them() -> None:
    items = [replace(make_item(number, 0.0), value=None) for number in (9, 10, 11)]
    items += [make_item(7, 0.0), make_item(12, 0.5)]
    reason = "code cell 4 of 9 (`f()`): ValueError: x"
    stages = [make_record("03_export", results.ERROR, accepted=False, reason=reason)]
    text = text_of(make_result(items=items, stages=stages))
    assert f"notebook 03 makes its files: 12 more points (03_export)C{reason[1:]}." in text
    assert "eval mode" not in text  # of a file that was not made
    assert "Hint: mind epsilon" in text  # of an exercise, which is called by itself


def test_files_that_were_replaced_together_name_the_notebook_that_caused_it() -> None:
    stages = [
        make_record("02_train"),
        make_record("03_export", results.TIMEOUT, accepted=False),
        make_record("04_quantize", used_reference=["checkpoint.pt", "model.onnx"]),
        make_record("08_report", used_reference=["checkpoint.pt", "quantize.json"]),
    ]
    text = text_of(make_result(stages=stages))
    assert (
        "Notebook 04 was run on the reference's model.onnx, because yours from notebook 03 was not "
        "used: model.pt was not made. This costs you nothing here. It was given the reference's "
        "checkpoint.pt as well, because notebook 03 left no usable model.onnx; files that belong "
        "together were replaced together."
    ) in text
    assert (
        "08 was run on the reference's checkpoint.pt and quantize.json, because notebook 03 left "
        "no usable files (model.pt was not made); files that belong together"
    ) in text
    assert "yours from notebook 02" not in text


def test_points_lost_against_the_references_model_say_so() -> None:
    items = [make_item(number, 0.5) for number in (13, 16)]
    said = "50% of the cases are right; FP32 is the reference's model.onnx here"
    given = make_record("04_quantize", used_reference=["model.onnx"])
    assert text_of(make_result(items=items, stages=[given])).count(said) == 1
    assert said not in text_of(make_result(items=items, stages=[make_record("04_quantize")]))


@pytest.mark.parametrize("status", [results.REJECTED, results.FAILED])
def test_of_what_was_not_graded_only_the_reason_is_shown(status: str) -> None:
    text = text_of(make_result("a", 0.0, status=status, reason="It is no zip.", stages=[]))
    assert text.endswith("It is no zip.")
    for noise in ("✘", "Hint:", "Most to gain", "checks earned", "How this was graded"):
        assert noise not in text


def test_rejected_and_failed_say_so_first() -> None:
    rejected = make_result("a", 0.0, status=results.REJECTED, reason="It is no zip.", stages=[])
    failed = make_result("b", 0.0, status=results.FAILED, reason="The disk was full.", stages=[])
    assert "Nothing could be graded." in render_feedback(rejected)
    assert "It is no zip." in render_feedback(rejected)
    assert "not your fault" in render_feedback(failed)
    assert "These points are not final." not in render_feedback(make_result())
    assert "0 of 0" in Page(render_feedback(make_result(items=[], stages=[]))).text


def test_nothing_that_a_student_controls_becomes_html(tmp_path: Path) -> None:
    name = EVIL.replace("/", "_")  # a folder's name may hold anything else
    record = make_record(
        "03_export",
        results.ERROR,
        accepted=False,
        reason=EVIL,
        why_not=EVIL,
        notes=[EVIL],
        used_reference=[EVIL],
    )
    item = replace(make_item(9, 0.5), title=EVIL, reason=EVIL, hint=EVIL)
    result = make_result(name, items=[item], stages=[record], notes=[EVIL], reason=EVIL)
    cells = [
        markdown_cell(
            f"# {EVIL}\n{EVIL} `{EVIL}` **{EVIL}** *x{EVIL}*\n```\n{EVIL}\n```\n|{EVIL}|"
        ),
        code_cell(f"x = '{EVIL}' # {EVIL}\n%%html\n{EVIL}", stream(EVIL), stream(EVIL, "stderr")),
        code_cell("f()", error(EVIL, EVIL), display(text_plain=EVIL, text_html=EVIL)),
        code_cell("g()", {"output_type": "display_data", "data": {EVIL: EVIL}}),
        code_cell("h()", {"output_type": EVIL, "name": EVIL}, {"output_type": "stream"}),
        {"cell_type": "raw", "source": EVIL},
        {"cell_type": EVIL, "source": [EVIL, EVIL], "execution_count": EVIL, "outputs": EVIL},
    ]
    cells[3]["execution_count"] = EVIL
    write_executed(tmp_path / "evidence", name, "03_export", cells)
    index = write_feedback(tmp_path, result, tmp_path / "evidence" / result.student)
    page = assert_inert(index.read_text(encoding="utf-8"))
    assert page.text.count(EVIL) >= 7  # shown as it was typed
    assert name in page.text
    notebook = assert_inert((index.parent / "03_export.html").read_text(encoding="utf-8"))
    assert notebook.text.count("<script>alert(1)</script>") >= 12


def test_links_are_quoted_for_any_folder_name(tmp_path: Path) -> None:
    name = 'Smith, "J" #1?&%41 ünï'
    write_executed(tmp_path / "evidence", name, "01_data", [code_cell("1")])
    index = write_feedback(tmp_path, make_result(name), tmp_path / "evidence" / name)
    assert index == tmp_path / "feedback" / safe_name(name) / "index.html"
    for link in Page(index.read_text(encoding="utf-8")).links():
        if not link.startswith("#"):
            assert (index.parent / unquote(link)).is_file()


@pytest.mark.parametrize("name", [".", "..", "a/../..", "-rf", "CON:"])
def test_pages_lie_in_a_folder_of_their_own_whatever_the_name(tmp_path: Path, name: str) -> None:
    index = write_feedback(tmp_path, make_result(name), tmp_path / "evidence" / "x")
    assert index.parent.parent == tmp_path / "feedback"
    assert index.parent.resolve() == index.parent
    assert (tmp_path / unquote(feedback_link(name))).samefile(index)


def test_a_folder_name_that_is_not_utf8_gets_its_pages(tmp_path: Path) -> None:
    index = write_feedback(tmp_path, make_result("caf\udce9"), tmp_path / "evidence" / "x")
    assert "caf?" in index.read_text(encoding="utf-8")


def test_pages_of_an_earlier_grading_do_not_stay(tmp_path: Path) -> None:
    index = write_feedback(tmp_path, make_result("ada"), tmp_path)
    assert (index.parent / "01_data.html").exists()
    gone = make_result("ada", stages=[make_record("01_data", results.MISSING)])
    write_feedback(tmp_path, gone, tmp_path)
    assert not (index.parent / "01_data.html").exists()


def test_there_is_a_page_for_each_executed_notebook(tmp_path: Path) -> None:
    index = write_feedback(tmp_path, make_result("ada"), tmp_path)
    assert {path.stem for path in index.parent.glob("*.html")} == {"index", *STAGES}


# The executed notebook


def test_code_text_and_figures_are_shown(tmp_path: Path) -> None:
    page = notebook_of(
        tmp_path,
        [
            markdown_cell(
                "## Title\n\nOne\nline with **bold** words.\n\n- an item\n\n```\na  b\n```"
            ),
            code_cell("import os\nprint(os)", stream("hello \x1b[31mred\x1b[0m\n")),
            code_cell("plot()", display(image_png=png(), text_plain="<Figure>")),
            code_cell("1/0", error("ZeroDivisionError", "division by zero"), count=None),
        ],
    )
    assert "Title" in page.text
    assert "One\nline with bold words." in page.text
    assert "hello red" in page.text
    assert "\x1b" not in page.text
    assert "<Figure>" not in page.text
    assert [a["src"] for tag, a in page.tags if tag == "img"] == [f"data:image/png;base64,{png()}"]
    assert all(a["alt"] for tag, a in page.tags if tag == "img")
    assert "code cell 3: ZeroDivisionError: division by zero" in page.text
    assert "#cell-3" in page.links()
    assert ("b", {}) in page.tags


def test_only_the_last_state_of_a_progress_bar_is_shown(tmp_path: Path) -> None:
    page = notebook_of(tmp_path, [code_cell("run()", stream("10%\r55%\r100%\r\ndone\r\n"))])
    assert "100%\ndone" in page.text
    assert "55%" not in page.text


@pytest.mark.parametrize(
    "kind", ["text/html", "image/svg+xml", "application/javascript", "text/latex", "image/jpeg"]
)
def test_other_formats_are_named_but_not_shown(tmp_path: Path, kind: str) -> None:
    output = {"output_type": "display_data", "data": {kind: "SECRET", "text/plain": "plain words"}}
    page = notebook_of(tmp_path, [code_cell("x", output)])
    assert "SECRET" not in page.text
    assert "plain words" in page.text
    assert f"Not shown here: {kind}." in page.text


@pytest.mark.parametrize(
    "image",
    [
        "not base64 <script>",
        png()[:40] + "<>" + png()[40:],
        base64.b64encode(b"GIF89a" + b"x" * 40).decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
        base64.b64encode(
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + b"\0" * 9
        ).decode(),
        base64.b64encode(base64.b64decode(png()) + b"\0" * 2_000_000).decode(),
        ["a", 1],
        None,
    ],
)
def test_a_figure_that_is_no_small_png_is_left_out(tmp_path: Path, image: Any) -> None:
    page = notebook_of(tmp_path, [code_cell("x", display(image_png=image))])
    assert "A figure is not shown" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_long_outputs_are_cut_and_say_how_much(tmp_path: Path) -> None:
    page = notebook_of(tmp_path, [code_cell("x", stream("a" * 1_254_567))])
    assert "… 1,234,567 more characters" in page.text
    assert "a" * 20_000 in page.text
    assert "a" * 20_001 not in page.text
    lines = notebook_of(tmp_path, [code_cell("x", stream("row\n" * 1000))])
    assert lines.text.count("row") == 200
    assert "… 3,200 more characters" in lines.text
    short = notebook_of(tmp_path, [code_cell("x", stream("row\n" * 200))])
    assert "more characters" not in short.text


def test_many_outputs_cells_and_a_large_page_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = notebook_of(tmp_path, [code_cell("x", *[stream("o")] * 100)])
    assert "… 60 more outputs" in page.text
    monkeypatch.setattr(notebook_page, "MAX_CELLS", 3)
    cells = [code_cell("x", stream("&" * 10_000))] * 5
    assert "… 2 more cells are not shown" in notebook_of(tmp_path, cells).text
    monkeypatch.setattr(notebook_page, "MAX_PAGE_CHARS", 120_000)
    assert "… 3 more cells are not shown" in notebook_of(tmp_path, cells).text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 200_000, "damaged"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "damaged"),
        (b"9" * 100_000, "damaged"),
        (b"null", "no list of cells"),
        (b"[]", "no list of cells"),
        (b'{"worksheets": []}', "no list of cells"),
        (b'{"cells": {"a": 1}}', "no list of cells"),
        (b'{"cells": []}', "has no cells"),
    ],
)
def test_a_damaged_notebook_gives_a_page_that_says_so(
    tmp_path: Path, content: bytes, said: str
) -> None:
    assert said in notebook_of(tmp_path, content).text


def test_a_notebook_that_is_missing_too_large_or_a_link_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "was not kept" in render_notebook(tmp_path / "none.ipynb", "ada", "01_data")
    path = write_executed(tmp_path, "ada", "01_data", [code_cell("SECRET")])
    link = tmp_path / "link.ipynb"
    link.symlink_to(path)
    assert "was not kept" in render_notebook(link, "ada", "01_data")
    assert "was not kept" in render_notebook(tmp_path, "ada", "01_data")
    monkeypatch.setattr(notebook_page, "MAX_FILE_BYTES", 20)
    assert "is larger than" in render_notebook(path, "ada", "01_data")


@pytest.mark.parametrize("junk", [None, 1, "x", [], {}, [1], [None], {"a": []}, [{}], 1e309, True])
def test_no_shape_of_a_cell_is_an_exception(tmp_path: Path, junk: Any) -> None:
    cells = [junk]
    for key in ("cell_type", "source", "outputs", "execution_count"):
        cells.append({"cell_type": "code", "source": "s", "outputs": [], key: junk})
    for key in ("output_type", "name", "text"):
        cells.append(code_cell("s", {"output_type": "stream", key: junk}))
    for key in ("ename", "evalue", "traceback"):
        cells.append(code_cell("s", {"output_type": "error", key: junk}))
    cells += [code_cell("s", {"output_type": "display_data", "data": junk})]
    cells += [code_cell("s", {"output_type": "display_data", "data": {"text/plain": junk}})]
    cells += [{"cell_type": "code", "source": "s", "outputs": [junk]}]
    assert "was not kept" not in notebook_of(tmp_path, json.dumps({"cells": cells})).text


def test_control_characters_and_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    result = make_result("ada", stages=[make_record("01_data")])
    write_executed(tmp_path, "ada", "01_data", '{"cells": [{"source": "a\\ud800\\u0000\\u0008b"}]}')
    index = write_feedback(tmp_path, result, tmp_path / "ada")
    text = (index.parent / "01_data.html").read_text(encoding="utf-8")
    assert "a?\ufffd\ufffdb" in text


@pytest.mark.parametrize(
    "source",
    ['"' * 20_000, "(" * 20_000, "f'{" * 6_000, "\\" * 20_000, " " * 20_000, "`" * 20_000,
     "*" * 20_000, "**a" * 6_000, "@a.b" * 5_000, "rb'\\\n" * 4_000],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_no_source_keeps_the_page_busy(tmp_path: Path, source: str) -> None:
    page = notebook_of(tmp_path, [code_cell(source), markdown_cell(source)] * 3)
    assert 'id="cell-6"' not in page.text
    assert len([1 for _, a in page.tags if a.get("class") == "cell"]) == 6


def test_durations_read_as_a_person_says_them() -> None:
    assert [seconds_text(value) for value in (0.04, 9.96, 59.4, 59.6, 185, 3725)] == [
        "0.0 s", "10.0 s", "59 s", "1 min 00 s", "3 min 05 s", "1 h 02 min",
    ]  # fmt: skip


def test_points_are_printed_without_needless_digits() -> None:
    values = (8.0, 7.5, 92.333, 0.1 + 0.2, 100.0, 0.0, 1e6)
    assert [points_text(value) for value in values] == [
        "8", "7.5", "92.33", "0.3", "100", "0", "1000000",
    ]  # fmt: skip


def test_tables_and_backticks_are_shown_as_such(tmp_path: Path) -> None:
    source = "Use `a < b`:\n\n| model | ms |\n|---|---|\n| `onnx` | **4** |\n\n[away](javascript:x)"
    page = notebook_of(tmp_path, [markdown_cell(source)])
    assert [tag for tag, _ in page.tags].count("td") == 2
    assert "a < b" in page.text and "`" not in page.text and "|" not in page.text
    assert "away" in page.text and not any("javascript" in link for link in page.links())


def test_what_exercises_unlock_is_told_once() -> None:
    locked = [
        replace(make_item(number, 0.0), hint=UNLOCKS, points=0.0, maximum=4.0)
        for number in (2, 5, 6)
    ]
    text = text_of(make_result(items=[*locked, make_item(0, 1.0)]))
    gain = text[text.index("Most to gain") : text.index("Notebook by notebook")].split("Solve")
    assert [line.partition(" points")[0] for line in gain[1:]] == [
        " the exercises of notebook 02: what it makes counts with them: 8 more",
        " the exercises of notebook 01: what it makes counts with them: 4 more",
    ]


def test_a_notebook_that_is_no_part_of_it_is_not_blamed(tmp_path: Path) -> None:
    record = make_record("03_export", used_reference=["checkpoint.pt"])
    html = render_feedback(make_result(stages=[record], items=[make_item(9, 1.0)]))
    text = " ".join(Page(html).text.split())
    assert "reference's checkpoint.pt: notebook 02 is no part of this assignment." in text
    assert "yours from notebook 02" not in text
