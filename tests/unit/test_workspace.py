import json
from pathlib import Path

import pytest

from labkit.workspace import (
    MADE_BY,
    CorruptFile,
    MissingInput,
    NoCacheFolder,
    Workspace,
    atomic_path,
    cache_dir,
    project_root,
    read_json,
    sha256,
    write_json,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "run")


def test_missing_input_names_the_notebook_that_makes_it(workspace: Workspace) -> None:
    with pytest.raises(MissingInput, match=r"model\.onnx is missing in .*: run notebook 03_export"):
        workspace.require("model.onnx")


def test_every_artifact_is_made_by_an_existing_notebook() -> None:
    notebooks = {path.stem for path in (project_root() / "notebooks").glob("*.ipynb")}
    assert set(MADE_BY.values()) <= notebooks


def test_atomic_path_leaves_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_keeps_the_suffix_and_makes_the_file_readable(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "model.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path / "new"
    assert (tmp_path / "new" / "model.onnx").stat().st_mode & 0o777 == 0o644


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"NaN|JSON compliant|Out of range"):
        write_json(tmp_path / "x.json", {"accuracy": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_corrupt_json_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(CorruptFile, match=r"is not valid JSON .*delete it and run again"):
        read_json(tmp_path / "x.json")


def test_manifest_records_checksum_size_and_maker(workspace: Workspace) -> None:
    path = workspace.save_json("query.json", {"n": 1}, made_by="06_serve")
    entry = workspace.manifest()["query.json"]
    assert entry["sha256"] == sha256(path)
    assert entry["bytes"] == path.stat().st_size
    assert entry["made_by"] == "06_serve"
    assert json.loads(path.read_text()) == workspace.load_json("query.json") == {"n": 1}


def test_the_manifest_keeps_what_other_notebooks_recorded(workspace: Workspace) -> None:
    workspace.save_json("splits.json", {}, made_by="01_data")
    workspace.save_json("history.json", {}, made_by="02_train")
    assert list(workspace.manifest()) == ["splits.json", "history.json"]


def test_the_hands_on_run_uses_the_projects_repository(tmp_path: Path) -> None:
    assert Workspace.at("runs/lab").repository == project_root() / "model_repository"
    assert Workspace.at(tmp_path / "x").repository == tmp_path / "x" / "model_repository"


def test_environment_overrides_a_notebooks_workspace_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path / "ci"))
    assert Workspace.open("runs/lab").root == tmp_path / "ci"
    assert Workspace.at(tmp_path / "x").root == tmp_path / "x"


def test_project_root_is_found_from_the_notebooks_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = project_root()
    monkeypatch.chdir(root / "notebooks")
    assert project_root() == root


def test_cache_dir_prefers_the_explicit_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LABKIT_CACHE", raising=False)
    assert cache_dir() == tmp_path / "labkit"
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_cache_dir_is_the_same_from_the_notebooks_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = project_root()
    monkeypatch.setenv("LABKIT_CACHE", "cache/mine")
    assert cache_dir() == root / "cache" / "mine"
    monkeypatch.chdir(root / "notebooks")
    assert cache_dir() == root / "cache" / "mine"


def test_cache_dir_knows_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LABKIT_CACHE", "~/kept")
    assert cache_dir() == tmp_path / "kept"
    monkeypatch.delenv("LABKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "kept")  # to be ignored, as the specification says
    assert cache_dir() == tmp_path / ".cache" / "labkit"


def test_cache_dir_without_a_home_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LABKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NoCacheFolder, match="set LABKIT_CACHE"):
        cache_dir()
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
