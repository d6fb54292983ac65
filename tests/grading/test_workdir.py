"""The private folder of a run: what is seen of it, whose it is, and that it always goes away."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit.grading import workdir as workdir_module
from labkit.grading.sandbox import (
    BUBBLEWRAP,
    HOME,
    LAB,
    NONE,
    TMP,
    Isolation,
    SandboxUnavailable,
    bubblewrap_command,
    require_readable,
    sandbox_uid,
)
from labkit.grading.workdir import DATA, Workdir, open_workdir, readable, remove, write_manifest
from labkit.workspace import Workspace, cache_dir

Open = Callable[[str, int], int]
CONFINED, OPEN = Isolation(BUBBLEWRAP, "/usr/bin/bwrap", "0.11.0"), Isolation(NONE)


@pytest.fixture(params=[CONFINED, OPEN], ids=lambda isolation: isolation.kind)
def workdir(request: pytest.FixtureRequest, tmp_path: Path) -> Workdir:
    return Workdir(tmp_path, request.param)


@pytest.fixture
def confined(tmp_path: Path) -> Workdir:
    return Workdir(tmp_path, CONFINED)


# ---- what the program sees


@pytest.mark.parametrize(
    ("inside", "seen"),
    [
        ("", "/lab"), ("run", "/lab/run"), ("run/a/b.json", "/lab/run/a/b.json"),
        ("notebooks/a.", "/lab/notebooks/a."), ("notebooks/..x", "/lab/notebooks/..x"),
    ],
)  # fmt: skip
def test_a_path_is_seen_below_lab(confined: Workdir, inside: str, seen: str) -> None:
    assert LAB == "/lab"
    assert confined.seen(confined.lab / inside) == seen


def test_only_what_lies_in_lab_is_seen(confined: Workdir) -> None:
    with pytest.raises(ValueError, match="is not in the subpath"):
        confined.seen(confined.log)


def test_without_a_sandbox_paths_are_what_they_are(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path, OPEN)
    assert workdir.seen(workdir.run) == str(workdir.run)


def test_the_program_gets_an_environment_of_its_own(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LABKIT_PROFILE", "full")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "the grader's"))
    sandbox = workdir.sandbox("smoke")
    assert "secret" not in str(sandbox.environment)
    assert sandbox.environment["LABKIT_PROFILE"] == "smoke"
    assert sandbox.environment["LABKIT_WORKSPACE"] == workdir.seen(workdir.run)
    assert sandbox.environment["HOME"] != os.environ["HOME"]


def test_a_sandbox_may_change_its_own_folders_only(confined: Workdir, tmp_path: Path) -> None:
    sandbox = confined.sandbox("smoke", {"/probes": tmp_path})
    assert sandbox.read_write == {LAB: confined.lab, TMP: confined.tmp, HOME: confined.home}
    assert all(path.is_relative_to(confined.writable) for path in sandbox.read_write.values())
    images = f"{DATA}/cifar-10-batches-bin"
    assert sandbox.read_only[images] == cache_dir() / "cifar-10-batches-bin"
    without = confined.sandbox("smoke", data=False)
    left = [path for path in without.read_only.values() if path.is_relative_to(cache_dir())]
    assert left == [cache_dir() / "triton"], "no labels where only files of models are run"
    assert sandbox.read_only["/probes"] == tmp_path
    assert sandbox.folder == f"{LAB}/notebooks"
    assert not confined.log.is_relative_to(confined.writable)


def test_the_program_has_a_user_name(confined: Workdir) -> None:
    uid = sandbox_uid() if os.geteuid() == 0 else os.getuid()
    sandbox = confined.sandbox("smoke")
    name, _, number, *_ = sandbox.read_only["/etc/passwd"].read_text().split(":")
    assert (name, int(number)) == ("student", uid)


# ---- what is put in


def test_artifacts_are_copied_and_recorded(workdir: Workdir, tmp_path: Path) -> None:
    source = tmp_path / "elsewhere.json"
    source.write_text("{}")
    workdir.put_artifacts(dict.fromkeys(("splits.json", "statistics.json"), source))
    workspace = Workspace(workdir.run, workdir.run / "model_repository")
    assert workspace.unrecorded("01_data") == []
    assert workspace.load_json("splits.json") == {}
    source.write_text("changed")
    assert workspace.unrecorded("01_data") == []  # a copy


def test_nothing_given_is_an_empty_manifest(workdir: Workdir) -> None:
    workdir.put_artifacts({})
    workdir.put_repository(None)
    assert Workspace(workdir.run, workdir.run / "model_repository").manifest() == {}
    assert list((workdir.run / "model_repository").iterdir()) == []


def test_the_manifest_names_the_maker(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "model.pt").write_bytes(b"weights")
    write_manifest(tmp_path, ["model.pt"])
    entry = Workspace(tmp_path, tmp_path).manifest()["model.pt"]
    assert (entry["made_by"], entry["bytes"]) == ("03_export", 7)


def test_a_repository_is_copied(workdir: Workdir, tmp_path: Path) -> None:
    config = tmp_path / "repository" / "cifar10_onnx" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text("name: 'cifar10_onnx'")
    workdir.put_repository(tmp_path / "repository")
    copy = workdir.run / "model_repository" / "cifar10_onnx" / "config.pbtxt"
    assert copy.read_text() == config.read_text()


def test_other_files_lie_beside_the_notebooks(workdir: Workdir, tmp_path: Path) -> None:
    folder = tmp_path / "submission"
    names = ["helper.py", "data/table.csv", "öl — 1.txt"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    workdir.put_files(folder, names, folder)
    assert [(workdir.lab / "notebooks" / name).read_text() for name in names] == names


def test_files_keep_their_place_relative_to_the_notebook(workdir: Workdir, tmp_path: Path) -> None:
    folder = tmp_path / "submission"
    for name in ("notebooks/near.txt", "far.txt", "run/manifest.json/bad.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    names = ["notebooks/near.txt", "far.txt", "run/manifest.json/bad.txt"]
    workdir.put_files(folder, names, folder / "notebooks")
    assert (workdir.lab / "notebooks" / "near.txt").read_text() == "notebooks/near.txt"
    assert (workdir.lab / "far.txt").read_text() == "far.txt"
    assert not (workdir.run / "manifest.json").exists(), "the lab's own folders are the grader's"


def test_no_folder_takes_the_place_of_a_notebook(workdir: Workdir, tmp_path: Path) -> None:
    """The notebook is written there next; a folder of its name would stop the grader."""
    folder = tmp_path / "submission"
    name = "01_data.ipynb/notes.txt"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("")
    workdir.put_files(folder, [name], folder)
    assert not (workdir.lab / "notebooks" / "01_data.ipynb").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_folders_are_handed_over_and_links_are_not_followed(
    confined: Workdir, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.txt"
    mine.touch()
    (confined.lab / "link").symlink_to(mine)
    (confined.run / "artifacts" / "splits.json").touch()
    confined.hand_over()
    handed = [confined.writable, *confined.writable.rglob("*")]
    assert {path.lstat().st_uid for path in handed} == {sandbox_uid()}
    assert mine.stat().st_uid == 0
    assert confined.log.stat().st_uid == 0
    assert confined.root.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_without_a_sandbox_nothing_is_handed_over(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path, OPEN)
    workdir.hand_over()
    assert workdir.lab.stat().st_uid == 0


# ---- that it goes away


@pytest.fixture
def swept(tmp_path: Path) -> Iterator[Path]:
    """A folder that goes away whatever a test leaves in it: pytest itself could not remove that."""
    yield tmp_path
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def hidden_folder(root: Path) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "b" / "c" / "file").touch()
    for folder in (root / "a" / "b" / "c", root / "a" / "b", root / "a"):
        folder.chmod(0)


def hidden_file(root: Path) -> None:
    (root / "file").touch()
    (root / "file").chmod(0)
    root.chmod(0)


def strange_names(root: Path) -> None:
    for name in ("a b", "-rf", "öl", "\udcff\udcfe", "x" * 255, "\n", "*", "{}"):
        (root / name).mkdir()
        (root / name / name).touch()


def pipes(root: Path) -> None:
    os.mkfifo(root / "pipe")


def too_deep_for_paths(root: Path) -> None:
    """Deeper than Python's recursion goes, under a path longer than the system takes."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(1_500):
        os.mkdir("folder", dir_fd=here)
        inner = os.open("folder", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize(
    "make", [hidden_folder, hidden_file, strange_names, pipes, too_deep_for_paths]
)
def test_whatever_is_inside_is_removed(swept: Path, make: Callable[[Path], None]) -> None:
    root = swept / "workdir"
    root.mkdir()
    make(root)
    remove(root)
    assert list(swept.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    mine, root = tmp_path / "mine", tmp_path / "workdir"
    (mine / "inner").mkdir(parents=True)
    (mine / "file").write_text("mine")
    mine.chmod(0o500)
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "to_folder").symlink_to(mine)
    (root / "to_file").symlink_to(mine / "file")
    (root / "to_itself").symlink_to("to_itself")
    remove(root)
    assert not root.exists()
    assert (mine / "file").read_text() == "mine"
    assert mine.stat().st_mode & 0o777 == 0o500
    mine.chmod(0o700)


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_goes_away_also_after_an_error(swept: Path) -> None:
    parent = swept / "work" / "ada"
    with pytest.raises(RuntimeError, match="stopped"), open_workdir(parent, CONFINED) as workdir:
        hidden_folder(workdir.lab)
        too_deep_for_paths(workdir.tmp)
        assert workdir.root.parent == parent
        raise RuntimeError("stopped")
    assert list(parent.iterdir()) == []


def test_workdirs_of_the_same_folder_are_apart(tmp_path: Path) -> None:
    with open_workdir(tmp_path, CONFINED) as one, open_workdir(tmp_path, CONFINED) as other:
        assert one.root != other.root


# ---- under a tight umask, where root grades and the sandbox's user is another one


@pytest.fixture
def tight() -> Iterator[None]:
    former = os.umask(0o077)
    yield
    os.umask(former)


def test_a_grader_makes_files_that_the_sandboxs_user_can_read(tmp_path: Path, tight: None) -> None:
    with readable():
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "file").write_text("x")
    (tmp_path / "own").mkdir()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"in": 0o755, "file": 0o644, "own": 0o700}


