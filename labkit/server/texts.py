"""Serve models that are given as texts, such as those of an exercise, for as long as needed."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from labkit.server.server import TritonServer
from labkit.workspace import write_text


@contextmanager
def serve_texts(models: Mapping[str, Mapping[str, str]]) -> Iterator[TritonServer]:
    """Serve models made of Python code and configurations of whoever calls this.

    Args:
        models: Model → file below its folder → content, such as
            `{"means": {"config.pbtxt": …, "1/model.py": …}}`. An ensemble has no file in a version
            folder; it gets an empty one.

    Yields:
        The running server, on free ports. The code runs with the rights of the caller.
    """
    with tempfile.TemporaryDirectory(prefix="labkit-texts-") as folder:
        repository = Path(folder, "model_repository")
        for model, files in models.items():
            (repository / model / "1").mkdir(parents=True)
            for name, text in files.items():
                write_text(repository / model / name, text)
        log_path = Path(folder, "triton.log")
        with TritonServer(
            repository, log_path=log_path, allow_python_models=True, exit_timeout_s=1
        ) as server:
            yield server
