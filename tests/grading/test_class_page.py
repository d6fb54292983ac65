"""The class page: its numbers, its figures, and what it tells the instructor to look at."""

from __future__ import annotations

import base64
import statistics
import warnings
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import matplotlib.pyplot as plt
import pytest
from factory import STAGES, make_class, make_item, make_record, make_result
from test_feedback import EVIL, Page, assert_inert

from labkit.grading import results as verdicts
from labkit.grading.class_page import (
    MOST_CHECKS,
    checks_by_loss,
    class_summary,
    slowest,
    verdict_kinds,
    write_class_page,
)
from labkit.grading.feedback import write_feedback
from labkit.grading.needs_review import MOST_NAMES, needs_review, same_files
from labkit.grading.pages import VERDICT_WORDS, points_text
from labkit.grading.results import GRADED, Result
from labkit.grading.roster import Person, Roster
from labkit.grading.rubric import load_rubric
from labkit.plots.grading import (
    KINDS,
    CheckShare,
    Duration,
    missed_checks,
    slowest_submissions,
    totals_histogram,
    verdicts_by_notebook,
)


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.simplefilter("error", UserWarning)  # a letter that the font lacks


def page_of(tmp_path: Path, found: list[Result]) -> Page:
    path = write_class_page(tmp_path, found, "Triton lab")
    assert path == tmp_path / "class.html"
    return assert_inert(path.read_text(encoding="utf-8"))


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_summary_counts_graded_submissions_only() -> None:
    found = make_class(30)
    summary = class_summary(found)
    totals = [result.points for result in found if result.status == GRADED]
    assert (summary["submissions"], summary["graded"]) == (30, 28)
    assert (summary["rejected"], summary["failed"]) == (1, 1)
    assert summary["n"] == len(totals) == 28
    assert summary["mean"] == pytest.approx(statistics.fmean(totals))
    assert summary["median"] == pytest.approx(statistics.median(totals))
    lower, _, upper = statistics.quantiles(totals, n=4, method="inclusive")
    assert summary["lower_quartile"] == pytest.approx(lower)
    assert summary["upper_quartile"] == pytest.approx(upper)
    assert (summary["lowest"], summary["highest"]) == (min(totals), max(totals))
    assert summary["maximum"] == 100


def test_summary_of_one_and_of_none() -> None:
    alone = class_summary([make_result("ada", 0.5)])
    assert (alone["n"], alone["median"], alone["upper_quartile"]) == (1, 50.0, 50.0)
    empty = class_summary([])
    assert (empty["n"], empty["mean"], empty["median"], empty["maximum"]) == (0, None, None, 0.0)


def test_page_shows_the_results_numbers(tmp_path: Path) -> None:
    found = make_class(30)
    page = page_of(tmp_path, found)
    text = words(page)
    summary = class_summary(found)
    assert "30 submissions" in text
    assert "28 graded" in text
    assert f"{summary['median']:.1f} median of 100 points" in text
    assert f"{summary['mean']:.1f} mean" in text
    for result in found:
        assert f"{result.student} {points_text(result.points)}" in text
    assert [tag for tag, _ in page.tags].count("img") == 4


def test_figures_are_png_with_words_beside(tmp_path: Path) -> None:
    images = [a for tag, a in page_of(tmp_path, make_class(10)).tags if tag == "img"]
    for image in images:
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert content.startswith(b"\x89PNG")
        assert len(image["alt"]) > 20
    assert "median" in images[0]["alt"]


def test_links_lead_to_the_feedback(tmp_path: Path) -> None:
    name = 'Smith, "J" #1 ünï?'
    found = [make_result(name, stages=[]), make_result("bob", stages=[])]
    for result in found:
        write_feedback(tmp_path, result, tmp_path)
    links = page_of(tmp_path, found).links()
    assert len(links) == 2
    assert all((tmp_path / unquote(link)).is_file() for link in links)


@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_any_size_of_class_has_a_page(tmp_path: Path, n: int) -> None:
    page = page_of(tmp_path, make_class(n))
    assert len([link for link in page.links() if link.startswith("feedback/")]) >= n
    assert (tmp_path / "class.html").stat().st_size < 1_500_000
    assert ("There are no submissions." in page.text) is (n == 0)


def test_what_needs_a_look_is_listed(tmp_path: Path) -> None:
    found = [
        make_result("safe"),
        make_result("open", isolation="none"),
        make_result("crash", status=verdicts.FAILED, reason="The disk was full."),
        make_result("probe", stages=[make_record("04_quantize", verdicts.GRADER_ERROR)]),
        make_result("void", status=verdicts.REJECTED, reason="It is no zip."),
        make_result("greedy", stages=[make_record("02_train", verdicts.OOM)]),
    ]
    matters = {matter.title: matter for matter in needs_review(found, {})}
    listed = {title: [one.student for one in matter.mentions] for title, matter in matters.items()}
    assert listed == {
        "Graded without a sandbox": ["open"],
        "The grader failed": ["crash", "probe"],
        "Rejected": ["void"],
        "Hit a limit": ["greedy"],
    }
    text = words(page_of(tmp_path, found))
    assert "Needs a look" in text
    assert "The disk was full." in text
    assert "02_train: memory limit" in text
    assert "Nothing needs a look" in words(page_of(tmp_path, [make_result("safe")]))


