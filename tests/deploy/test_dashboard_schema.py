"""The dashboard against the classes that Grafana generates from its own schemas."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FILE = Path(__file__).resolve().parents[2] / "docker/monitoring/grafana/dashboards/triton.json"
# The data source's own fields of an annotation: the schema leaves them to its plugin.
PLUGINS_OWN = {f"annotations.list.0.{name}" for name in ("titleFormat", "textFormat", "step")}


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Where `after` lacks a field of `before`, or has another value."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}".lstrip(".")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}.{number}")
    elif before != after:
        yield path.lstrip(".")


def through_the_schema(board: dict[str, Any]) -> Any:
    """Read and write: a field that no class knows does not come back."""
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(copy.deepcopy(board)), cls=JSONEncoder))


def test_every_field_is_one_that_grafana_knows() -> None:
    board = json.loads(FILE.read_text())
    assert set(lost(board, through_the_schema(board))) == PLUGINS_OWN


def test_a_misspelt_field_is_noticed() -> None:
    board = json.loads(FILE.read_text())
    board["panels"][4]["optionz"] = {}
    board["panels"][5]["fieldConfig"]["defaults"]["custom"]["lineWith"] = 3
    assert set(lost(board, through_the_schema(board))) - PLUGINS_OWN == {
        "panels.4.optionz",
        "panels.5.fieldConfig.defaults.custom.lineWith",
    }
