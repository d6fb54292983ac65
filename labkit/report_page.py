"""`report.json` → one self-contained page: no script, no file beside it, no network."""

import base64
import io
import math
from itertools import groupby
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from labkit.html_templates import templates
from labkit.plots.report import VariantPoint, variant_comparison
from labkit.workspace import Workspace

ORIGINAL = "cifar10_torchscript"  # what the others are compared with
MAX_LINE = 180  # characters of one entry of a list; the evidence file has all of it


def render(report: dict[str, Any], workspace: Workspace) -> str:
    """Return the page of a report as HTML.

    Args:
        report: The content of `report.json`, validated.
        workspace: The run; only its name is shown.
    """
    environment = templates()
    environment.filters.update(cell=_cell, number=_number, megabytes=_megabytes, lines=_lines)
    points = variant_points(report)
    return environment.get_template("report.html").render(
        report=report,
        run=workspace.root.name,
        headline=_headline(points),
        comparison=svg(variant_comparison(points)) if points else "",
        sections=[
            (section, list(rows))
            for section, rows in groupby(report["claims"], key=lambda row: row["section"])
        ],
        unmeasured=list(_unmeasured(report)),
    )


def variant_points(report: dict[str, Any]) -> list[VariantPoint]:
    """Return what the comparison figure shows, for the variants that were measured."""
    points = []
    for row in report["variants"]:
        if row["status"] != "measured":
            continue
        value = {key: cell.get("value") for key, cell in row["cells"].items()}
        throughput = value["throughput_images_s"]
        points.append(
            VariantPoint(
                name=row["name"],
                backend=value["backend"],
                accuracy=value["accuracy"],
                accuracy_n=value["accuracy_n"],
                throughput_images_s=throughput,
                low=value.get("throughput_low") or throughput,
                high=value.get("throughput_high") or throughput,
                p50_ms=value["latency_p50_ms"],
                p95_ms=value.get("latency_p95_ms") or math.nan,
                size_mb=value["size_bytes"] / 1e6,
            )
        )
    return points


def _headline(points: list[VariantPoint]) -> list[str]:
    """Return what a reader should take away, computed from the rows of the table."""
    if not points:
        return []
    fastest = max(points, key=lambda point: point.throughput_images_s)
    original = next((point for point in points if point.name == ORIGINAL), fastest)
    ratio = fastest.throughput_images_s / original.throughput_images_s
    change = 100 * (fastest.accuracy - original.accuracy)
    smallest = min(points, key=lambda point: point.size_mb)
    return [
        f"{len(points)} variants of one network answered through the server; the original is "
        f"right on {100 * original.accuracy:.2f} % of {original.accuracy_n:,} test images.",
        f"Fastest at batch 32: {fastest.name}, {fastest.throughput_images_s:,.0f} images/s, "
        f"{ratio:.2f}× the original, accuracy {change:+.2f} points.",
        f"Smallest: {smallest.name}, {smallest.size_mb:.2f} MB against {original.size_mb:.2f} MB.",
    ]


def _unmeasured(report: dict[str, Any]) -> "list[tuple[str, str]]":
    """Return what the report does not know, each with its reason."""
    rows = [
        (row["name"], row["reason"]) for row in report["variants"] if row["status"] != "measured"
    ]
    rows += [
        (row["title"], row["reason"]) for row in report["claims"] if row["status"] != "measured"
    ]
    return rows


def svg(figure: Figure) -> str:
    """Return a figure as a data URI, its text kept as text."""
    stream = io.BytesIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "labkit"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def _cell(cell: dict[str, Any], pattern: str = "{}") -> str:
    """Format a measured value; a dash where there is none."""
    return pattern.format(cell["value"]) if cell["status"] == "measured" else "–"


def _number(cell: dict[str, Any], digits: int = 0, scale: float = 1.0) -> str:
    """Format a measured number with separators; a dash where there is none."""
    return f"{cell['value'] * scale:,.{digits}f}" if cell["status"] == "measured" else "–"


def _megabytes(cell: dict[str, Any]) -> str:
    """Format bytes as MB, 10⁶ bytes."""
    return _number(cell, 2, 1e-6)


def _plain(value: Any) -> str:
    """Print a value of any JSON type as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        if set(value) >= {"median", "low", "high", "n"}:
            low, high = _plain(value["low"]), _plain(value["high"])
            return f"{_plain(value['median'])} ({low} to {high}, n = {value['n']})"
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "none" if not value else ", ".join(map(_plain, value))
    return "–" if value is None else str(value)


def _lines(value: Any) -> list[str]:
    """Print a value, a line for each entry of a list of findings, or of a table of records."""
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        return [f"{key}: {_plain(record)}" for key, record in value.items()]
    if isinstance(value, list) and any(
        isinstance(item, dict) or len(str(item)) > 60 for item in value
    ):
        return [shorten(_plain(item), MAX_LINE, placeholder=" …") for item in value]
    return [_plain(value)]
