"""A lab with a tiny model; what needs Triton or nginx is skipped where they are missing."""

import sys
from pathlib import Path

import pytest

from labkit.operate import MissingProgram, find_program
from labkit.operate.drills import DrillEnvironment, find_model
from labkit.server import find_triton

sys.path.insert(0, str(Path(__file__).parent))  # for `tiny_run`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    binary = find_triton()
    reasons = {
        "triton": "the server is not in the cache: labkit triton fetch"
        if binary is None
        else binary.problem
    }
    try:
        find_program("nginx")
    except MissingProgram as error:
        reasons["nginx"] = str(error)
    for item in items:
        for name, reason in reasons.items():
            here = Path(__file__).parent in item.path.parents
            if here and reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_run import write_run

    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def lab(run_folder: Path, tmp_path: Path) -> DrillEnvironment:
    return DrillEnvironment(find_model(run_folder), tmp_path, short=True)
