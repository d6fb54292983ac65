"""What a grading of a class is: its settings, written down beside its results."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import IO

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from labkit.errors import LabError, UsageError
from labkit.grading.carry_forward import Reference
from labkit.grading.find_submissions import safe_name
from labkit.grading.results import PRIVATE, Result, read_result
from labkit.grading.rubric import RUBRIC, Rubric, load_rubric
from labkit.grading.sandbox import BUBBLEWRAP, Isolation, find_isolation
from labkit.grading.untrusted import short_line
from labkit.server import choose_runtime
from labkit.server.engine import NATIVE, STAND_IN
from labkit.server.native.built import built_backends
from labkit.workspace import project_root, read_json, write_json

SETTINGS, RUBRIC_COPY, LOCK = "grading.json", "rubric.toml", ".lock"
SEED = "grading-seed.json"
MAX_SEED = 2**63  # nobody finds it by trying


class SessionError(UsageError):
    """A grading that cannot be begun or gone on with."""


class GradingRuns(LabError):
    """Another process grades into the same folder."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Session:
    """The settings of a grading; `grading.json`.

    Attributes:
        out: Its folder.
        profile: `smoke`, `standard` or `full`.
        reference: Folder of the reference run.
        seed: Chooses held-out images and the inputs of the exercises.
        isolation: `bubblewrap` or `none`.
        memory_mib: Memory cap of one notebook, from the machine's memory and the workers.
        workers: How many are graded at once on a machine.
        runtime: What serves models, `stand-in` or `native`.
    """

    out: Path
    profile: str
    reference: Path
    seed: int = 0
    isolation: str = BUBBLEWRAP
    memory_mib: int = 0
    workers: int = 1
    runtime: str = STAND_IN

    @classmethod
    def begin(cls, session: "Session", rubric: Path | None, resume: bool) -> "Session":
        """Write a new session down, or find that it is the one that is to be gone on with.

        Args:
            session: The settings asked for.
            rubric: A rubric file. When None, the one beside the results where a grading goes on,
                else the lab's own. It is copied beside the results.
            resume: Go on with what is there.

        Raises:
            SessionError: there are results already, or those of another session.
            GradingRuns: another process grades into the folder.
        """
        load_rubric(rubric, session.profile)  # what is wrong is said before a folder is made
        if session.out.exists() and not session.out.is_dir():
            raise SessionError(f"{session.out} is no folder: name one for grades and feedback")
        with locked(session.out):
            results = session.result_files()
            if results and not resume:
                raise SessionError(
                    f"{session.out} holds {len(results)} results: go on with --resume, or name "
                    "another folder"
                )
            if results:
                session._refuse_changes(rubric)
            if rubric is not None or not results:
                content = (rubric or RUBRIC).read_bytes()
                (session.out / RUBRIC_COPY).write_bytes(content)
            session.write()
        return session

    def _refuse_changes(self, rubric: Path | None) -> None:
        """Raise a `SessionError` where the grading in the folder has other settings than these."""
        earlier = Session.load(self.out)
        changed = [
            f"{name}: {getattr(earlier, name)!r}, now {getattr(self, name)!r}"
            for name in ("profile", "seed", "isolation", "runtime")
            if getattr(earlier, name) != getattr(self, name)
        ]
        if rubric is not None and load_rubric(rubric).sha256 != earlier.rubric.sha256:
            changed.append("rubric: another file; use labkit regrade after the grading")
        if changed:
            raise SessionError(f"{self.out} was begun with other settings: {'; '.join(changed)}")

    @classmethod
    def load(cls, out: Path) -> "Session":
        """Read the session of a grading.

        Raises:
            SessionError: the folder holds none.
        """
        if not (out / SETTINGS).is_file():
            raise SessionError(f"{out} is no grading: it has no {SETTINGS}; labkit grade makes one")
        try:
            fields = {**read_json(out / SETTINGS), "out": out}
            return TypeAdapter(cls).validate_python(fields)
        except (ValidationError, TypeError) as error:
            reason = f"is damaged ({short_line(str(error))}): grade into a new folder"
            raise SessionError(f"{out / SETTINGS} {reason}") from error

    def write(self) -> None:
        """Write `grading.json`."""
        fields = asdict(self) | {"reference": str(self.reference)}
        del fields["out"]
        write_json(self.out / SETTINGS, fields, PRIVATE)  # the seed

    @cached_property
    def rubric(self) -> Rubric:
        """The rubric beside the results, with this memory cap where it has none itself."""
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

    def reference_files(self) -> frozenset[str]:
        """Return the SHA-256 of the reference run's artifacts; none where there is no run."""
        path = self.reference / "manifest.json"
        entries = read_json(path).values() if path.is_file() else ()
        return frozenset(str(entry["sha256"]) for entry in entries)

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

    def keep_only(self, students: Iterable[str]) -> list[str]:
        """Put away what there is of everybody else; return who that is.

        Their results and feedback go to `removed/`: no later regrade brings them back.
        """
        kept = set(students)
        gone = [result for result in self.results() if result.student not in kept]
        for result in gone:
            name = safe_name(result.student)
            place = self.out / "removed" / name
            place.mkdir(parents=True, exist_ok=True)
            moved = {self.result_path(result.student): "result.json"}
            moved |= {self.out / kind / name: kind for kind in ("feedback", "evidence")}
            for path, inside in moved.items():
                if path.exists():
                    shutil.rmtree(place / inside, ignore_errors=True)
                    path.replace(place / inside)
        return [result.shown for result in gone]

    def results(self) -> list[Result]:
        """Return all results, by name."""
        return sorted(map(read_result, self.result_files()), key=lambda result: result.student)


