"""What a grading of a class is: its settings, written down beside its results."""

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from labkit.errors import LabError, UsageError
from labkit.grading.intake import safe_name
from labkit.grading.reference import Reference
from labkit.grading.results import Result, read_result
from labkit.grading.rubric import RUBRIC, Rubric, load_rubric
from labkit.grading.sandbox import BUBBLEWRAP, Isolation, find_isolation
from labkit.workspace import project_root, read_json, write_json

PLAN, RUBRIC_COPY, LOCK = "grading.json", "rubric.toml", ".lock"
SEED = "grading-seed.json"
MAX_SEED = 2**31


class PlanError(UsageError):
    """A grading that cannot be begun or gone on with."""


class GradingRuns(LabError):
    """Another process grades into the same folder."""


@dataclass(frozen=True)
class Plan:
    """The settings of a grading; `grading.json`.

    Attributes:
        out: Its folder.
        profile: `smoke`, `standard` or `full`.
        reference: Folder of the reference run.
        seed: Chooses held-out images and the inputs of the exercises.
        isolation: `bubblewrap` or `none`.
        memory_mib: Memory cap of one notebook, from the machine's memory and the workers.
    """

    out: Path
    profile: str
    reference: Path
    seed: int = 0
    isolation: str = BUBBLEWRAP
    memory_mib: int = 0

    @classmethod
    def begin(cls, plan: "Plan", rubric: Path | None, resume: bool) -> "Plan":
        """Write a new plan down, or find that it is the one that is to be gone on with.

        Args:
            plan: The settings asked for.
            rubric: A rubric file. When None, the one beside the results where a grading goes on,
                else the lab's own. It is copied beside the results.
            resume: Go on with what is there.

        Raises:
            PlanError: there are results already, or those of another plan.
            GradingRuns: another process grades into the folder.
        """
        load_rubric(rubric, plan.profile)  # what is wrong is said before a folder is made
        if plan.out.exists() and not plan.out.is_dir():
            raise PlanError(f"{plan.out} is no folder: name one for grades and feedback")
        with locked(plan.out):
            results = plan.result_files()
            if results and not resume:
                raise PlanError(
                    f"{plan.out} holds {len(results)} results: go on with --resume, or name "
                    "another folder"
                )
            if results:
                plan._refuse_changes(rubric)
            if rubric is not None or not results:
                content = (rubric or RUBRIC).read_bytes()
                (plan.out / RUBRIC_COPY).write_bytes(content)
            plan.write()
        return plan

    def _refuse_changes(self, rubric: Path | None) -> None:
        """Raise a `PlanError` where the grading in the folder has other settings than these."""
        earlier = Plan.load(self.out)
        changed = [
            f"{name}: {getattr(earlier, name)!r}, now {getattr(self, name)!r}"
            for name in ("profile", "seed", "isolation")
            if getattr(earlier, name) != getattr(self, name)
        ]
        if rubric is not None and load_rubric(rubric).sha256 != earlier.rubric.sha256:
            changed.append("rubric: another file; use labkit regrade after the grading")
        if changed:
            raise PlanError(f"{self.out} was begun with other settings: {'; '.join(changed)}")

    @classmethod
    def load(cls, out: Path) -> "Plan":
        """Read the plan of a grading.

        Raises:
            PlanError: the folder holds none.
        """
        if not (out / PLAN).is_file():
            raise PlanError(f"{out} is no grading: it has no {PLAN}; labkit grade makes one")
        fields = read_json(out / PLAN)
        try:
            fields["reference"] = Path(fields["reference"])
            return cls(out=out, **fields)
        except (KeyError, TypeError) as error:
            raise PlanError(
                f"{out / PLAN} is damaged ({error}): grade into a new folder"
            ) from error

    def write(self) -> None:
        """Write `grading.json`."""
        fields: dict[str, Any] = asdict(self) | {"reference": str(self.reference)}
        del fields["out"]
        write_json(self.out / PLAN, fields)

    @cached_property
    def rubric(self) -> Rubric:
        """The rubric beside the results, with this plan's memory cap where it has none itself."""
        rubric = load_rubric(self.out / RUBRIC_COPY, self.profile)
        if not self.memory_mib or "memory_mib" in rubric.limits:
            return rubric
        limits = {"memory_mib": self.memory_mib, **rubric.limits}
        return replace(rubric, limits=limits)

    @cached_property
    def confinement(self) -> Isolation:
        """How student code is confined, tried out."""
        return find_isolation(self.isolation)

    @cached_property
    def reference_run(self) -> Reference:
        """The reference run, verified."""
        return Reference.of(self.reference, self.profile)

    def result_path(self, student: str) -> Path:
        """Return where a submission's result is written."""
        return self.out / "results" / f"{safe_name(student)}.json"

    def evidence(self, student: str) -> Path:
        """Return where a submission's files are kept."""
        return self.out / "evidence" / safe_name(student)

    def result_files(self) -> list[Path]:
        """Return the files of all results; not what a process that was killed left half-written."""
        found = sorted((self.out / "results").glob("*.json"))
        return [path for path in found if not path.name.startswith(".")]

    def results(self) -> list[Result]:
        """Return all results, by name."""
        return sorted(map(read_result, self.result_files()), key=lambda result: result.student)


def seed_for(out: Path) -> int:
    """Return the seed of a grading that is given none: the one it was begun with, else our own.

    This checkout's own seed is drawn when it is first asked for and kept in `runs/`, so that the
    same class gets the same grades twice and no student can know the hidden inputs beforehand.
    """
    if (out / PLAN).is_file():
        return Plan.load(out).seed
    path = project_root() / "runs" / SEED
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_json(path, secrets.randbelow(MAX_SEED))
        path.chmod(0o600)
    seed = read_json(path)
    if not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
        raise PlanError(f"{path} holds no seed: delete it, and another one is drawn")
    return seed


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a grading's folder, so that two graders cannot write into it.

    Raises:
        GradingRuns: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise GradingRuns(f"another process grades into {out}: wait for it") from error
        yield
