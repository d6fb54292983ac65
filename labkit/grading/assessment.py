"""Measuring the stages of one submission in order, each with what it was given."""

from dataclasses import dataclass
from pathlib import Path

from labkit.grading.artifacts import Inheritance, Made
from labkit.grading.files import load_json
from labkit.grading.heldout import ImageFiles
from labkit.grading.judge import Case, Judgement, judge_stage
from labkit.grading.judge.stages import split_indices
from labkit.grading.plan import Plan
from labkit.grading.probe import Probe


@dataclass(frozen=True)
class Given:
    """What a stage is given of earlier ones.

    Attributes:
        artifacts: Artifact → file.
        repository: The model repository; None before there is one.
        from_reference: Those artifacts that are not the student's own.
    """

    artifacts: dict[str, Path]
    repository: Path | None
    from_reference: list[str]


class Assessment:
    """One submission while its stages are measured; stages in order, each settled once.

    Args:
        plan: The grading.
        images: The submission's files of images.
        probe: The sandbox that runs model files.
        work: Where repositories are written anew.
    """

    def __init__(self, plan: Plan, images: ImageFiles, probe: Probe, work: Path) -> None:
        self._inheritance = Inheritance(plan.reference_run, work)
        self._images, self._probe, self._profile = images, probe, plan.profile
        self._case = Case(probe, images, plan.profile)
        self._splits: Path | None = None

    def given(self, stage: str) -> Given:
        """Return what a stage is given."""
        artifacts, repository = self._inheritance.given(stage)
        return Given(artifacts, repository, self._inheritance.from_reference(artifacts))

    def judge(self, stage: str, given: Given, made: Made) -> Judgement:
        """Measure what a stage made of what it was given."""
        case = self._case
        case.given, case.made, case.missing = given.artifacts, made.files, made.missing
        case.repository = made.repository or given.repository
        return judge_stage(stage, case)

    def settle(self, stage: str, made: Made | None) -> None:
        """Decide what later stages are given: what this one made; with None, the reference's."""
        if made is None:
            self._inheritance.replace(stage)
        else:
            self._inheritance.accept(made)
        splits = self._inheritance.artifacts["splits.json"]
        if splits != self._splits:  # with a stage that fails, those before it are replaced as well
            self._splits = splits
            self._images.use_splits(split_indices(load_json(splits))["validation"])
            # What files have answered to other validation images is of no use.
            self._case = Case(self._probe, self._images, self._profile)