def seed_for(out: Path) -> int:
    """Return the seed of a grading that is given none: the one it was begun with, else our own.

    This checkout's own seed is drawn when it is first asked for and kept in `runs/`, so that the
    same class gets the same grades twice and no student can know the hidden inputs beforehand.
    """
    if (out / SETTINGS).is_file():
        return Session.load(out).seed
    path = project_root() / "runs" / SEED
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_json(path, secrets.randbelow(MAX_SEED), PRIVATE)
    path.chmod(PRIVATE)  # also one that was copied
    seed = read_json(path)
    if not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
        raise SessionError(f"{path} holds no seed: delete it, and another one is drawn")
    return seed


def require_runtime(runtime: str) -> None:
    """Refuse what cannot serve the models of a grading here: they would all count as broken.

    Raises:
        SessionError: it is neither `native` nor `stand-in`, or not built.
    """
    if runtime not in (NATIVE, STAND_IN):
        raise SessionError(f"got --runtime {runtime}, expected {STAND_IN} or {NATIVE}")
    if runtime == NATIVE and built_backends() is None:
        raise SessionError(
            "this grading serves with native backends, and none are built for this environment: "
            "run labkit triton build, or grade into a new folder with --runtime stand-in"
        )


def runtime_for(out: Path, only_here: bool) -> str:
    """Return what serves in a grading that does not say: what it was begun with, else the faster.

    Args:
        out: The folder of the grading.
        only_here: Whether no other machine grades, which may have no native backends.
    """
    if (out / SETTINGS).is_file():
        return Session.load(out).runtime
    return NATIVE if only_here and choose_runtime() == NATIVE else STAND_IN


class Turns:
    """Who may run a notebook now: several beside each other, or one alone.

    Args:
        out: The folder of the grading.
    """

    def __init__(self, out: Path) -> None:
        self._gate, self._turn = out / ".gate", out / ".turn"

    @contextmanager
    def take(self, alone: bool = False) -> Iterator[None]:
        """Wait for a turn, and hold it; whoever waits to be alone lets nobody else begin."""
        with self._gate.open("w") as gate, self._turn.open("w") as turn:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(gate, fcntl.LOCK_UN)
            yield


def own_cores(out: Path, workers: int) -> IO[str] | None:
    """Keep this process to cores of its own, where there are enough for all workers.

    Returns:
        What holds them for as long as it is open; None where nothing is held.
    """
    cores = sorted(os.sched_getaffinity(0))
    if workers < 2 or len(cores) < workers:
        return None
    for number in range(workers):
        stream = (out / f".cores-{number}").open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            continue
        os.sched_setaffinity(0, cores[number::workers])
        return stream
    return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a grading's folder, so that two graders cannot write into it.

    Grades and hidden inputs come into it: until the first result is there it is made private, also
    where the folder was there before. Later its rights are the instructor's own matter.

    Raises:
        GradingRuns: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not any((out / "results").glob("*.json")):
        with suppress(PermissionError):  # somebody else's folder, which we may write to
            out.chmod(0o700)
    with (out / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise GradingRuns(f"another process grades into {out}: wait for it") from error
        yield
