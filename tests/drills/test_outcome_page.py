"""Numbers with limits, results, drills.json against its schema, and the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.operate.drills import (
    DrillEnvironment,
    NoRun,
    NotMeasured,
    Number,
    Outcome,
    Result,
    find_drills,
    find_model,
    perform,
    record,
)
from labkit.operate.drills.drill import Drill
from labkit.operate.drills.outcome import FAILED, NOT_MEASURED, PASSED, Moment
from labkit.operate.drills.overload import recovery_s
from labkit.operate.drills.page import render
from labkit.operate.drills.registry import DRILLS, UnknownDrill
from labkit.operate.load import Answer, Record, parse_error

OUTCOME = Outcome(
    done="a <b>bold</b> thing", client="12 answers", metrics="12", lost="nothing", cause="so it is",
    numbers=[Number("failed requests", 0, at_most=0, n=12), Number("time", 3.25, "s")],
    seconds=Record([Answer(0.2, 9.0, 200, ""), Answer(1.3, 8.0, 503, "full")], 1.5).per_second(),
    moments=[Moment(0.5, "kill -9")],
)  # fmt: skip


def missed(outcome: Outcome) -> Outcome:
    return replace(outcome, numbers=[Number("failed requests", 2, at_most=0)])


@pytest.mark.parametrize(
    ("number", "passed", "limit", "text"),
    [
        (Number("x", 5, at_most=5), True, "≤ 5", "5"),
        (Number("x", 5.1, "s", at_most=5), False, "≤ 5 s", "5.1 s"),
        (Number("x", 0.89, "×", at_least=0.9, n=9, low=0.8, high=1.2), False, "≥ 0.9 ×",
         "0.89 × (0.8 to 1.2, n = 9)"),
        (Number("x", 413, at_least=413, at_most=413), True, "= 413", "413"),
        (Number("x", 12_345.6), True, "", "12,346"),
        (Number("x", 1, at_least=0.5, at_most=1.1), True, "≥ 0.5 and ≤ 1.1", "1"),
    ],
)  # fmt: skip
def test_a_number_and_its_limit(number: Number, passed: bool, limit: str, text: str) -> None:
    assert (number.passed, number.limit_text, number.text) == (passed, limit, text)


def test_one_missed_limit_fails_the_drill() -> None:
    assert Result.of("d", "t", 1.0, OUTCOME).status == PASSED
    result = Result.of("d", "t", 1.0, missed(OUTCOME))
    assert result.status == FAILED
    assert result.reason == "failed requests: 2, expected ≤ 0"


def test_one_line_says_which_limit_was_missed_or_what_clients_saw() -> None:
    assert Result.of("d", "t", 1.0, missed(OUTCOME)).summary == "failed requests: 2, expected ≤ 0"
    assert Result.of("d", "t", 1.0, OUTCOME).summary == "12 answers"
    assert Result("d", "t", NOT_MEASURED, 0.1, reason="no bubblewrap").summary == "no bubblewrap"


def test_names_are_known_and_come_in_the_order_asked_for() -> None:
    assert len({drill.name for drill in DRILLS}) == len(DRILLS)
    assert find_drills() == list(DRILLS)
    named = ["graceful-exit", "overload"]
    assert [drill.name for drill in find_drills(named)] == named
    with pytest.raises(UnknownDrill, match="got stroll, expected drills among: replica-killed"):
        find_drills(["stroll"])


def raising(error: Exception) -> Drill:
    def run(lab: DrillEnvironment) -> Outcome:
        raise error

    return Drill("full-shm", "t", run)


def test_what_a_machine_lacks_is_not_measured_and_a_fault_is_failed(lab: DrillEnvironment) -> None:
    result = perform(raising(NotMeasured("no bubblewrap")), lab)
    assert (result.status, result.reason) == (NOT_MEASURED, "no bubblewrap")
    result = perform(raising(ZeroDivisionError("by zero")), lab)
    assert result.status == FAILED
    assert "broke off: ZeroDivisionError" in result.reason


def test_record_keeps_other_drills_and_fits_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "drills.json"
    record.save(path, [Result.of("overload", "o", 1.0, OUTCOME)], "smoke", short=True)
    second = Result.of("replica-killed", "k", 2.0, missed(OUTCOME))
    saved = record.save(path, [second], "standard", short=False)
    assert saved == record.load(path)
    assert [(row["name"], row["status"], row["short"]) for row in saved["results"]] == [
        ("replica-killed", "failed", False), ("overload", "passed", True),
    ]  # fmt: skip
    assert saved["environment"]["cores"] >= 1
    assert saved["results"][1]["outcome"]["numbers"][0]["passed"] is True
    assert saved["results"][1]["outcome"]["numbers"][1]["passed"] is None


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "drills.json"
    record.save(path, [Result.of("overload", "o", 1.0, OUTCOME)], "smoke", short=True)
    content = json.loads(path.read_text())
    content["results"][0]["status"] = "fine"
    path.write_text(json.dumps(content))
    with pytest.raises(record.BadRecord, match=r"results/0/status.*delete it"):
        record.load(path)


def test_the_page_says_what_happened_and_escapes_it(tmp_path: Path) -> None:
    saved = record.save(
        tmp_path / "drills.json",
        [
            Result.of("overload", "Too much", 1.0, OUTCOME),
            Result.of("replica-killed", "Killed", 1.0, missed(OUTCOME)),
            Result("full-shm", "Full", NOT_MEASURED, 0.1, reason="no bubblewrap is here"),
        ],
        "smoke",
        short=True,
    )
    page = render(saved)
    assert "1 of 3 drills kept to their limits, 1 did not, 1 could not be measured here." in page
    assert "not measured here, because no bubblewrap is here" in page
    assert "Short drills" in page
    assert "Runtime of every replica: stand-in" in page
    assert "a &lt;b&gt;bold&lt;/b&gt; thing" in page
    assert page.count("data:image/svg+xml;base64,") == 2  # overload and replica-killed
    assert "<script" not in page and "http://" not in page.split("</style>")[1]


def test_seconds_count_answers_refusals_and_failures() -> None:
    answers = [
        Answer(0.1, 5, 200, ""), Answer(0.9, 7, 503, "full"), Answer(1.2, 5, 500, "oops"),
        Answer(2.9, 5, 200, "", resent=1),
    ]  # fmt: skip
    record_ = Record(answers, 3.0)
    rows = [(row.answered, row.refused, row.failed) for row in record_.per_second()]
    assert rows == [(1, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0)]
    assert record_.errors == {"503: full": 1, "500: oops": 1}
    assert record_.resent == 1
    assert record_.longest_gap_s() == pytest.approx(2.8)


@pytest.mark.parametrize(
    ("said", "parsed"),
    [
        (None, (200, "")),
        ('HTTP 503: {"error":"Exceeds \\"maximum\\""}', (503, 'Exceeds \\"maximum\\"')),
        ("HTTP 502: <html>", (502, "<html>")),
        ("HTTP 500: ", (500, "no message")),
        ("timeout", (0, "timeout")),
    ],
)
def test_what_a_sender_says_is_taken_apart(said: str | None, parsed: tuple[int, str]) -> None:
    assert parse_error(said) == parsed


def test_a_model_is_found_or_the_way_to_one_is_told(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(run_folder).name == "cifar10_onnx"
    with pytest.raises(NoRun, match=r"has no cifar10_onnx .* `labkit run` makes one"):
        find_model(tmp_path)
    monkeypatch.setattr("labkit.operate.drills.environment.project_root", lambda: tmp_path)
    with pytest.raises(NoRun, match="make lab PROFILE=smoke"):
        find_model()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smoke").symlink_to(run_folder)
    assert find_model() == tmp_path / "runs/smoke/model_repository/cifar10_onnx"


def test_a_private_repository_has_what_was_asked_and_the_run_stays(lab: DrillEnvironment) -> None:
    from labkit.operate.drills.environment import Queue
    from labkit.repository import parse_config

    before = {path: path.read_bytes() for path in lab.model.rglob("*") if path.is_file()}
    made = lab.repository("r", versions=(1, 3), threads=2, queue=Queue(16, 250)) / lab.name
    config = parse_config((made / "config.pbtxt").read_text())
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (16, 250_000)
    assert config.dynamic_batching.max_queue_delay_microseconds == 1_000
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert [group.count for group in config.instance_group] == [1]
    assert sorted(path.name for path in made.iterdir() if path.is_dir()) == ["1", "3"]
    assert before == {path: path.read_bytes() for path in lab.model.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("failed_at", "recovered"),
    [
        ((), 0.0),
        ((0.5,) * 20, 1.0),
        ((0.5,) * 20 + (3.5,) * 20, 4.0),
        ((3.5,), 0.0),
    ],
    ids=["at once", "a second", "relapse", "one stray request"],
)
def test_recovery_ends_with_the_last_bad_second(
    failed_at: tuple[float, ...], recovered: float
) -> None:
    good = [Answer(second + 0.1, 5.0, 200, "") for second in range(6) for _ in range(40)]
    bad = [Answer(at_s, 500.0, 503, "Request timeout expired") for at_s in failed_at]
    assert recovery_s(Record([*good, *bad], 6.0)) == recovered