@pytest.mark.parametrize(
    "verdict",
    [verdicts.TIMEOUT, verdicts.CPU, verdicts.OOM, verdicts.PROCESSES, verdicts.DISK,
     verdicts.OUTPUT],
)  # fmt: skip
def test_every_limit_needs_a_look(verdict: str) -> None:
    matter, *more = needs_review([make_result(stages=[make_record("02_train", verdict)])], {})
    assert matter.title == "Hit a limit"
    assert not more


def test_an_ordinary_error_needs_no_look() -> None:
    stages = [make_record("02_train", verdict) for verdict in (verdicts.ERROR, verdicts.STOPPED)]
    assert needs_review([make_result(points=60.0, stages=stages)], {}) == []


@pytest.mark.parametrize("verdict", [verdicts.ERROR, verdicts.STOPPED])
def test_high_points_with_an_error_need_a_look(verdict: str) -> None:
    found = make_result(stages=[make_record("01_data"), make_record("02_train", verdict)])
    (matter,) = needs_review([found, make_result("bob")], {})
    assert matter.title == "High points, but an error"
    (mention,) = matter.mentions
    assert mention.why == f"100 points; 02_train: {VERDICT_WORDS[verdict].label}"


def test_a_submission_without_a_right_exercise_needs_a_look() -> None:
    items = [make_item(0, 0.0), make_item(1, 0.5), make_item(2, 1.0)]
    (matter,) = needs_review([make_result(items=items)], {})
    assert matter.title == "No exercise is right"
    assert matter.mentions[0].why == "0 of 2 right, 5 points"
    assert needs_review([make_result(items=[*items, make_item(3, 1.0)])], {}) == []
    assert needs_review([make_result(items=[make_item(2, 0.0)])], {}) == []  # no exercise was set


def test_numbers_say_whom_they_leave_out(tmp_path: Path) -> None:
    graded = [make_result("ada"), make_result("bob", 0.5)]
    void = make_result("void", 0.0, status=verdicts.REJECTED, reason="It is no zip.", stages=[])
    text = words(page_of(tmp_path, [*graded, void]))
    assert "75.0 median of 100 points, of the 2 graded" in text
    assert "75.0 mean, of the 2 graded" in text
    assert "of the 2 graded" not in words(page_of(tmp_path, graded))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    found = [make_result(f"s{number:03d}", isolation="none") for number in range(40)]
    (matter,) = needs_review(found, {})
    assert (len(matter.mentions), matter.count, matter.more) == (MOST_NAMES, 40, 40 - MOST_NAMES)
    assert f"and {40 - MOST_NAMES} more" in words(page_of(tmp_path, found))


def test_the_roster_tells_who_is_missing_or_unknown(tmp_path: Path) -> None:
    roster = tmp_path / "roster.csv"
    roster.write_text("student,name\nada,Ada\nzoe,Zoe\n", encoding="utf-8")
    path = write_class_page(tmp_path, [make_result("ada"), make_result("bob")], "T", roster)
    text = words(Page(path.read_text(encoding="utf-8")))
    assert "No submission: 1 On the roster, but without a submission. Zoe" in text
    assert "Not on the roster: 1" in text
    assert needs_review([make_result("ada")], Roster([Person("ada")])) == []


def test_same_files_are_grouped_by_who_shares_them(tmp_path: Path) -> None:
    three = {"ada", "bob", "cy"}

    def result(student: str, *partners: str) -> Result:
        same = {"splits.json": sorted(three - {student})}
        return make_result(
            student, same_as=same | {name: list(partners) for name in ("m.pt", "c.pt") if partners}
        )

    found = [result("ada", "bob"), result("bob", "ada"), result("cy")]
    pair, all_three = same_files(found)
    assert (pair.students, pair.artifacts) == (["ada", "bob"], ["c.pt", "m.pt"])
    assert (all_three.count, all_three.artifacts) == (3, ["splits.json"])
    text = words(page_of(tmp_path, found))
    assert "Reported, not judged: equal code gives equal files." in text
    assert same_files([make_result("ada", same_as={"m.pt": []})]) == []
    named = [replace(found[0], name="Ada L"), *found[1:]]
    assert same_files(named)[0].students == [{"ada": "Ada L"}.get(s, s) for s in pair.students]


def test_checks_are_sorted_by_how_many_lost_points() -> None:
    def student(*shares: float) -> Result:
        return make_result(items=[make_item(number, share) for number, share in enumerate(shares)])

    found = [student(1, 0, 0.5), student(1, 0.5, 1), student(1, 0, 1), student(1, 1, 1)]
    first, second = checks_by_loss(found)
    assert (first.none, first.some) == (0.5, 0.25)
    assert (second.none, second.some) == (0.0, 0.25)
    assert "hidden: " in checks_by_loss([make_result(items=[make_item(5, 0.0)])])[0].title
    assert len(checks_by_loss(make_class(30))) > MOST_CHECKS


