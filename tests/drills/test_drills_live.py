"""Short drills on real servers: a small model, real Tritons, a real gateway."""

import json
from pathlib import Path

import psutil
import pytest
from adversarial import (
    backend_killed,
    full_shm,
    huge_body,
    killer_request,
    malformed,
    replica_restarted,
    slow_client,
)
from adversarial.memory import rss_mib, stubs
from command_lines import no_secret_shown
from typer.testing import CliRunner

from labkit.operate.commands import app
from labkit.operate.drills import Drill, DrillEnvironment, Number, Outcome, find_drills, perform
from labkit.operate.drills.outcome import NOT_MEASURED, Result
from labkit.operate.load import Load, LoadProfile
from labkit.operate.replicas import ReplicaError

pytestmark = [pytest.mark.triton, pytest.mark.nginx, pytest.mark.timeout(150)]
# What a busy machine decides, and the drill at full length judges.
SPEED = (
    "answered during the storm, against capacity", "load against capacity", "percentile",
    "slowest", "longest", "exit,", "until", "share", "answers again",
)  # fmt: skip


def done(lab: DrillEnvironment, what: str | Drill) -> Outcome:
    """Do a drill of the command, or another; every limit that is not one of speed must hold."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    result: Result = perform(find_drills([what])[0] if isinstance(what, str) else what, lab)
    if result.status == NOT_MEASURED:
        pytest.skip(result.reason)
    assert result.outcome is not None, result.reason
    missed = [number for number in result.outcome.numbers if not number.passed]
    assert not [n for n in missed if not any(word in n.name for word in SPEED)], result.reason
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not left, left
    return result.outcome


def number(outcome: Outcome, name: str) -> Number:
    return next(entry for entry in outcome.numbers if entry.name == name)


def test_a_killed_replica_costs_no_request(lab: DrillEnvironment) -> None:
    with no_secret_shown("tritonserver", "triton_python_backend_stub", "nginx"):
        outcome = done(lab, "replica-killed")
    assert number(outcome, "failed requests").value == 0
    assert number(outcome, "requests").value >= 1_000


def test_a_rolling_update_costs_no_request(lab: DrillEnvironment) -> None:
    outcome = done(lab, "rolling-update")
    assert number(outcome, "failed requests").value == 0
    assert number(outcome, "answers of the new version").value > 100


def test_overload_is_refused_and_nothing_hangs(lab: DrillEnvironment) -> None:
    outcome = done(lab, "overload")
    assert number(outcome, "neither answered nor refused").value == 0
    assert sum(second.refused for second in outcome.seconds) > 100
    assert sum(second.answered for second in outcome.seconds) > 10


def test_a_damaged_version_never_serves(lab: DrillEnvironment) -> None:
    assert number(done(lab, "corrupt-model"), "failed requests").value == 0


def test_malformed_requests_are_refused(lab: DrillEnvironment) -> None:
    outcome = done(lab, malformed.DRILL)
    assert number(outcome, "malformed requests").value == 500
    assert number(outcome, "refused with a reason").value > 200


def test_a_huge_body_stops_at_the_gateway(lab: DrillEnvironment) -> None:
    outcome = done(lab, huge_body.DRILL)
    assert number(outcome, "Triton itself: memory at the most").value > 20  # so the cap is needed


def test_what_ends_a_server_stops_at_the_gateway_where_it_can(lab: DrillEnvironment) -> None:
    done(lab, killer_request.DRILL)


def test_slow_clients_keep_nobody_waiting(lab: DrillEnvironment) -> None:
    done(lab, slow_client.DRILL)


def test_who_is_told_to_end_answers_first(lab: DrillEnvironment) -> None:
    outcome = done(lab, "graceful-exit")
    assert number(outcome, "of these lost").value == 0


def test_a_replica_that_comes_back_takes_load_again(lab: DrillEnvironment) -> None:
    outcome = done(lab, replica_restarted.DRILL)
    assert number(outcome, "failed requests").value == 0


@pytest.mark.sandbox
def test_a_full_shm_is_named_and_survived(lab: DrillEnvironment) -> None:
    assert number(done(lab, full_shm.DRILL), "large requests that failed").value > 0


def test_a_dead_model_process_is_seen_and_cured(lab: DrillEnvironment) -> None:
    outcome = done(lab, backend_killed.DRILL)
    assert number(outcome, "failed requests until then").value > 0
    assert "BACKEND" in outcome.metrics


def test_a_replica_is_killed_and_comes_back_where_it_was(lab: DrillEnvironment) -> None:
    with lab.replicas(lab.repository(), ("one",)) as replicas:
        one = replicas["one"]
        address, pid, model_pid = one.http, one.pid, stubs(one.pid)[0].pid
        assert rss_mib(pid) > 20
        one.kill()
        assert not one.running and not psutil.pid_exists(model_pid)
        with pytest.raises(ReplicaError, match="one does not run"):
            _ = one.pid
        one.start()
        assert (one.http, one.running) == (address, True)
        with Load(lab.target(one.http), LoadProfile(2, seconds=20, requests=20)) as load:
            record = load.finish()
        assert len(record.answered) == 20 and not record.failed
        with pytest.raises(ReplicaError, match="got replica 'two', expected one of one"):
            replicas["two"]


def test_the_command_writes_record_and_page(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["corrupt-model", "--short", "--run", str(run_folder), "--out", str(out)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "[1/1] corrupt-model      passed" in ran.output
    saved = json.loads((out / "drills.json").read_text())
    assert [row["status"] for row in saved["results"]] == ["passed"]
    assert "1 of 1 drills kept to their limits." in (out / "drills.html").read_text()
