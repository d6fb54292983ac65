"""docker/kubernetes/ as data: the base, what kustomize makes of it, and a quantity's number."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).resolve().parents[2] / "docker"
KUBERNETES = DOCKER / "kubernetes"
BASE = KUBERNETES / "base"
LAPTOP = KUBERNETES / "overlays" / "laptop"
POD = "fill-repository.yaml"
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Manifest = dict[str, Any]


def read(path: Path) -> Manifest:
    (document,) = list(yaml.safe_load_all(path.read_text()))
    return document


def kustomization(folder: Path) -> Manifest:
    return read(folder / "kustomization.yaml")


def base() -> dict[str, Manifest]:
    """Kind → manifest, as it stands in the file."""
    files = [read(BASE / name) for name in kustomization(BASE)["resources"]]
    return {manifest["kind"]: manifest for manifest in files}


def built(folder: Path) -> dict[str, Manifest]:
    """Kind → manifest, as kustomize builds it."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def quantity(text: str | int) -> float:
    """`500m` → 0.5, `2Gi` → 2147483648."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    assert match and match[2] in UNITS, f"{text!r} is no quantity that these tests know"
    return int(match[1]) * UNITS[match[2]]


def pod_spec(manifest: Manifest) -> Manifest:
    return manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]


def read_env() -> dict[str, str]:
    lines = (DOCKER / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
