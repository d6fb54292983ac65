"""What grading for real needs: a sandbox, CIFAR-10, Triton, and one run of the solved notebooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labkit.grading.carry_forward import NoReference, Reference, reference_folder
from labkit.grading.sandbox import Isolation, SandboxUnavailable, find_isolation
from labkit.server import find_triton
from labkit.workspace import cache_dir, project_root

PROFILE = "smoke"
REFERENCE_LIMIT_S = 900


@pytest.fixture(scope="session")
def isolation() -> Isolation:
    """The sandbox of this machine."""
    try:
        return find_isolation()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def data() -> Path:
    """The cache with CIFAR-10."""
    folder = cache_dir()
    if not (folder / "cifar-10-batches-bin").is_dir():
        pytest.skip("CIFAR-10 is not in the cache; `labkit data` fetches it")
    return folder


@pytest.fixture(scope="session")
def triton() -> None:
    """A Triton that can be started."""
    found = find_triton()
    if found is None or found.problem:
        pytest.skip(
            found.problem if found else "the server is not in the cache: labkit triton fetch"
        )


@pytest.fixture(scope="session")
def reference(data: Path, triton: None) -> Path:
    """A complete smoke run: one that is there, else made where gradings keep theirs."""
    kept = reference_folder(PROFILE)
    for folder in (project_root() / "runs" / PROFILE, kept):
        try:
            Reference.of(folder, PROFILE)
            return folder
        except NoReference:
            continue
    command = [sys.executable, "-m", "labkit", "run", "--profile", PROFILE, "--out", str(kept)]
    subprocess.run(command, check=True, timeout=REFERENCE_LIMIT_S)
    Reference.of(kept, PROFILE)
    return kept
