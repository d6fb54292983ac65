""".devcontainer/: the fields that it uses have the form that the specification gives them.

The published schema is in no package, so that the part of it that is used here stands below.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"type": "string", "pattern": r"^\d+([tgmk]b)?$"}
COMMAND = {"type": "string", "pattern": r"^make [a-z-]+$"}  # nothing that only a container can do
FORWARD = {"enum": ["notify", "openBrowser", "openBrowserOnce", "openPreview", "silent", "ignore"]}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image", "postCreateCommand", "forwardPorts"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string", "pattern": r"^[a-z0-9./-]+:[a-z0-9.-]+$"},
        "runArgs": {"type": "array", "items": {"type": "string", "pattern": "^--"}},
        "hostRequirements": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "cpus": {"type": "integer", "minimum": 1},
                "memory": SIZE,
                "storage": SIZE,
            },
        },
        "postCreateCommand": COMMAND,
        "postAttachCommand": COMMAND,
        "forwardPorts": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 65535},
        },
        "portsAttributes": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {
                r"^\d+$": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"label": {"type": "string"}, "onAutoForward": FORWARD},
                }
            },
        },
        "customizations": {"type": "object"},
    },
}


@pytest.fixture
def devcontainer() -> dict[str, Any]:
    return json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())


def test_its_fields_are_those_of_the_specification(devcontainer: dict[str, Any]) -> None:
    jsonschema.Draft201909Validator.check_schema(SCHEMA)
    jsonschema.Draft201909Validator(SCHEMA).validate(devcontainer)


@pytest.mark.parametrize(
    "change",
    [{"postCreateCommand": ["make", "env"]}, {"forwardPort": [1]}, {"forwardPorts": ["8888"]}],
)
def test_the_schema_refuses_what_the_editors_would_ignore(
    devcontainer: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft201909Validator(SCHEMA).validate(devcontainer | change)


def test_its_commands_are_make_targets(devcontainer: dict[str, Any]) -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    for name in ("postCreateCommand", "postAttachCommand"):
        make, target = shlex.split(devcontainer[name])
        assert make == "make" and target in phony[1].split(), name


def test_its_image_has_a_python_and_a_c_library_that_triton_runs_on(
    devcontainer: dict[str, Any],
) -> None:
    python, release = devcontainer["image"].rsplit(":", 1)[1].split("-")
    assert python in ("3.11", "3.12", "3.13")
    assert release in ("bookworm", "trixie")  # glibc 2.36 and 2.41


def test_jupyterlabs_port_is_forwarded_and_has_a_name(devcontainer: dict[str, Any]) -> None:
    # `make jupyter` takes Jupyter's own first choice.
    assert devcontainer["forwardPorts"] == [8888]
    assert devcontainer["portsAttributes"].keys() == {"8888"}
