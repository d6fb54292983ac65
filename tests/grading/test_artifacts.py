"""What a stage leaves: taken out by name, and passed on while it can be used."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from labkit.chain import STAGES
from labkit.grading import carry_forward as artifacts
from labkit.grading.carry_forward import (
    CarryForward,
    Reference,
    StageInputs,
    StageOutputs,
    artifacts_of,
    kept,
    repository_files,
    take_out,
)
from labkit.grading.exercises import keep_answers, read_answers
from labkit.repository import VARIANTS
from labkit.workspace import MADE_BY, OPTIONAL

EXPORT = artifacts_of("03_export")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, as the sandbox leaves it: `lab/` is the grader's, all below is not."""
    run = tmp_path / "lab" / "run"
    (run / "artifacts").mkdir(parents=True)
    for name in EXPORT:
        (run / "artifacts" / name).write_bytes(f"own {name}".encode())
    return run


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    return tmp_path / "evidence" / "ada" / "03_export"


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    folder = tmp_path / "reference"
    (folder / "model_repository").mkdir(parents=True)
    made = {name: folder / name for name in MADE_BY if name not in OPTIONAL}
    for name, path in made.items():
        path.write_bytes(f"reference {name}".encode())
    return Reference(made, folder / "model_repository")


# ---- names


def test_every_artifact_belongs_to_one_stage() -> None:
    names = [name for stage in STAGES for name in artifacts_of(stage)]
    assert sorted(names) == sorted(set(MADE_BY) - OPTIONAL)
    assert EXPORT == ["model.pt", "model_optimized.pt", "model.onnx", "export.json"]


def test_the_repositorys_files_are_named_and_no_program_is_among_them() -> None:
    files = repository_files()
    assert len(files) == len(set(files))
    assert "cifar10_onnx/1/model.onnx" in files
    assert "cifar10_openvino_int8/1/model.bin" in files
    assert {name.split("/")[0] for name in files} == set(VARIANTS)
    assert not [name for name in files if name.endswith((".py", ".so", ".sh"))]


# ---- taking out


def test_what_was_made_is_copied_with_its_sha256(run: Path, keep: Path) -> None:
    (run / "artifacts" / "virus.sh").write_text("rm -rf /")
    made = take_out("03_export", run, keep)
    assert list(made.files) == EXPORT
    assert made.files["model.pt"].read_bytes() == b"own model.pt"
    assert made.sha256["model.pt"] == hashlib.sha256(b"own model.pt").hexdigest()
    assert made.missing == {}
    assert made.repository is None
    assert sorted(path.name for path in keep.iterdir()) == sorted(EXPORT)


def test_what_is_missing_or_no_file_has_a_reason_without_the_graders_paths(
    run: Path, keep: Path
) -> None:
    (run / "artifacts" / "model.pt").unlink()
    (run / "artifacts" / "model.onnx").unlink()
    (run / "artifacts" / "model.onnx").symlink_to("/etc/passwd")
    (run / "artifacts" / "export.json").unlink()
    os.mkfifo(run / "artifacts" / "export.json")
    made = take_out("03_export", run, keep)
    assert list(made.files) == list(made.sha256) == ["model_optimized.pt"]
    assert made.missing["model.pt"] == "model.pt was not made"
    assert made.missing["model.onnx"].startswith("model.onnx is no plain file")
    assert made.missing["export.json"] == "export.json is no plain file"
    assert not (keep / "model.onnx").exists()


def test_without_the_folder_nothing_was_made(run: Path, keep: Path) -> None:
    (run / "artifacts").rename(run / "elsewhere")
    made = take_out("03_export", run, keep)
    assert made.files == {}
    assert made.missing["model.pt"] == "model.pt was not made"


@pytest.mark.parametrize("place", ["run", "run/artifacts"])
def test_a_folder_that_became_a_link_leads_nowhere(run: Path, keep: Path, place: str) -> None:
    """A notebook may put a link to the reference run, whose path it can guess, in place of its own.

    Inside the sandbox the link is broken; the grader would have followed it.
    """
    reference = run.parent.parent / "reference"
    (reference / "artifacts").mkdir(parents=True)
    (reference / "artifacts" / "model.pt").write_bytes(b"reference")
    folder = run.parent / place
    folder.rename(run.parent / "old")
    folder.symlink_to(reference if place == "run" else reference / "artifacts")
    made = take_out("03_export", run, keep)
    assert made.files == {}
    assert set(made.missing) == set(EXPORT)
    assert not (keep / "model.pt").exists()