@pytest.mark.skipif(os.geteuid() != 0, reason="who grades is who runs the sandbox")
@pytest.mark.parametrize("hidden", ["", "batches", "batches/one.bin"])
def test_what_the_sandboxs_user_cannot_read_is_said_before_anything_runs(
    tmp_path: Path, hidden: str
) -> None:
    folder = tmp_path / "cache"
    (folder / "batches").mkdir(parents=True)
    (folder / "batches" / "one.bin").write_bytes(b"x")
    require_readable(CONFINED, folder)
    (folder / hidden).chmod(0o700 if (folder / hidden).is_dir() else 0o600)
    require_readable(OPEN, folder)
    with pytest.raises(SandboxUnavailable, match=r"cannot read .*: chmod -R a\+rX"):
        require_readable(CONFINED, folder)


def test_an_environment_below_tmp_can_be_entered(
    confined: Workdir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who has cloned into /tmp: the workdir's own /tmp lies over it, the environment in that."""
    monkeypatch.setattr(sys, "prefix", "/tmp/somebody/clone/.venv")
    line = bubblewrap_command(CONFINED, confined.sandbox("smoke"), ["/usr/bin/true"])
    made = [line[at - 1 : at + 2] for at, word in enumerate(line) if word == "--dir"]
    for folder in ("/tmp/somebody", "/tmp/somebody/clone"):
        assert ["0755", "--dir", folder] in made
    assert line.index("/tmp/somebody/clone") > line.index(str(confined.tmp))


def test_a_folder_that_is_swapped_for_a_link_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `renameat2(RENAME_EXCHANGE)` of a process that still runs does it, at the worst moment."""
    mine, root = tmp_path / "mine", tmp_path / "workdir"
    mine.mkdir()
    (mine / "file").write_text("mine")
    mine.chmod(0o500)
    (root / "inner").mkdir(parents=True)
    for swapped in ("before it is opened", "before it is moved"):
        (root / "inner").mkdir(parents=True, exist_ok=True)
        real = workdir_module._open_folder

        def swap(
            name: str, above: int, swapped: str = swapped, real: Callable[..., int] = real
        ) -> int:
            if name == "inner" and swapped == "before it is moved":
                found = real(name, above)
                os.rmdir(name, dir_fd=above)
                os.symlink(mine, name, dir_fd=above)
                return found
            if name == "1":
                os.rmdir(name, dir_fd=above)
                os.symlink(mine, name, dir_fd=above)
            return real(name, above)

        monkeypatch.setattr(workdir_module, "_open_folder", swap)
        remove(root)
        monkeypatch.undo()
        assert not root.exists()
        assert (mine / "file").read_text() == "mine"
        assert mine.stat().st_mode & 0o777 == 0o500
    mine.chmod(0o700)
