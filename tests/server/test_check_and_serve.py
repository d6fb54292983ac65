"""`labkit check` and the server never disagree: what one refuses, the other does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, TWICE, XY, Case
from fidelity.explicit import ExplicitServer, server_of_accepted

from labkit.repository_check import ERROR, WARNING, check_repository
from labkit.server import ModelLoadError, TritonServer

PAIRS = [
    pytest.param(runtime, name, marks=[pytest.mark.native] if runtime == "native" else [])
    for name, case in CASES.items()
    for runtime in case.runtimes
]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server for every case that this runtime does not refuse before it starts."""
    runtime: str = request.param
    root = tmp_path_factory.mktemp("cases")
    cases = {name: case for name, case in CASES.items() if runtime in case.runtimes}
    for name, case in cases.items():
        case.write(root / name)
    with server_of_accepted(root, cases, runtime)[0] as started:
        yield started


def ask(server: ExplicitServer, name: str, case: Case) -> tuple[int, dict[str, Any]]:
    inputs = [
        {"name": input_name, "datatype": kind, "shape": shape, "data": values}
        for input_name, (kind, shape, values) in case.asked.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    status, answer, _ = server.call(f"/v2/models/{name}/infer", body)
    outputs = json.loads(answer).get("outputs", [])
    return status, {output["name"]: output["data"] for output in outputs}


@pytest.mark.parametrize(("server", "name"), PAIRS, indirect=["server"])
def test_a_case_is_checked_and_served_rightly(server: ExplicitServer, name: str) -> None:
    case = CASES[name]
    found = check_repository(Path(server.repository), [name], 1, runtime=server.runtime)
    errors = [finding for finding in found if finding.severity == ERROR]
    warnings = [finding.message for finding in found if finding.severity == WARNING]
    loaded = server.load(name)[0] == 200 if name in (server.models or ()) else False
    assert loaded == (not errors) == (case.answer is not None), (loaded, found)
    if errors:
        assert any(case.finds in error.message and case.fix in error.fix for error in errors)
        return
    assert any(case.warns in message for message in warnings) or not case.warns
    if case.logs and server.runtime == "stand-in":
        assert f"model '{name}': {case.logs}" in server.log_path.read_text()
    status, values = ask(server, name, case)
    assert status == case.status
    assert values.keys() == (case.answer or {}).keys()
    for output, expected in (case.answer or {}).items():
        np.testing.assert_allclose(values[output], expected, rtol=1e-6)


def test_an_ensemble_with_a_missing_model_is_named(tmp_path: Path) -> None:
    Case(XY).write(tmp_path / "twice")
    (tmp_path / "chain" / "1").mkdir(parents=True)
    steps = "".join(
        f'step {{ model_name: "{model}" model_version: -1 input_map {{ key: "x" value: "{a}" }} '
        f'output_map {{ key: "y" value: "{b}" }} }}'
        for model, a, b in (("twice", "x", "middle"), ("thrice", "middle", "y"))
    )
    config = f'platform: "ensemble"\nmax_batch_size: 8\n{XY}ensemble_scheduling {{ {steps} }}\n'
    (tmp_path / "chain" / "config.pbtxt").write_text(config)
    (finding,) = check_repository(tmp_path, cores=1)
    assert "step 2 is 'thrice'" in finding.message
    with pytest.raises(ModelLoadError, match="thrice") as error:
        TritonServer(tmp_path, log_path=tmp_path.parent / "log").start()
    assert set(error.value.models) == {"chain"}


def test_hidden_folders_are_no_models(tmp_path: Path) -> None:
    Case(XY, answer=TWICE).write(tmp_path / "twice")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert not check_repository(tmp_path, cores=1)
