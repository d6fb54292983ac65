"""The class page: its numbers, its figures, and what it tells the instructor to look at."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from factory import STAGES, make_class, make_item, make_record, make_result
from test_feedback import EVIL, Page, assert_inert

from labkit.grading import results as verdicts
from labkit.grading.class_page import (
    MOST_BARS,
    MOST_NAMES,
    checks_by_loss,
    class_summary,
    count_totals,
    needs_review,
    same_files,
    slowest,
    verdict_kinds,
    write_class_page,
)
from labkit.grading.feedback import write_feedback
from labkit.grading.pages import KINDS, VERDICT_WORDS, points_text
from labkit.grading.results import GRADED, Result
from labkit.grading.roster import Person, Roster, read_roster
from labkit.grading.rubric import load_rubric


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
    assert len(totals) == 28
    assert summary["mean"] == pytest.approx(statistics.fmean(totals))
    assert summary["median"] == pytest.approx(statistics.median(totals))
    lower, _, upper = statistics.quantiles(totals, n=4, method="inclusive")
    assert summary["lower_quartile"] == pytest.approx(lower)
    assert summary["upper_quartile"] == pytest.approx(upper)
    assert (summary["lowest"], summary["highest"]) == (min(totals), max(totals))
    assert summary["maximum"] == 100


def test_summary_of_one_and_of_none() -> None:
    alone = class_summary([make_result("ada", 0.5)])
    assert (alone["graded"], alone["median"], alone["upper_quartile"]) == (1, 50.0, 50.0)
    empty = class_summary([])
    assert (empty["graded"], empty["mean"], empty["median"], empty["maximum"]) == (
        0,
        None,
        None,
        0.0,
    )


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
    assert [tag for tag, _ in page.tags].count("figure") == 4


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
    assert len(matter.mentions) == 40
    text = words(page_of(tmp_path, found))
    assert "Graded without a sandbox: 40" in text
    listed = text[text.index("Needs a look") : text.index("How the totals")]
    assert listed.count("s0") == MOST_NAMES
    assert f"and {40 - MOST_NAMES} more" in listed


def test_the_roster_tells_who_is_missing_or_unknown(tmp_path: Path) -> None:
    roster = tmp_path / "roster.csv"
    roster.write_text("student,name\nada,Ada\nzoe,Zoe\n", encoding="utf-8")
    found = [make_result("ada"), make_result("bob")]
    path = write_class_page(tmp_path, found, "T", read_roster(roster))
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
    assert (len(all_three.students), all_three.artifacts) == (3, ["splits.json"])
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
    assert len(checks_by_loss(make_class(30))) > MOST_BARS


def test_verdicts_are_counted_by_kind() -> None:
    found = [
        make_result(stages=[make_record("01_data", verdict)])
        for verdict in (verdicts.OK, verdicts.OK, verdicts.CPU, verdicts.DISK, verdicts.MISSING)
    ]
    assert verdict_kinds(found, "01_data") == {"ran": 2, "limit": 2, "absent": 1}
    assert verdict_kinds(found, "02_train") == {}
    assert {word.kind for word in VERDICT_WORDS.values()} == set(KINDS)
    assert set(VERDICT_WORDS) == set(verdicts.VERDICTS)


def test_slowest_comes_first() -> None:
    found = [
        make_result("fast", timings={"notebooks": 1.0, "measure": 1.0}),
        make_result("slow", timings={"notebooks": 5.0, "measure": 9.0}),
        make_result("unknown", timings={}),
    ]
    assert [one.student for one in slowest(found)] == ["slow", "fast"]


def bars(html: str, name: str) -> dict[str, list[float]]:
    """Return the lengths in a figure, in percent of the longest that there can be, by row."""
    figure = html[html.index(f"<figcaption>{name}") :].partition("</figure>")[0]
    rows = (re.sub(r"<.*?>", "", row.partition("</td>")[0]) for row in figure.split("<tr>")[1:])
    lengths = ([float(x) for x in re.findall(r"width:([\d.]+)%", row)] for row in
               figure.split("<tr>")[1:])  # fmt: skip
    return dict(zip(rows, lengths, strict=True))


def test_figures_show_the_numbers_that_they_are_given(tmp_path: Path) -> None:
    counted = count_totals([5, 55, 58, 100], 100)
    assert (counted.width, counted.counts) == (10, [1, 0, 0, 0, 0, 2, 0, 0, 0, 1])
    shares = [(0.0, verdicts.OK), (0.0, verdicts.OK), (0.5, verdicts.OK), (1.0, verdicts.CPU)]
    found = [
        make_result(
            f"s{number}",
            items=[make_item(0, share)],
            stages=[make_record("01_data", verdict)],
            timings={"notebooks": 30.0 - number, "measure": 12.0 - number},
        )
        for number, (share, verdict) in enumerate(shares)
    ]
    path = write_class_page(tmp_path, found)
    html, text = path.read_text(encoding="utf-8"), words(page_of(tmp_path, found))
    assert bars(html, "What became of the notebooks") == {"01_data": [75, 25]}
    assert bars(html, "Checks that cost points most often") == {found[0].items[0].title: [50, 25]}
    assert "The leaking split is found 75 %" in text
    slow = bars(html, "Slowest submissions")
    assert list(slow) == ["s0", "s1", "s2", "s3"]
    assert slow["s0"] == pytest.approx([100 * 30 / 42, 100 * 12 / 42], abs=0.01)
    assert "s0 42 s" in text
    assert "2 0–1 2 1–2 median 0.5" in text


@pytest.mark.parametrize("n", [1, 2, 5, 40, 300])
@pytest.mark.parametrize("maximum", [0, 3, 8, 100, 62.5])
def test_ranges_of_totals_are_whole_numbers_and_hold_everybody(n: int, maximum: float) -> None:
    counted = count_totals([maximum * (k % 7) / 6 for k in range(n)], maximum)
    assert isinstance(counted.width, int) and counted.width > 0
    assert sum(counted.counts) == n
    assert maximum <= counted.width * len(counted.counts) < maximum + counted.width + 1
    assert len(counted.counts) <= 10


def test_titles_and_names_are_not_cut(tmp_path: Path) -> None:
    """Every title of the rubric, and names that a figure's font may lack or take for a formula."""
    names = [r"$\frac$ {x}", "李雷"]
    titles = [item.title for item in load_rubric(None).items]
    for first in range(0, len(titles), MOST_BARS):
        some = titles[first : first + MOST_BARS]
        items = [replace(make_item(n, 0.0), title=title) for n, title in enumerate(some)]
        found = [make_result(name, items=items) for name in names]
        html = write_class_page(tmp_path, found).read_text(encoding="utf-8")
        text = words(Page(html))
        assert all(" ".join(title.split()) in text for title in some)
        assert set(bars(html, "Slowest submissions")) == set(names)


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
