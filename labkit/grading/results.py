"""What grading writes down about one submission: the records behind every page and table."""

from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from labkit.errors import LabError
from labkit.workspace import MADE_BY, read_json, write_json

SCHEMA = 2
CLOSED = ConfigDict(extra="forbid")

# Verdicts of one notebook. Every notebook of every submission ends with exactly one of them.
OK = "ok"  # every cell ran without an error
ERROR = "error"  # at least one cell raised; the others ran
STOPPED = "stopped"  # the kernel ended before the last cell: exit, kill, crash
TIMEOUT = "timeout"  # wall-clock limit
CPU = "cpu"  # CPU time limit
OOM = "oom"  # memory limit
PROCESSES = "processes"  # too many processes
DISK = "disk"  # wrote too much, or too many files
OUTPUT = "output"  # printed too much
MISSING = "missing"  # no such notebook
AMBIGUOUS = "ambiguous"  # several notebooks could be it
INVALID = "invalid"  # not a notebook
SHORTAGE = "shortage"  # of the machine; never the verdict of a notebook
GRADER_ERROR = "grader_error"  # the grader's own fault; look at its log
VERDICTS = (
    OK, ERROR, STOPPED, TIMEOUT, CPU, OOM, PROCESSES, DISK, OUTPUT,
    MISSING, AMBIGUOUS, INVALID, GRADER_ERROR,
)  # fmt: skip

# Status of a submission. Every submission ends with exactly one of them.
GRADED = "graded"
REJECTED = "rejected"  # nothing in it can be graded: no notebook, or no readable archive
FAILED = "failed"  # the grader itself failed on it; points are not to be trusted


PRIVATE = 0o600  # mode of a file that tells the seed


class ResultError(LabError):
    """A result file that is not one, or is of another version."""


@dataclass(frozen=True, config=CLOSED)
class Measurement:
    """One thing measured about a submission.

    Attributes:
        value: The number that the rubric turns into points; None where nothing could be measured.
            A share of sub-checks lies in [0, 1]; other measurements have the unit of their item.
        detail: What was found, for the student: one sentence.
    """

    value: float | None
    detail: str = ""


@dataclass(frozen=True, config=CLOSED)
class StageRecord:
    """What became of one notebook of a submission.

    Attributes:
        stage: Such as `03_export`.
        verdict: One of `VERDICTS`.
        reason: One sentence; empty when `ok`.
        seconds: Wall-clock time of the notebook.
        cpu_s: CPU time of everything that it started.
        peak_memory_mib: Highest memory of everything that it started, at one moment.
        artifacts: File that it made → SHA-256, of those that were kept.
        used_reference: Artifacts of *earlier* stages that were not the student's own.
        accepted: Whether later stages go on with this stage's own artifacts.
        why_not: Where not, why: one sentence.
        notes: What the grader changed or left out before running, a sentence each.
    """

    stage: str
    verdict: str
    reason: str = ""
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_memory_mib: float = 0.0
    artifacts: dict[str, str] = field(default_factory=dict)
    used_reference: list[str] = field(default_factory=list)
    accepted: bool = False
    why_not: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def was_run(self) -> bool:
        """Whether there was a notebook to run."""
        return self.verdict not in (MISSING, AMBIGUOUS, INVALID)


@dataclass(frozen=True, config=CLOSED)
class ItemResult:
    """Points for one item of the rubric.

    Attributes:
        id: Such as `02.accuracy` or `ex-01-leak`.
        stage: The notebook that it belongs to.
        title: What is graded, as the student reads it.
        points: Awarded, in [0, maximum].
        maximum: Highest points.
        visible: Whether the student is told what was measured; hidden items show points only.
        reason: Why these points: one sentence.
        hint: What to look at; empty with full points.
        value: What was measured.
    """

    id: str
    stage: str
    title: str
    points: float
    maximum: float
    visible: bool
    reason: str
    hint: str = ""
    value: float | None = None


