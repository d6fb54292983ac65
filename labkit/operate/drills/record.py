"""drills.json: every result, where and with what it was measured; results of other drills stay."""

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema

from labkit.environment import environment_facts
from labkit.errors import LabError
from labkit.operate.drills.outcome import Result
from labkit.operate.drills.registry import DRILLS
from labkit.operate.programs import MissingProgram, find_program
from labkit.operate.replicas import RUNTIME
from labkit.workspace import read_json, write_json

SCHEMA = "labkit-drills-1"
SCHEMA_FILE = Path(__file__).parents[2] / "templates" / "drills_schema.json"
PROGRAMS = {"nginx": "-v", "prometheus": "--version"}


class BadRecord(LabError):
    """A drills.json that is not what this version of labkit writes."""


def load(path: Path) -> dict[str, Any]:
    """Read a drills.json.

    Raises:
        BadRecord: it does not fit the schema.
    """
    record = read_json(path)
    validate(record, path.name)
    return record


def validate(record: Any, name: str = "drills.json") -> None:
    """Hold a record against the schema.

    Raises:
        BadRecord: it does not fit; the message says where.
    """
    try:
        jsonschema.validate(record, read_json(SCHEMA_FILE))
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise BadRecord(
            f"{name} does not fit the schema at {where}: {error.message[:200]}; delete it and run "
            "the drills again"
        ) from error


def save(path: Path, results: list[Result], run: str, short: bool) -> dict[str, Any]:
    """Write results into a drills.json, in the place of earlier ones of the same drills.

    Args:
        path: The file; made where it is missing.
        results: What was measured now.
        run: Name of the run whose model was served.
        short: Whether the drills were short.

    Returns:
        The whole record.
    """
    earlier = load(path)["results"] if path.is_file() else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entries = {entry["name"]: entry for entry in earlier}
    for result in results:
        entries[result.name] = {
            **result.to_dict(), "made_at": now, "run": run, "short": short
        }  # fmt: skip
    order = [drill.name for drill in DRILLS]
    record = {
        "schema": SCHEMA,
        "made_at": now,
        "environment": environment_facts(),
        "runtime": RUNTIME,
        "programs": {name: program_version(name) for name in PROGRAMS},
        "results": sorted(
            entries.values(),
            key=lambda entry: order.index(entry["name"]) if entry["name"] in order else len(order),
        ),
    }
    validate(record, path.name)
    write_json(path, record)
    return record


def program_version(name: str) -> str | None:
    """Return the version that a program says it has; None where it is not installed."""
    try:
        program = find_program(name)
    except MissingProgram:
        return None
    done = subprocess.run([program, PROGRAMS[name]], capture_output=True, text=True, timeout=20)
    match = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return match[0] if match else "unknown"
