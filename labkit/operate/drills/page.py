"""drills.json → one self-contained page: a table to be read at a glance, figures, the reasons."""

from pathlib import Path
from typing import Any

from labkit.html_templates import templates
from labkit.operate.drills.outcome import FAILED, NOT_MEASURED, PASSED, Number
from labkit.plots.drills import answers_over_time
from labkit.report_page import svg
from labkit.workspace import write_text

PICTURED = ("replica-killed", "overload", "rolling-update")  # time matters
SHOWN = 2  # numbers of each drill in the table
MARKS = {PASSED: ("✔", "yes"), FAILED: ("✘", "no"), NOT_MEASURED: ("–", "open")}


def render(record: dict[str, Any]) -> str:
    """Return the page of a record as HTML.

    Args:
        record: The content of drills.json, validated.
    """
    environment = templates()
    environment.filters.update(number=_number, decisive=decisive, mark=MARKS.get)
    rows = record["results"]
    return environment.get_template("drills.html").render(
        record=record,
        headline=headline(rows),
        short=any(row["short"] for row in rows),
        figures={
            name: figure for row in rows if (name := row["name"]) and (figure := _figure(row))
        },
    )


def write_page(path: Path, record: dict[str, Any]) -> Path:
    """Write the page, all or nothing; returns its path."""
    write_text(path, render(record))
    return path


def headline(rows: list[dict[str, Any]]) -> str:
    """Return how many drills kept to their limits, in one sentence."""
    counts = {status: sum(row["status"] == status for row in rows) for status in MARKS}
    parts = [f"{counts[PASSED]} of {len(rows)} drills kept to their limits"]
    if counts[FAILED]:
        parts.append(f"{counts[FAILED]} did not")
    if counts[NOT_MEASURED]:
        parts.append(f"{counts[NOT_MEASURED]} could not be measured here")
    return ", ".join(parts) + "."


def decisive(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers of a result for the table: the first two with limits, and all missed."""
    limited = [entry for entry in row["outcome"]["numbers"] if entry["passed"] is not None]
    return [entry for i, entry in enumerate(limited) if i < SHOWN or not entry["passed"]]


def _number(entry: dict[str, Any]) -> Number:
    """Return a number of the record with its texts."""
    return Number(**{name: value for name, value in entry.items() if name != "passed"})


def _figure(row: dict[str, Any]) -> str:
    """Return a drill's figure as a data URI; empty where there is nothing to draw."""
    outcome = row["outcome"]
    if row["name"] not in PICTURED or outcome is None or not outcome["seconds"]:
        return ""
    return svg(answers_over_time(outcome["seconds"], outcome["moments"], row["title"]))