@pytest.mark.parametrize(
    "place", ["run", "run/model_repository", "run/model_repository/cifar10_onnx"]
)
def test_a_repository_that_became_a_link_leads_nowhere(run: Path, keep: Path, place: str) -> None:
    reference = run.parent.parent / "reference"
    name = "cifar10_onnx/config.pbtxt"
    (reference / "model_repository" / name).parent.mkdir(parents=True)
    (reference / "model_repository" / name).write_text("name: 'cifar10_onnx'")
    folder = run.parent / place
    if place == "run":
        folder.rename(run.parent / "old")
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(reference / Path(place).relative_to("run"))
    made = take_out("05_configure", run, keep)
    assert made.repository == keep / "model_repository"
    assert list(made.repository.rglob("*")) == []


def test_the_graders_own_trouble_is_not_blamed_on_the_student(
    run: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        take_out("03_export", run, keep)


def test_of_a_repository_only_known_files_are_taken(run: Path, keep: Path) -> None:
    repository = run / "model_repository"
    for name in (
        "cifar10_onnx/1/model.onnx", "cifar10_onnx/config.pbtxt", "cifar10_onnx/2/model.onnx",
        "cifar10_onnx/1/model.py", "evil/config.pbtxt", "evil/1/model.py",
        "cifar10_onnx/configs/tuned.pbtxt",
    ):  # fmt: skip
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(name.encode())
    made = take_out("05_configure", run, keep)
    assert made.repository is not None
    copied = sorted(
        path.relative_to(made.repository).as_posix()
        for path in made.repository.rglob("*")
        if path.is_file()
    )
    taken = ["1/model.onnx", "config.pbtxt", "configs/tuned.pbtxt"]
    assert copied == [f"cifar10_onnx/{name}" for name in taken]
    assert set(made.sha256) == {f"model_repository/{name}" for name in copied}
    assert made.missing["configure.json"] == "configure.json was not made"


def test_a_repository_that_was_not_made_is_empty(run: Path, keep: Path) -> None:
    made = take_out("07_tune", run, keep)
    assert made.repository == keep / "model_repository"
    assert list(made.repository.iterdir()) == []


# ---- kept from an earlier grading


@pytest.mark.parametrize("stage", ["03_export", "05_configure"])
def test_what_was_kept_is_found_again(run: Path, tmp_path: Path, stage: str) -> None:
    keep = tmp_path / "evidence" / "ada" / stage
    (run / "artifacts" / "model.onnx").unlink()
    (run / "model_repository" / "cifar10_onnx").mkdir(parents=True)
    (run / "model_repository" / "cifar10_onnx" / "config.pbtxt").write_text("")
    taken, found = take_out(stage, run, keep), kept(stage, keep)
    assert found.files == taken.files
    assert found.missing == taken.missing
    assert found.repository == taken.repository


@pytest.mark.parametrize(
    "answer",
    [
        {"answers": [{"value": 1.5}, {"value": None}]}, [float("inf")], "\ud800", None, 10**300,
        {"answers": "x" * 1_000_000},
    ],
    ids=lambda answer: str(answer)[:12].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_answers_are_kept_as_they_were_read(tmp_path: Path, answer: object) -> None:
    keep_answers(tmp_path / "exercises", {"ex-01-leak": answer})
    assert read_answers(tmp_path / "exercises") == {"ex-01-leak": answer}


def test_kept_answers_take_no_more_room_than_they_came_in(tmp_path: Path) -> None:
    """Indented, this would take a hundred times as much."""
    text = "[" * 100 + "1" + ",1" * 50_000 + "]" * 100
    keep_answers(tmp_path, {"ex-01-leak": json.loads(text)})
    assert (tmp_path / "ex-01-leak.json").stat().st_size == len(text)


def test_of_a_stage_that_never_ran_nothing_is_kept(tmp_path: Path) -> None:
    found = kept("05_configure", tmp_path / "nowhere")
    assert found.files == {}
    assert found.repository is None
    assert found.missing == {"configure.json": "configure.json was not made"}


# ---- what the next stage is given


def own(tmp_path: Path, stage: str) -> StageOutputs:
    """A complete set of a student's own files."""
    folder = tmp_path / "own" / stage
    folder.mkdir(parents=True)
    made = StageOutputs({name: folder / name for name in artifacts_of(stage)})
    for name, path in made.files.items():
        path.write_bytes(f"own {name}".encode())
    if stage in artifacts.REPOSITORY_STAGES:
        made.repository = folder / "model_repository"
        made.repository.mkdir()
    return made


def advance(carry_forward: CarryForward, tmp_path: Path, failed: tuple[str, ...]) -> dict[str, str]:
    """Go through all stages; return for every artifact of the last one whose it is."""
    for stage in STAGES[:-1]:
        carry_forward.advance(stage, None if stage in failed else own(tmp_path, stage))
    return whose(carry_forward.artifacts)


def whose(given: dict[str, Path]) -> dict[str, str]:
    return {name: path.read_text().split()[0] for name, path in given.items()}


def test_the_first_stage_is_given_nothing(reference: Reference, tmp_path: Path) -> None:
    assert CarryForward(reference, tmp_path).inputs("01_data") == StageInputs({}, None, [])


def test_own_files_are_passed_on(reference: Reference, tmp_path: Path) -> None:
    carry_forward = CarryForward(reference, tmp_path)
    found = advance(carry_forward, tmp_path, failed=())
    assert set(found.values()) == {"own"}
    given = carry_forward.inputs("08_report")
    assert set(given.artifacts) == set(MADE_BY) - OPTIONAL - {"report.json", "report.html"}
    assert given.repository == tmp_path / "own" / "07_tune" / "model_repository"
    assert given.from_reference == []


@pytest.mark.parametrize("failed", STAGES[:4])
def test_files_that_depend_on_each_other_are_replaced_together(
    reference: Reference, tmp_path: Path, failed: str
) -> None:
    carry_forward = CarryForward(reference, tmp_path)
    found = advance(carry_forward, tmp_path, (failed,))
    for name, maker in MADE_BY.items():
        if name in found:
            assert found[name] == ("reference" if maker <= failed else "own"), name


@pytest.mark.parametrize("failed", ["06_serve", "07_tune"])
def test_measurements_are_replaced_alone(reference: Reference, tmp_path: Path, failed: str) -> None:
    found = advance(CarryForward(reference, tmp_path), tmp_path, (failed,))
    replaced = {name for name, owner in found.items() if owner == "reference"}
    assert replaced == set(artifacts_of(failed))


def test_a_repository_is_written_anew_from_the_own_models(
    reference: Reference, tmp_path: Path
) -> None:
    carry_forward = CarryForward(reference, tmp_path / "work")
    for stage in STAGES[:4]:
        carry_forward.advance(stage, own(tmp_path, stage))
    carry_forward.advance("05_configure", None)
    given = carry_forward.inputs("06_serve")
    assert given.repository is not None
    model = given.repository / "cifar10_onnx_int8" / "1" / "model.onnx"
    assert model.read_text() == "own model_int8.onnx"
    assert (given.repository / "cifar10_onnx_int8" / "config.pbtxt").is_file()
    assert whose(given.artifacts)["configure.json"] == "reference"
    assert given.from_reference == ["configure.json"]


def test_a_failed_tuning_keeps_the_repository(reference: Reference, tmp_path: Path) -> None:
    carry_forward = CarryForward(reference, tmp_path)
    advance(carry_forward, tmp_path, ("07_tune",))
    assert carry_forward.repository == tmp_path / "own" / "05_configure" / "model_repository"


@pytest.mark.parametrize("failed", ["02_train", "07_tune"])
def test_the_report_is_about_one_run(reference: Reference, tmp_path: Path, failed: str) -> None:
    carry_forward = CarryForward(reference, tmp_path)
    advance(carry_forward, tmp_path, (failed,))
    given = carry_forward.inputs("08_report")
    assert set(whose(given.artifacts).values()) == {"reference"}
    assert set(given.artifacts) == set(MADE_BY) - OPTIONAL - {"report.json", "report.html"}
    assert given.repository == reference.repository
    assert set(given.from_reference) == set(given.artifacts)


def test_what_is_given_cannot_change_what_is_inherited(
    reference: Reference, tmp_path: Path
) -> None:
    carry_forward = CarryForward(reference, tmp_path)
    carry_forward.advance("01_data", own(tmp_path, "01_data"))
    carry_forward.inputs("02_train").artifacts.clear()
    given = carry_forward.inputs("02_train").artifacts
    assert list(given) == ["splits.json", "statistics.json"]


def test_json_of_the_kept_files_survives_byte_for_byte(run: Path, keep: Path) -> None:
    content = json.dumps({"accuracy": {"model.pt": 0.5}}, indent=3).encode() + b"\n\n"
    (run / "artifacts" / "export.json").write_bytes(content)
    take_out("03_export", run, keep)
    assert (keep / "export.json").read_bytes() == content