@dataclass(frozen=True, config=CLOSED)
class HandedIn:
    """What a learning platform says of a submission.

    Attributes:
        platform: `canvas`, `moodle`, or empty.
        user: Its own number for the person.
        prefix: What it expects before the names of files that are given back.
        late: Whether it was late, by its files' names.
    """

    platform: str = ""
    user: str = ""
    prefix: str = ""
    late: bool = False


@dataclass(frozen=True, config=CLOSED)
class Result:
    """Everything about one graded submission; `results/<student>.json`.

    Attributes:
        student: Name of the submission's folder or archive.
        status: `graded`, `rejected` or `failed`.
        reason: Where not graded, why.
        profile: `smoke`, `standard` or `full`.
        stages: One record per notebook of the rubric, in order.
        measurements: Rubric item → what was measured.
        items: Points; made of `measurements` by the rubric.
        points, maximum: Sums over `items`.
        notes: What was left out or repaired at intake, a sentence each.
        same_as: Artifact → other students whose file is the same, byte for byte. Reported, never
            punished: equal code on equal data gives equal files.
        submission_sha256: Over the submitted files: tells a resubmission from a repetition.
        rubric_sha256: Of the rubric that gave the points.
        measure_sha256: Of the programs that measured; another one measures anew in a regrade.
        seed: Chooses the held-out images and the inputs of the exercises.
        isolation: How student code was confined, such as `bubblewrap 0.11.0`, or `none`.
        environment: CPU, cores, memory, versions.
        timings: Step → seconds: `notebooks`, `measure`, `total`.
        handed_in: What a learning platform says of it.
        name: The person's, as the roster has it; pages and tables show it.
        exempt: Whether the roster says that no points are to be given.
        late_by_roster: Whether the roster says that it was late.
    """

    student: str
    status: str
    profile: str
    reason: str = ""
    stages: list[StageRecord] = field(default_factory=list)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    items: list[ItemResult] = field(default_factory=list)
    points: float = 0.0
    maximum: float = 0.0
    notes: list[str] = field(default_factory=list)
    same_as: dict[str, list[str]] = field(default_factory=dict)
    submission_sha256: str = ""
    rubric_sha256: str = ""
    measure_sha256: str = ""
    seed: int = 0
    isolation: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    handed_in: HandedIn = HandedIn()
    name: str = ""
    exempt: bool = False
    late_by_roster: bool = False

    @property
    def late(self) -> bool:
        """Whether it was late, by the names of its files or by the roster."""
        return self.handed_in.late or self.late_by_roster

    @property
    def shown(self) -> str:
        """Whom a page or table is about: the name of the roster, else the submission's."""
        return self.name or self.student

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain lists, dicts, strings and numbers."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Result":
        """Make a record from what `to_json` returned.

        Raises:
            ResultError: it is of another version, or incomplete.
        """
        fields = dict(record)
        version = fields.pop("schema", None)
        if version != SCHEMA:
            raise ResultError(f"got a result of schema {version}, expected {SCHEMA}: grade anew")
        try:
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            what = f"{where}: {first['msg']}"
            raise ResultError(f"got a damaged result ({what}): grade anew") from error

    def carried(self) -> list[str]:
        """Return the stages instead of whose files a notebook that ran got the reference's."""
        used = {MADE_BY.get(name) for record in self.stages for name in record.used_reference
                if record.was_run}  # fmt: skip
        return [
            record.stage for record in self.stages if not record.accepted and record.stage in used
        ]


def write_result(path: Path, result: Result) -> None:
    """Write `results/<student>.json`, all or nothing."""
    write_json(path, result.to_json(), PRIVATE)  # the seed is in it


def read_result(path: Path) -> Result:
    """Read `results/<student>.json`.

    Raises:
        ResultError: the file is not a result of this version.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise ResultError(
            f"{path.name}: got {type(record).__name__}, expected a result: grade anew"
        )
    return Result.from_json(record)
