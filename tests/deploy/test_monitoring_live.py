"""A real Prometheus scrapes a real Triton: what the files ask for is there, and alerts fire."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from local_prometheus import Prometheus, PrometheusError
from monitored_models import MODELS, write_models
from timeline import Timeline

from labkit.bench import BenchError, LoadOptions, LoadResult, closed_loop
from labkit.client import LabClient, metrics
from labkit.operate.programs import MissingProgram, ProgramError
from labkit.server import TritonServer, find_triton

DOCKER = Path(__file__).resolve().parents[2] / "docker"
MONITORING = DOCKER / "monitoring"
BOARD = json.loads((MONITORING / "grafana" / "dashboards" / "triton.json").read_text())
EXPRESSIONS = [(p["title"], t["expr"]) for p in BOARD["panels"] for t in p["targets"]]
LIMIT_S = 60.0
NOT_TRITONS = {
    "up": "Prometheus writes it with each scrape",
    "ALERTS": "Prometheus writes it for each alert that is pending or firing",
}
WORDS = {  # of the language; everything else in an expression is a metric or a label
    "sum", "rate", "by", "on", "or", "and", "unless", "count", "vector", "clamp_min", "max",
    "group_left", "max_over_time", "deriv", "round",
}  # fmt: skip

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here"
)
needs_triton = pytest.mark.skipif(
    find_triton() is None, reason="the Triton wheel does not run here"
)


def live(test: type) -> type:
    """Mark what needs both programs."""
    for mark in (pytest.mark.triton, pytest.mark.prometheus, needs_prometheus, needs_triton):
        test = mark(test)
    return test


def eventually(condition: Callable[[], object], found: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"after {LIMIT_S:g} s: {found()}"
        time.sleep(0.05)


def replicas_up(prometheus: Prometheus) -> float | None:
    found = prometheus.query("triton:replicas_up:sum")
    return found[0].value if found else None  # none before the rules were computed once


def metric_names(expression: str) -> set[str]:
    """The metrics in an expression: its words, without labels, times and functions."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", expression)
    bare = re.sub(r"\b(by|on|group_left) \([^)]*\)", " ", bare)
    return set(re.findall(r"[a-zA-Z_][\w:]*", bare)) - WORDS


