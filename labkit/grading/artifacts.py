"""What a stage leaves, taken out of a stranger's folder; and what the next stage is given."""

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from labkit.grading.files import UnfitFile, copy_plain
from labkit.grading.reference import Reference
from labkit.repository import MODEL_FILES, VARIANTS, write_repository
from labkit.workspace import MADE_BY, OPTIONAL, Workspace

REPOSITORY_STAGES = ("05_configure", "07_tune")
WEIGHTS = {"openvino": ("model.bin",)}


def artifacts_of(stage: str) -> list[str]:
    """Return the artifacts that a stage must make."""
    return [name for name, maker in MADE_BY.items() if maker == stage and name not in OPTIONAL]


def repository_files() -> list[str]:
    """Return every file that the lab's model repository may hold; nothing else is ever served."""
    files = []
    for spec in VARIANTS.values():
        inner = [MODEL_FILES[spec.backend], *WEIGHTS.get(spec.backend, ())]
        files += [f"{spec.name}/1/{name}" for name in inner]
        files += [f"{spec.name}/{name}" for name in ("config.pbtxt", "labels.txt")]
        files += [f"{spec.name}/configs/tuned.pbtxt"]
    return files


@dataclass
class Made:
    """What was taken out of a stage's folder.

    Attributes:
        files: Artifact → copy.
        sha256: Artifact → SHA-256; the repository's files under their path in it.
        missing: Artifact → why it could not be taken.
        repository: Copy of the model repository; None where the stage makes none.
    """

    files: dict[str, Path] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    repository: Path | None = None


def take_out(stage: str, run: Path, keep: Path) -> Made:
    """Copy what a stage has made out of the folder of its run.

    Args:
        stage: Such as `03_export`.
        run: The run's folder, which a stranger has written.
        keep: Where the copies go.
    """
    made = Made()
    for name in artifacts_of(stage):
        try:
            made.sha256[name] = _copy(run, "artifacts", name, keep / name)
            made.files[name] = keep / name
        except UnfitFile as error:
            made.missing[name] = str(error)
    if stage in REPOSITORY_STAGES:
        made.repository = keep / "model_repository"
        made.repository.mkdir(parents=True, exist_ok=True)
        for name in repository_files():
            # What is missing, the judgement of the repository says.
            with suppress(UnfitFile):
                target = made.repository / name
                digest = _copy(run, "model_repository", name, target)
                made.sha256[f"model_repository/{name}"] = digest
    return made


def _copy(run: Path, folder: str, name: str, target: Path) -> str:
    """Copy a file out of a run's folder; return its SHA-256.

    The folder above `run` is the grader's. `run` itself may have become a link, to the reference
    run for instance, so it is a part of the name.

    Raises:
        UnfitFile: it is missing or no plain file; the message is for the student.
    """
    inside = f"{run.name}/{folder}/"
    try:
        return copy_plain(run.parent, inside + name, target)
    except UnfitFile as error:
        raise UnfitFile(str(error).removeprefix(inside)) from None


def kept(stage: str, keep: Path) -> Made:
    """Return what `take_out` has kept of a stage, for grading it again."""
    made = Made()
    for name in artifacts_of(stage):
        if (keep / name).is_file():
            made.files[name] = keep / name
        else:
            made.missing[name] = f"{name} was not made"
    if (keep / "model_repository").is_dir():
        made.repository = keep / "model_repository"
    return made


class Inheritance:
    """What each stage is given: a student's own files where they can be used, else the reference's.

    Files that depend on each other stay together: where a stage's own files cannot be used, the
    next stages get the reference's files of that stage *and* of those that it builds on. A model
    repository is the exception: it is written again from the student's own models.

    Args:
        reference: The complete run.
        folder: Where repositories are written.
    """

    def __init__(self, reference: Reference, folder: Path) -> None:
        self._reference, self._folder = reference, folder
        self.artifacts: dict[str, Path] = {}
        self.repository: Path | None = None
        self._replaced = False

    def given(self, stage: str) -> tuple[dict[str, Path], Path | None]:
        """Return artifacts and model repository for a stage.

        The report is about one run: where anything before it was replaced, it gets the whole
        reference run.
        """
        if stage == "08_report" and self._replaced:
            names = [name for name, maker in MADE_BY.items() if maker < stage]
            whole = {n: p for n, p in self._reference.artifacts.items() if n in names}
            return whole, self._reference.repository
        return dict(self.artifacts), self.repository

    def from_reference(self, artifacts: dict[str, Path]) -> list[str]:
        """Return the names of those artifacts that are the reference's."""
        return [n for n, path in artifacts.items() if path == self._reference.artifacts.get(n)]

    def accept(self, made: Made) -> None:
        """Go on with a stage's own files."""
        self.artifacts |= made.files
        if made.repository is not None:
            self.repository = made.repository

    def replace(self, stage: str) -> None:
        """Go on without a stage's own files."""
        self._replaced = True
        reference = self._reference.artifacts
        builds_on = stage <= "04_quantize"
        for name, maker in MADE_BY.items():
            if name in reference and (maker == stage or (builds_on and maker < stage)):
                self.artifacts[name] = reference[name]
        if stage == "05_configure":
            self.repository = self._write_repository()

    def _write_repository(self) -> Path:
        """Write the repository that the solved notebook would write from these models."""
        root = self._folder / "rebuilt"
        shutil.rmtree(root, ignore_errors=True)
        workspace = Workspace(root, root / "model_repository")
        workspace.artifacts.mkdir(parents=True)
        for name, path in self.artifacts.items():
            shutil.copyfile(path, workspace.path(name))
        write_repository(workspace)
        return workspace.repository
