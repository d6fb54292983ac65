"""A figure that grows while load runs: what the metrics page says, asked twice a second."""

import contextvars
import importlib
import io
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.client import ClientError, host_and_port, metrics
from labkit.client.counters import Counters
from labkit.errors import LabError
from labkit.plots.style import GREY, PALETTE, use_style

ANSWER_LIMIT_S: Final = 2.0
REDRAW_S: Final = 1.0  # drawing takes a tenth of a second from the load; not more often
# What starts a kernel for somebody who watches: Jupyter's server, and Visual Studio Code.
WATCHED: Final = ("JPY_SESSION_NAME", "VSCODE_PID")


class LiveChartError(LabError):
    """A chart that cannot be drawn; the message says what to do."""


@dataclass(frozen=True)
class Point:
    """What one model did between two readings.

    Attributes:
        at_s: Seconds since the chart began, at the later reading.
        requests_per_s: Answered requests.
        queue_ms: Mean wait per request; not a number without requests, as the next two.
        compute_ms: Mean time of computing a request, copying in and out included.
        batch: Images per execution.
    """

    at_s: float
    requests_per_s: float
    queue_ms: float
    compute_ms: float
    batch: float


def between(before: Counters, after: Counters, seconds: float, at_s: float) -> Point:
    """Subtract two readings of one model's counters that lie some seconds apart."""
    grown = after - before
    rate = max(grown.success, 0.0) / seconds  # a server that was started again counts from 0
    return Point(at_s, rate, grown.queue_ms, grown.compute_ms, grown.mean_batch)


