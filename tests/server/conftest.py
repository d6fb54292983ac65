"""One server for each runtime, with every tiny model, for the whole session; no test changes it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny_models import write_repository

from labkit.server import TritonServer, find_triton

TRITON = find_triton()
# Through the wheel's stub no string reaches numpy 2; see labkit/backends/numpy2.py.
STRINGS = TRITON is not None and TRITON.stub_fits_numpy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "the server is not in the cache" if TRITON is None else TRITON.problem
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.triton)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("native") and (TRITON is None or TRITON.native is None):
            item.add_marker(pytest.mark.skip(reason="no native backends: labkit triton build"))


@pytest.fixture(scope="session", autouse=True)
def _stand_in_unless_said() -> Iterator[None]:
    """What a test does not say is served by the stand-ins, also where native backends are built."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LABKIT_RUNTIME", "stand-in")
        yield


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TritonServer]]:
    """Runtime → its server, started when it is first asked for."""
    started: dict[str, TritonServer] = {}
    with ExitStack() as stack:

        def get(runtime: str) -> TritonServer:
            if runtime not in started:
                folder = tmp_path_factory.mktemp(runtime)
                repository = write_repository(folder / "repository", runtime, STRINGS)
                made = TritonServer(repository, log_path=folder / "triton.log", runtime=runtime)
                started[runtime] = stack.enter_context(made)
            return started[runtime]

        yield get


@pytest.fixture(params=["stand-in", pytest.param("native", marks=pytest.mark.native)])
def server(request: pytest.FixtureRequest, servers: Callable[[str], TritonServer]) -> TritonServer:
    """Each runtime in turn."""
    return servers(request.param)


@pytest.fixture
def stand_in(servers: Callable[[str], TritonServer]) -> TritonServer:
    """The stand-ins' server, for what is theirs alone."""
    return servers("stand-in")


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
