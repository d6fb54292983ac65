"""Every user of a machine can read every process's command line: none may hold the environment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psutil
import pytest

SECRET = "a-token-that-only-its-owner-may-see"
INTERVAL_S = 0.05


@contextlib.contextmanager
def no_secret_shown(*expected: str) -> Iterator[set[str]]:
    """Put a secret into the environment, and read the command line of whatever starts meanwhile.

    Args:
        expected: What must be seen among the command lines, so that they were looked at at all.

    Yields:
        The command lines seen so far.
    """
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(INTERVAL_S):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LABKIT_TEST_SECRET", SECRET)
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield seen
        finally:
            done.set()
            watcher.join()
    lines = "\n".join(sorted(seen))
    for part in expected:
        assert part in lines, f"{part} was not seen among\n{lines}"
    assert SECRET not in lines
