"""One server with every tiny model for the whole session; no test changes its state."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import write_repository

from labkit.server import TritonServer, find_triton


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    binary = find_triton()
    reason = "the nvidia-pytriton wheel is not installed" if binary is None else binary.problem
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.triton)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("server")
    repository = write_repository(folder / "repository")
    with TritonServer(repository, log_path=folder / "triton.log") as running:
        yield running


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a condition holds, or fail after a limit and show what is there instead."""

    def wait(
        condition: Callable[[], bool], found: Callable[[], object], limit_s: float = 20.0
    ) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"after {limit_s:g} s: {found()}"
            time.sleep(0.02)

    return wait
