"""Serving a student's repository: a model that ends the server takes no other model with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lesson import export_files, network

from labkit.grading.inside import measure_files

COUNT = 4
CONFIG = """
backend: "{backend}"
max_batch_size: 32
input [{{ name: "{input}" data_type: TYPE_FP32 dims: [3, 32, 32] }}]
output [{{ name: "{output}" data_type: TYPE_FP32 dims: [10] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""


def requested(folder: Path, *names: str) -> dict[str, object]:
    np.zeros((COUNT, 3, 32, 32), np.uint8).tofile(folder / "images.u8")
    return {
        "repository": str(folder / "repository"), "models": list(names), "config_name": None,
        "images": str(folder / "images.u8"), "count": COUNT, "out": str(folder), "clients": 0,
    }  # fmt: skip


def put(folder: Path, name: str, backend: str, tensors: tuple[str, str], file: str) -> Path:
    version = folder / "repository" / name / "1"
    version.mkdir(parents=True)
    text = CONFIG.format(backend=backend, input=tensors[0], output=tensors[1])
    (version.parent / "config.pbtxt").write_text(text)
    return version / file


@pytest.mark.native
def test_who_ends_a_native_server_is_found_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triton: None
) -> None:
    monkeypatch.setenv("LABKIT_RUNTIME", "native")
    net = network().eval().requires_grad_(False)
    names = ("a_right", "b_ends_it", "c_right")
    for name in names:
        path = put(tmp_path, name, "onnxruntime", ("input", "logits"), "model.onnx")
        export_files(net, path.parent, "onnx")
    really_ask, asked = measure_files.ask, []

    def ask(address: str, model: str, *rest: Any) -> None:
        asked.append(model)
        if model == "b_ends_it":  # as a model does whose code crashes
            for process in psutil.Process().children(recursive=True):
                if process.name() == "tritonserver":
                    process.kill()
        really_ask(address, model, *rest)

    monkeypatch.setattr(measure_files, "ask", ask)
    found = measure_files.serve(requested(tmp_path, *names))
    assert found["failed"] == {"b_ends_it": "the server crashed when it loaded or ran this model"}
    assert asked == ["a_right", "b_ends_it", "b_ends_it", "c_right"]
    for name in ("a_right", "c_right"):
        logits = np.fromfile(tmp_path / f"{name}.f32", np.float32)
        assert logits.shape == (10 * COUNT,) and np.isfinite(logits).all()