def test_verdicts_are_counted_by_kind() -> None:
    found = [
        make_result(stages=[make_record("01_data", verdict)])
        for verdict in (verdicts.OK, verdicts.OK, verdicts.CPU, verdicts.DISK, verdicts.MISSING)
    ]
    assert verdict_kinds(found, "01_data") == {"ran": 2, "limit": 2, "absent": 1}
    assert verdict_kinds(found, "02_train") == {}
    assert {word.kind for word in VERDICT_WORDS.values()} == set(KINDS)
    assert set(VERDICT_WORDS) == set(verdicts.VERDICTS)


def test_slowest_comes_first_and_keeps_its_number() -> None:
    found = [
        make_result("fast", timings={"notebooks": 1.0, "measure": 1.0}),
        make_result("slow", timings={"notebooks": 5.0, "measure": 9.0}),
        make_result("unknown", timings={}),
    ]
    assert [(one.student, one.number) for one in slowest(found)] == [("slow", 2), ("fast", 1)]


def test_figures_show_the_numbers_that_they_are_given() -> None:
    bars = totals_histogram([5, 55, 58, 100], 100).axes[0]
    assert [patch.get_height() for patch in bars.patches] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert "median 56.5" in [text.get_text() for text in bars.texts]
    checks = missed_checks([CheckShare("a check", 0.25, 0.5)]).axes[0]
    assert [patch.get_width() for patch in checks.patches] == [50, 25]
    assert [text.get_text() for text in checks.texts] == ["75 %"]
    kinds = verdicts_by_notebook({"01_data": {"ran": 3, "limit": 1}}).axes[0]
    assert [patch.get_width() for patch in kinds.patches] == [3, 1]
    slow = slowest_submissions([Duration("ada", 1, 30, 12)]).axes[0]
    assert [patch.get_width() for patch in slow.patches] == [30, 12]
    assert [text.get_text() for text in slow.texts] == [" 42 s"]


@pytest.mark.parametrize("n", [1, 2, 5, 40, 300])
@pytest.mark.parametrize("maximum", [3, 8, 100, 62.5])
def test_ticks_of_students_and_points_are_whole_numbers(n: int, maximum: float) -> None:
    figures = [
        totals_histogram([maximum * (k % 7) / 6 for k in range(n)], maximum),
        verdicts_by_notebook({"01_data": {"ran": n}, "02_train": {"ran": n // 2}}),
    ]
    students = (figures[0].axes[0].yaxis, figures[1].axes[0].xaxis)
    for axis in (figures[0].axes[0].xaxis, *students):
        labels = [tick.get_text() for tick in axis.get_ticklabels()]
        assert labels and all(label.lstrip("\N{MINUS SIGN}").isdigit() for label in labels), labels
    plt.close("all")


def test_titles_are_not_cut() -> None:
    """Every title of the rubric, as the figure of missed checks writes it, and inside of it."""
    titles = [f"hidden: {item.title}" for item in load_rubric(None).items]
    for some in (titles[:12], titles[-12:]):
        figure = missed_checks([CheckShare(title, 0.2, 0.3) for title in some])
        figure.canvas.draw()
        labels = figure.axes[0].get_yticklabels()
        assert [" ".join(label.get_text().split()) for label in labels] == some
        for text in (*labels, *figure.legends[0].get_texts(), figure.axes[0].xaxis.label):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()
        plt.close(figure)


def test_a_name_is_text_in_a_figure_and_a_number_where_the_font_lacks_it() -> None:
    durations = [
        Duration(r"$\frac$ {x}", 1, 3, 1),
        Duration("李雷", 7, 2, 1),
        Duration("", 8, 1, 1),
    ]
    figure = slowest_submissions(durations)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [r"$\frac$ {x}", "no. 7", "no. 8"]
    figure.canvas.draw()  # a formula in a name would fail here


def test_nothing_that_a_student_controls_becomes_html(tmp_path: Path) -> None:
    name = EVIL.replace("/", "_")
    record = make_record("01_data", verdicts.OOM, reason=EVIL)
    found = [
        make_result(name, stages=[record], same_as={EVIL: [f"other {name}"]}),
        make_result(f"r{name}", status=verdicts.REJECTED, reason=EVIL),
        make_result(f"f{name}", status=verdicts.FAILED, reason=EVIL, isolation="none"),
    ]
    page = page_of(tmp_path, [replace(result, notes=[EVIL]) for result in found])
    assert page.text.count(name) >= 8
    assert EVIL in page.text


def test_same_results_give_the_same_page(tmp_path: Path) -> None:
    found = make_class(8)
    first = write_class_page(tmp_path / "a", found, "T").read_bytes()
    assert write_class_page(tmp_path / "b", found[::-1], "T").read_bytes() == first
    assert all(stage.split("_")[0] in first.decode() for stage in STAGES)
