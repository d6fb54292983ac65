"""What a stage leaves, and what the next one is given: the student's own, or the reference's.

The reference is a run of the solved notebooks. Where a stage's own files cannot be used, later
stages go on with its files, and the record says so.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from labkit.chain import PASSED, STAGES, Progress, StageResult, run_chain
from labkit.errors import LabError
from labkit.grading.untrusted import UnfitFile, copy_plain
from labkit.repository import MODEL_FILES, VARIANTS, write_repository
from labkit.workspace import (
    MADE_BY,
    OPTIONAL,
    CorruptFile,
    Workspace,
    project_root,
    read_json,
)

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
class StageOutputs:
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


@dataclass(frozen=True)
class StageInputs:
    """What a stage is given of earlier ones.

    Attributes:
        artifacts: Artifact → file.
        repository: The model repository; None before there is one.
        from_reference: Those artifacts that are not the student's own.
    """

    artifacts: dict[str, Path]
    repository: Path | None
    from_reference: list[str]


def take_out(stage: str, run: Path, keep: Path) -> StageOutputs:
    """Copy what a stage has made out of the folder of its run.

    Args:
        stage: Such as `03_export`.
        run: The run's folder, which a stranger has written.
        keep: Where the copies go.
    """
    made = StageOutputs()
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
            # What is missing is said when the repository is measured.
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


def kept(stage: str, keep: Path) -> StageOutputs:
    """Return what `take_out` has kept of a stage, for grading it again."""
    made = StageOutputs()
    for name in artifacts_of(stage):
        if (keep / name).is_file():
            made.files[name] = keep / name
        else:
            made.missing[name] = f"{name} was not made"
    if (keep / "model_repository").is_dir():
        made.repository = keep / "model_repository"
    return made


class NoReference(LabError):
    """There is no complete reference run."""


@dataclass(frozen=True)
class Reference:
    """A complete run of the solved notebooks.

    Attributes:
        artifacts: Artifact → file.
        repository: The model repository, tuned configuration included.
    """

    artifacts: dict[str, Path]
    repository: Path

    @classmethod
    def of(cls, run: Path, profile: str) -> "Reference":
        """Take a run as the reference.

        Raises:
            NoReference: it is not a run of all notebooks in this profile, or one of them failed.
        """
        workspace = Workspace(run, run / "model_repository")
        its_profile, passed = _run_record(run)
        missing = [stage for stage in STAGES if stage not in passed]
        if missing or its_profile != profile:
            raise NoReference(
                f"{run} is no complete run in profile {profile} (missing: "
                f"{', '.join(missing) or 'none'}, its profile: {its_profile}); make one: "
                f"labkit run --profile {profile} --out {run}"
            )
        changed = [name for stage in STAGES for name in workspace.unrecorded(stage)]
        if changed:
            raise NoReference(f"{run}: {', '.join(changed)} changed after the run; make it anew")
        artifacts = {name: workspace.path(name) for name in MADE_BY if name not in OPTIONAL}
        return cls(artifacts, workspace.repository)


def _run_record(run: Path) -> tuple[str | None, set[str]]:
    """Return a run's profile, and the stages that have passed in it.

    Raises:
        NoReference: its `run.json` is damaged.
    """
    if not (run / "run.json").is_file():
        return None, set()
    try:
        record = read_json(run / "run.json")
        passed = {entry["stage"] for entry in record["stages"] if entry["status"] == PASSED}
        return record["profile"], passed
    except (CorruptFile, KeyError, TypeError) as error:
        raise NoReference(f"{run} has a damaged run.json ({error}): make the run anew") from error


def reference_folder(profile: str) -> Path:
    """Return where the reference run of a profile is kept between gradings."""
    return project_root() / "runs" / f"reference-{profile}"


def make_reference(
    run: Path,
    profile: str,
    on_progress: Callable[[Progress], None],
    on_result: Callable[[StageResult], None],
) -> None:
    """Run the solved notebooks.

    Raises:
        NoReference: one of them failed.
    """
    last = run_chain(
        Workspace.at(run.absolute()), profile, on_progress=on_progress, on_result=on_result
    )[-1]
    if last.status != PASSED:
        raise NoReference(f"the reference run failed in {last.stage}: {last.reason}")


class CarryForward:
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

    def inputs(self, stage: str) -> StageInputs:
        """Return what a stage is given.

        The report is about one run: where anything before it was replaced, it gets the whole
        reference run.
        """
        if stage == "08_report" and self._replaced:
            before = STAGES[: STAGES.index(stage)]
            names = [name for name, maker in MADE_BY.items() if maker in before]
            artifacts = {n: p for n, p in self._reference.artifacts.items() if n in names}
            repository: Path | None = self._reference.repository
        else:
            artifacts, repository = dict(self.artifacts), self.repository
        known = self._reference.artifacts
        theirs = [name for name, path in artifacts.items() if path == known.get(name)]
        return StageInputs(artifacts, repository, theirs)

    def advance(self, stage: str, outputs: StageOutputs | None) -> None:
        """Decide what later stages are given: a stage's own files; with None, the reference's."""
        if outputs is None:
            self._replace(stage)
            return
        self.artifacts |= outputs.files
        if outputs.repository is not None:
            self.repository = outputs.repository

    def _replace(self, stage: str) -> None:
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