def named_metrics() -> set[str]:
    """Every metric that the dashboard, the rules, the autoscaler or the rules' tests name."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    texts = [expression for _, expression in EXPRESSIONS]
    texts += [rule["expr"] for group in rules for rule in group["rules"]]
    names = {name for text in texts for name in metric_names(text)}
    everywhere = [*MONITORING.rglob("*.y*ml"), *(DOCKER / "kubernetes").rglob("*.y*ml")]
    for file in everywhere:
        names |= set(re.findall(r"\bnv_\w+", file.read_text()))
    return {name for name in names if ":" not in name}  # recorded ones: test_monitoring.py


def load(server: TritonServer, model: str, clients: int, seconds: float) -> LoadResult | None:
    """Put load on a model; None when every request failed, as some models do on purpose."""
    options = LoadOptions(warmup_s=0)
    with contextlib.suppress(BenchError):
        return closed_loop(server.http, model, clients=clients, seconds=seconds, options=options)
    return None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("monitored")
    repository = write_models(folder / "repository")
    with TritonServer(
        repository,
        log_path=folder / "triton.log",
        allow_python_models=True,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(
    server: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with Prometheus([server.metrics], folder, scrape_interval_s=0.5, hold_s=1) as running:
        assert running.query("nv_inference_count")  # it has seen its targets when it begins
        yield running


@pytest.fixture(scope="module")
def begin_s() -> float:
    return time.time()


@pytest.fixture(scope="module")
def answered(
    begin_s: float, server: TritonServer, prometheus: Prometheus
) -> dict[str, LoadResult | None]:
    """Load on every model at once, seen by at least two further scrapes."""
    with ThreadPoolExecutor(len(MODELS)) as pool:
        clients = {"steady": 6, "late": 6, "full": 6, "raises": 1, "polite": 1}
        jobs = {m: pool.submit(load, server, m, n, 5) for m, n in clients.items()}
        results = {model: job.result() for model, job in jobs.items()}
    end = time.time()
    seen = f"timestamp(up) > {end + 1}"  # the rules are computed as often
    eventually(lambda: prometheus.query(seen))
    return results


@pytest.mark.triton
@needs_triton
def test_every_metric_that_is_named_anywhere_is_on_the_real_page(server: TritonServer) -> None:
    on_the_page = {sample.name for sample in metrics(server.metrics)}
    assert named_metrics() - set(NOT_TRITONS) - on_the_page == set()
    assert len(named_metrics() & on_the_page) >= 10  # the search finds them


def test_the_search_for_metrics_finds_them() -> None:
    text = 'sum(rate(some_metric{a="b_c"}[1m])) by (model) / on (job) group_left () other > 0.5'
    assert metric_names(text) == {"some_metric", "other"}


@live
class TestUnderLoad:
    @pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
    def test_every_panel_has_data(
        self, title: str, expression: str, prometheus: Prometheus, answered: object
    ) -> None:
        found = prometheus.query(expression)
        assert found, title
        assert all(math.isfinite(value) for _, value in found), found

    def test_the_replica_is_up_and_every_model_is_seen(
        self, server: TritonServer, prometheus: Prometheus, answered: object
    ) -> None:
        assert prometheus.query("triton:replicas_up:sum")[0].value == 1
        (up,) = prometheus.query('up{job="triton"}')
        assert up.labels == {"job": "triton", "instance": server.metrics}
        models = {labels["model"] for labels, _ in prometheus.query("nv_inference_count")}
        assert models == set(MODELS)

    def test_batch_size_and_times_are_those_that_the_server_itself_tells(
        self, prometheus: Prometheus, answered: dict[str, LoadResult]
    ) -> None:
        told = answered["steady"].server
        for name, expected in (
            ("model:triton_batch_size:rate1m", told.mean_batch),
            ("model:triton_queue_us_per_request:rate1m", 1000 * told.queue_ms),
            ("model:triton_compute_us_per_request:rate1m", 1000 * told.compute_ms),
        ):
            (found,) = prometheus.query(f'{name}{{model="steady"}}')
            assert found.value == pytest.approx(expected, rel=0.25), name
        assert told.mean_batch > 1.5  # six clients, one instance: there was something to join

    def test_failures_are_counted_by_reason_and_some_are_not_counted(
        self, prometheus: Prometheus, answered: dict[str, LoadResult | None]
    ) -> None:
        failed = {
            (labels["model"], labels["reason"])
            for labels, value in prometheus.query("nv_inference_request_failure")
            if value
        }
        assert failed == {("late", "REJECTED"), ("raises", "BACKEND")}
        # What README.md warns of. A full queue answers 503, and is not counted at all.
        full = answered["full"]
        assert full is not None and any("maximum queue size" in error for error in full.errors)
        # And an error that a model returns as its answer is a success.
        assert answered["polite"] is None
        (polite,) = prometheus.query('nv_inference_request_success{model="polite"}')
        assert polite.value > 0

    def test_malformed_requests_are_not_counted(
        self, server: TritonServer, answered: object
    ) -> None:
        def counted() -> dict[str, float]:
            names = ("nv_inference_request_success", "nv_inference_request_failure")
            return {
                f"{s.name} {s.labels.get('reason')}": s.value
                for s in metrics(server.metrics)
                if s.name in names and s.labels["model"] == "steady"
            }

        before = counted()
        for body, status in ((b"{", 500), (b'{"inputs": []}', 400)):
            address = f"http://{server.http}/v2/models/steady/infer"
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=10)
            assert refused.value.code == status
        assert counted() == before

    def test_the_page_says_that_it_is_text(self, server: TritonServer) -> None:
        # Prometheus 3 refuses a page without a type that it knows.
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as page:
            assert page.headers.get_content_type() == "text/plain"

    def test_the_alert_names_the_model_and_the_reason(
        self, prometheus: Prometheus, answered: object
    ) -> None:
        eventually(
            lambda: (
                {
                    (a.labels["model"], a.labels["reason"])
                    for a in prometheus.alerts()
                    if a.name == "TritonRequestsFail" and a.state == "firing"
                }
                == {("late", "REJECTED"), ("raises", "BACKEND")}
            ),
            prometheus.alerts,
        )
        raises = [a for a in prometheus.alerts() if a.labels.get("model") == "raises"]
        assert raises[0].annotations["description"] == "100% of its requests in the last minute."

    def test_the_dashboards_questions_show_what_happened(
        self, begin_s: float, prometheus: Prometheus, answered: object
    ) -> None:
        line = Timeline.read(prometheus, begin_s, time.time(), step_s=0.5)
        assert set(line.queue_us) == set(line.compute_us) == set(MODELS)
        assert set(line.failures_per_s) == {"late REJECTED", "raises BACKEND"}
        assert max(line.batch["steady"][1]) > 1.5


@live
class TestReplicasThatGo:
    def test_a_killed_replica_is_pending_then_firing(self, tmp_path: Path) -> None:
        repository = write_models(tmp_path / "repository")
        server = TritonServer(
            repository,
            models=["steady"],
            log_path=tmp_path / "triton.log",
            allow_python_models=True,
        )
        prometheus = Prometheus([], tmp_path / "prometheus", scrape_interval_s=0.5, hold_s=3)
        with prometheus, server:
            port = server.metrics.split(":")[1]
            prometheus.watch([server.metrics, f"localhost:{port}"])
            eventually(lambda: replicas_up(prometheus) == 2)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            states: list[str] = []

            def firing() -> bool:
                states.extend(a.state for a in prometheus.alerts() if a.name == "TritonReplicaDown")
                return "firing" in states

            eventually(firing, prometheus.alerts)
            assert states[0] == "pending"
            eventually(
                lambda: (
                    {a.name for a in prometheus.alerts() if a.state == "firing"}
                    == {"TritonReplicaDown", "TritonDown"}
                ),
                prometheus.alerts,
            )

    def test_a_replica_that_leaves_the_list_is_gone(
        self, server: TritonServer, tmp_path: Path
    ) -> None:
        port = server.metrics.split(":")[1]
        both = [server.metrics, f"localhost:{port}"]
        rules = tmp_path / "rules.yml"  # looks back in steps of 15 s otherwise
        text = (MONITORING / "alerts.yml").read_text()
        assert "[10m:15s]" in text
        rules.write_text(text.replace("[10m:15s]", "[10m:1s]"))
        with Prometheus(both, tmp_path, scrape_interval_s=0.5, hold_s=0, rules=rules) as prometheus:
            assert {row.value for row in prometheus.query("up")} == {1.0}
            eventually(lambda: replicas_up(prometheus) == 2)
            most = 'max_over_time(count(up{job="triton"})[10m:1s])'  # the look back, as in the rule
            eventually(lambda: [row.value for row in prometheus.query(most)] == [2.0])
            assert not prometheus.query(f'count(up{{job="triton"}}) < {most}')
            assert "TritonReplicaGone" not in {a.name for a in prometheus.alerts()}
            prometheus.watch([server.metrics])
            eventually(
                lambda: {a.name for a in prometheus.alerts()} == {"TritonReplicaGone"},
                prometheus.alerts,
            )

    def test_a_server_without_a_model_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Nobody asked it to load anything: it answers, and even says that it is ready.
        monkeypatch.setattr(TritonServer, "_wait_until_ready", lambda self, models: None)
        server = TritonServer(
            write_models(tmp_path / "repository"),
            extra_args=["--model-control-mode=explicit"],
            log_path=tmp_path / "triton.log",
            allow_python_models=True,
        )
        with server, Prometheus([server.metrics], tmp_path / "p", 0.5, hold_s=0) as prometheus:
            eventually(
                lambda: {a.name for a in prometheus.alerts()} == {"TritonServesNoModel"},
                prometheus.alerts,
            )
            with LabClient(server.http) as client:
                assert client.ready()


@pytest.mark.prometheus
@needs_prometheus
class TestProgram:
    def test_nothing_of_it_stays_behind(self, tmp_path: Path) -> None:
        with Prometheus([], tmp_path) as prometheus:
            assert prometheus.running
            assert prometheus.ready()
            mine = [p for p in psutil.process_iter(["cmdline"]) if prometheus.url in _line(p)]
            assert mine
        assert not prometheus.running
        assert [p for p in psutil.process_iter(["cmdline"]) if prometheus.url in _line(p)] == []
        assert not prometheus.ready()

    def test_it_can_be_started_again_and_remembers(self, tmp_path: Path) -> None:
        prometheus = Prometheus([], tmp_path, scrape_interval_s=0.2)
        with prometheus:
            eventually(lambda: prometheus.query("triton:replicas_up:sum"))
            begin = time.time()
            with pytest.raises(ProgramError, match="already runs"):
                prometheus.start()
        with prometheus:
            (series,) = prometheus.series("triton:replicas_up:sum", begin - 1, begin, 0.2)
            assert series.values[-1] == 0

    def test_wrong_questions_are_answered_in_a_sentence(self, tmp_path: Path) -> None:
        with Prometheus([], tmp_path) as prometheus:
            with pytest.raises(PrometheusError, match="parse error"):
                prometheus.query("rate(up[")
            with pytest.raises(PrometheusError, match=r"is a matrix; .* use series\(\)"):
                prometheus.query("up[1m]")
            assert prometheus.query("1 + 1") == [({}, 2.0)]
        with pytest.raises(PrometheusError, match="does not answer"):
            prometheus.query("up")

    def test_a_target_that_is_down_does_not_keep_it_from_starting(self, tmp_path: Path) -> None:
        with Prometheus(["127.0.0.1:9"], tmp_path, scrape_interval_s=0.5) as prometheus:
            ((labels, value),) = prometheus.query("up")
            assert (labels["instance"], value) == ("127.0.0.1:9", 0.0)

    def test_broken_rules_are_shown_with_its_own_words(self, tmp_path: Path) -> None:
        rules = tmp_path / "broken.yml"
        rules.write_text("groups: [{name: a, rules: [{record: 'b', expr: 'sum('}]}]")
        with pytest.raises(
            ProgramError, match=r"(?s)prometheus ended on its own.*unclosed left parenthesis"
        ):
            Prometheus([], tmp_path / "p", rules=rules).start()


def _line(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrometheusError, match="expected a list"):
        Prometheus("127.0.0.1:8002", tmp_path)
    with pytest.raises(PrometheusError, match=r"at least 0\.1"):
        Prometheus([], tmp_path, scrape_interval_s=0)
    with pytest.raises(PrometheusError, match="not started"):
        Prometheus([], tmp_path).query("up")


def test_without_the_program_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if Path("/usr/sbin/prometheus").exists():
        pytest.skip("a system folder has it")
    with pytest.raises(MissingProgram, match="apt-get download prometheus"):
        Prometheus([], tmp_path).start()