class LiveChart:
    """Draws what a server does while the `with` block runs.

    In JupyterLab the figure is redrawn in its place; headless it is drawn once, at the end. Outside
    a notebook nothing is shown; `figure()` returns it. A thread asks the metrics page; it ends with
    the block, and after `limit_s` in any case.

    Attributes:
        points: Model → what it did, a point for each reading.
        marks: (seconds since the chart began, what happened).
    """

    def __init__(
        self,
        url: str,
        models: Sequence[str] | None = None,
        interval_s: float = 0.5,
        limit_s: float = 600.0,
        redraw: bool | None = None,
    ) -> None:
        """Prepare a chart; nothing is asked yet.

        Args:
            url: Metrics address, `host:port`; `TritonServer.metrics`.
            models: Which models to draw; None for all that answer a request meanwhile.
            interval_s: Between two readings, 0.1 to 60. Triton itself is asked, not a copy.
            limit_s: Longest time to ask for, up to 3600.
            redraw: Draw again and again; None: where somebody watches.

        Raises:
            LiveChartError: A time is outside its range, or `models` is no list.
            ClientError: The address is none. Later, when the block begins: nothing answers there.
        """
        if isinstance(models, str):
            raise LiveChartError(f"got models={models!r}, expected a list: [{models!r}]")
        for name, value, low, high in (
            ("interval_s", interval_s, 0.1, 60.0),
            ("limit_s", limit_s, 0.1, 3600.0),
        ):
            if not low <= value <= high:
                raise LiveChartError(f"got {name}={value}, expected {low:g} to {high:g} seconds")
        self.url = host_and_port(url)
        self.models, self.interval_s, self.limit_s = models, interval_s, limit_s
        self.points: dict[str, list[Point]] = {}
        self.marks: list[tuple[float, str]] = []
        self._redraw = somebody_watches() if redraw is None else redraw
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: Any = None
        self._last: dict[str, Counters] | None = None
        self._begin_s = self._last_s = 0.0

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise LiveChartError("this chart has run already: make a new one, LiveChart(…)")
        self._last = Counters.by_model(metrics(self.url, timeout_s=ANSWER_LIMIT_S))
        self._begin_s = self._last_s = time.monotonic()
        if self._redraw:
            self._show()
        # The thread's output belongs to the cell in which it was started.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._watch,), name="labkit-live", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()  # a reading takes at most ANSWER_LIMIT_S
        self._read()
        self._show()

    @property
    def watching(self) -> bool:
        """Whether the thread still asks."""
        return self._thread is not None and self._thread.is_alive()

    def mark(self, what: str) -> None:
        """Draw a line at this moment, with a word on what happened."""
        self.marks.append((time.monotonic() - self._begin_s, what))

    def figure(self) -> Figure:
        """Draw what was read so far: requests, queue against compute, batch sizes."""
        use_style()
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        rate, times, batch = figure.subplots(3, 1, sharex=True)
        shown = {m: list(points) for m, points in self.points.items() if self._is_drawn(m, points)}
        for (model, points), colour in zip(sorted(shown.items()), PALETTE, strict=False):
            at = [point.at_s for point in points]
            style: dict[str, Any] = {"color": colour, "marker": ".", "markersize": 4}
            rate.plot(at, [p.requests_per_s for p in points], label=model, **style)
            times.plot(at, [p.queue_ms for p in points], **style)
            times.plot(at, [p.compute_ms for p in points], linestyle="--", **style)
            batch.plot(at, [p.batch for p in points], **style)
        for axis, unit in ((rate, "requests/s"), (times, "ms per request"), (batch, "batch size")):
            axis.set_ylabel(unit)
            axis.set_ylim(bottom=0)
            self._draw_marks(axis, named=axis is rate)
        times.set_title("queue (solid), compute (dashed)", fontsize=9, fontweight="normal")
        batch.set_xlabel("time (s)")
        if shown:
            figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        else:
            rate.text(
                0.5, 0.5, "no requests yet", transform=rate.transAxes, ha="center", color=GREY
            )
        return figure

    def _is_drawn(self, model: str, points: Sequence[Point]) -> bool:
        if self.models is not None:
            return model in self.models
        return any(point.requests_per_s > 0 for point in points)

    def _draw_marks(self, axis: Axes, named: bool) -> None:
        for at, what in self.marks:
            axis.axvline(at, color=GREY, linestyle=":", linewidth=1.4, zorder=0)
            if named:
                axis.annotate(
                    what, (at, 1.0), (3, -10), fontsize=8, color=GREY,
                    xycoords=("data", "axes fraction"), textcoords="offset points",
                )  # fmt: skip

    def _watch(self) -> None:
        drawn_s = time.monotonic()
        while not self._stop.wait(self.interval_s):
            if time.monotonic() - self._begin_s > self.limit_s:
                return
            self._read()
            if self._redraw and time.monotonic() - drawn_s >= REDRAW_S:
                self._show()
                drawn_s = time.monotonic()

    def _read(self) -> None:
        """Ask once; where nobody answers, the lines get a gap."""
        try:
            now = Counters.by_model(metrics(self.url, timeout_s=ANSWER_LIMIT_S))
        except ClientError:
            now = None
        at = time.monotonic()
        before, self._last = self._last, now
        seconds, self._last_s = at - self._last_s, at
        if now is None:
            for points in self.points.values():
                points.append(Point(at - self._begin_s, *[float("nan")] * 4))
        elif before is not None and seconds > 0:
            for model, counted in now.items():
                point = between(
                    before.get(model, Counters({})), counted, seconds, at - self._begin_s
                )
                self.points.setdefault(model, []).append(point)

    def _show(self) -> None:
        """Put the figure into the notebook, in the place of the one before."""
        if not in_kernel():
            return
        display = importlib.import_module("IPython.display")
        image = io.BytesIO()
        self.figure().savefig(image, format="png", dpi=100)
        picture = display.Image(image.getvalue())
        if self._handle is None:
            self._handle = display.display(picture, display_id=True)
        else:
            self._handle.update(picture)


def in_kernel() -> bool:
    """Say whether this code runs in a notebook's kernel."""
    try:
        shell = importlib.import_module("IPython").get_ipython()
    except ImportError:
        return False
    return shell is not None and hasattr(shell, "kernel")


def somebody_watches() -> bool:
    """Say whether a person's Jupyter started this kernel, and not papermill or a test."""
    return in_kernel() and any(name in os.environ for name in WATCHED)
