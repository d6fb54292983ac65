"""The chart that grows while load runs: its arithmetic, its thread, and how a notebook shows it."""

from __future__ import annotations

import base64
import math
import threading
import time
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from monitored_models import write_models
from nbclient import NotebookClient

from labkit.bench import LoadOptions, closed_loop
from labkit.client import ClientError, Sample
from labkit.client.counters import Counters
from labkit.plots import live
from labkit.plots.live import LiveChart, LiveChartError, Point, between
from labkit.server import TritonServer, find_triton

needs_triton = pytest.mark.skipif(
    find_triton() is None, reason="the Triton wheel does not run here"
)


def counted(sums: dict[str, float]) -> Counters:
    return Counters({(name, "1"): value for name, value in sums.items()})


BEFORE = counted(
    {
        "request_success": 100.0,
        "queue_duration_us": 5_000.0,
        "compute_input_duration_us": 0.0,
        "compute_infer_duration_us": 1_000.0,
        "compute_output_duration_us": 0.0,
        "count": 400.0,
        "exec_count": 50.0,
    }
)


def live_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "labkit-live"]


def test_counters_are_summed_over_versions() -> None:
    page = [
        Sample("nv_inference_count", {"model": "m", "version": "1"}, 3),
        Sample("nv_inference_count", {"model": "m", "version": "2"}, 4),
        Sample("nv_inference_count", {"model": "other", "version": "1"}, 5),
        Sample("nv_cpu_utilization", {}, 1),
    ]
    found = Counters.by_model(page)
    assert {model: counters.images for model, counters in found.items()} == {"m": 7, "other": 5}


def test_a_point_is_what_happened_between_two_readings() -> None:
    after = counted(
        {
            "request_success": 120.0,
            "queue_duration_us": 45_000.0,
            "compute_input_duration_us": 2_000.0,
            "compute_infer_duration_us": 15_000.0,
            "compute_output_duration_us": 4_000.0,
            "count": 480.0,
            "exec_count": 60.0,
        }
    )
    # 20 requests and 80 images in 10 executions within half a second
    assert between(BEFORE, after, 0.5, 7.0) == Point(7.0, 40.0, 2.0, 1.0, 8.0)


def test_without_requests_there_is_a_rate_and_no_mean() -> None:
    point = between(BEFORE, BEFORE, 0.5, 1.0)
    assert point.requests_per_s == 0
    assert all(math.isnan(value) for value in (point.queue_ms, point.compute_ms, point.batch))


def test_a_server_that_starts_again_counts_from_zero_and_gives_no_negative_rate() -> None:
    assert between(BEFORE, counted({"request_success": 3.0}), 0.5, 1.0).requests_per_s == 0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(LiveChartError, match="expected a list"):
        LiveChart("127.0.0.1:8002", models="m")
    with pytest.raises(LiveChartError, match="got interval_s=0, expected"):
        LiveChart("127.0.0.1:8002", interval_s=0)
    with pytest.raises(LiveChartError, match="got limit_s=4000"):
        LiveChart("127.0.0.1:8002", limit_s=4000)
    with pytest.raises(ClientError, match="expected host:port"):
        LiveChart("nowhere")


def test_nothing_at_the_address_is_said_at_once_and_leaves_no_thread() -> None:
    chart = LiveChart("127.0.0.1:9")
    with pytest.raises(ClientError, match="no metrics at"), chart:
        pytest.fail("the block must not begin")
    assert live_threads() == []


def test_redrawn_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in live.WATCHED:
        monkeypatch.delenv(name, raising=False)
    assert not live.somebody_watches()  # no kernel
    monkeypatch.setattr(live, "in_kernel", lambda: True)
    assert not live.somebody_watches()  # papermill's kernel
    monkeypatch.setenv("JPY_SESSION_NAME", "07_tune.ipynb")
    assert live.somebody_watches()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> TritonServer:
    folder = tmp_path_factory.mktemp("live")
    server = TritonServer(
        write_models(folder / "repository"),
        models=["steady"],
        log_path=folder / "triton.log",
        allow_python_models=True,
    )
    with server:
        yield server


