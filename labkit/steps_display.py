"""Progress of steps on the command line: notebooks of the chain, drills."""

import time
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

COLOURS = {"passed": "green", "failed": "red", "not measured": "yellow"}


class StepsDisplay:
    """A live line on a terminal, a line per event elsewhere; a context manager.

    Args:
        console: Where it is shown.
        total: How many steps there are.
        width: Of the column with their names.
        heartbeat_s: Where there is no terminal: time between two lines of what a step says; 0: all
            that it says.
    """

    def __init__(self, console: Console, total: int, width: int, heartbeat_s: float = 0.0) -> None:
        self._console, self._total, self._width = console, total, width
        self._heartbeat_s = heartbeat_s
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[line]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("starting", line="")
        self._step, self._done = "", 0
        self._begin_s = self._next_beat_s = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, step: str, line: str) -> None:
        """Show what the running step last said."""
        if step != self._step:
            self._step, self._begin_s = step, time.monotonic()
            self._next_beat_s = self._heartbeat_s
            self._live.reset(self._task)
        title = f"[{self._done + 1}/{self._total}] {step}"
        self._live.update(self._task, description=title, line=escape(line))
        seconds = time.monotonic() - self._begin_s
        if line and not self._console.is_terminal and seconds >= self._next_beat_s:
            self._next_beat_s += self._heartbeat_s
            self._console.print(f"{title} {seconds:4.0f} s  {escape(line)}")

    def end(self, step: str, status: str, seconds: float, summary: str = "") -> None:
        """Show what became of a step."""
        self._step, self._done = "", self._done + 1
        self._console.print(
            f"[{self._done}/{self._total}] {step:{self._width}} "
            f"[{COLOURS[status]}]{status}[/] {seconds:7.1f} s  {escape(summary)}".rstrip()
        )
