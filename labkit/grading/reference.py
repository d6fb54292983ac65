"""The reference run: what the solved notebooks made, for stages whose own files cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.chain import PASSED, STAGES, Progress, StageResult, run_chain
from labkit.errors import LabError
from labkit.workspace import (
    MADE_BY,
    OPTIONAL,
    CorruptFile,
    Workspace,
    project_root,
    read_json,
)


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