@pytest.mark.triton
@needs_triton
class TestRunning:
    def test_it_sees_what_the_load_sees(self, server: TritonServer) -> None:
        with LiveChart(server.metrics, interval_s=0.2) as chart:
            chart.mark("load begins")
            options = LoadOptions(warmup_s=0)
            load = closed_loop(server.http, "steady", clients=6, seconds=2, options=options)
            chart.mark("load ends")
            assert chart.watching
        assert live_threads() == []
        points = chart.points["steady"]
        assert len(points) >= 4
        steps = [
            b.at_s - a.at_s for a, b in zip([Point(0, 0, 0, 0, 0), *points], points, strict=False)
        ]
        counted = sum(p.requests_per_s * step for p, step in zip(points, steps, strict=True))
        assert counted == pytest.approx(load.n, rel=0.05)  # no request is lost between readings
        busy = [p.batch for p in points if p.requests_per_s > 0]
        assert max(busy) > 1.5
        figure = chart.figure()
        assert isinstance(figure, Figure)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["steady"]

    def test_it_ends_by_itself_at_its_limit(self, server: TritonServer) -> None:
        with LiveChart(server.metrics, interval_s=0.1, limit_s=0.3) as chart:
            deadline = time.monotonic() + 10
            while chart.watching and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not chart.watching

    def test_an_error_in_the_block_ends_the_thread(self, server: TritonServer) -> None:
        with pytest.raises(RuntimeError, match="mine"), LiveChart(server.metrics):
            raise RuntimeError("mine")
        assert live_threads() == []

    def test_a_chart_runs_once(self, server: TritonServer) -> None:
        chart = LiveChart(server.metrics)
        with chart:
            pass
        with pytest.raises(LiveChartError, match="make a new one"), chart:
            pytest.fail("the block must not begin")

    def test_a_server_that_goes_leaves_a_gap(self, tmp_path: Path) -> None:
        repository = write_models(tmp_path / "repository")
        server = TritonServer(
            repository,
            models=["steady"],
            log_path=tmp_path / "triton.log",
            allow_python_models=True,
        )
        with server, LiveChart(server.metrics, models=["steady"], interval_s=0.1) as chart:
            deadline = time.monotonic() + 10
            while not chart.points and time.monotonic() < deadline:
                time.sleep(0.02)
            server.stop()
        assert math.isnan(chart.points["steady"][-1].requests_per_s)
        chart.figure()

    @pytest.mark.parametrize("redraw", [False, True])
    def test_a_notebook_shows_one_picture(
        self, server: TritonServer, redraw: bool, tmp_path: Path
    ) -> None:
        code = f"""
from unittest import mock
import IPython.display as shown
from labkit.bench import LoadOptions, closed_loop
from labkit.plots.live import LiveChart
updates = 0
update = shown.DisplayHandle.update
def counted(self, *args, **kwargs):
    global updates
    updates += 1
    update(self, *args, **kwargs)
with mock.patch.object(shown.DisplayHandle, "update", counted):
    with LiveChart({server.metrics!r}, redraw={redraw}) as chart:
        closed_loop({server.http!r}, "steady", seconds=3, options=LoadOptions(warmup_s=0))
print("updates:", updates)
"""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        NotebookClient(notebook, kernel_name="python3", timeout=120).execute(cwd=tmp_path)
        pictures = [o for o in notebook.cells[0].outputs if o.output_type == "display_data"]
        texts = [o.text for o in notebook.cells[0].outputs if o.output_type == "stream"]
        assert len(pictures) == 1
        picture = base64.b64decode(pictures[0].data["image/png"])
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
        updates = int("".join(texts).split("updates:")[1])
        assert updates >= 3 if redraw else updates == 0
