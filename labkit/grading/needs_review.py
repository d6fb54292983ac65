"""What an instructor should look at by hand, before the points go out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from labkit.grading.exercises import EXERCISES
from labkit.grading.pages import feedback_link, points_text, words_for
from labkit.grading.results import FAILED, GRADED, GRADER_ERROR, REJECTED, Result
from labkit.grading.roster import Roster

MOST_NAMES: Final = 8
NO_ISOLATION: Final = "none"
_ENDED_BADLY: Final = frozenset({"raised", "stopped"})  # kinds of verdicts
ALIKE: Final = "looks like it"  # in the note of `submission.find_submissions`
HIGH_SHARE: Final = 0.9  # of the points: with an error as well, one of the two may be wrong


@dataclass(frozen=True)
class Mention:
    """A student in a list: name, link to the feedback (empty where there is none), and why."""

    student: str
    page: str = ""
    why: str = ""


@dataclass(frozen=True)
class Matter:
    """Something that needs a look.

    Attributes:
        title: What it is.
        advice: What to do about it.
        mentions: Whom it is about, at most `MOST_NAMES`.
        count: How many it is about.
    """

    title: str
    advice: str
    mentions: list[Mention]
    count: int

    @property
    def more(self) -> int:
        """How many are not listed."""
        return self.count - len(self.mentions)


@dataclass(frozen=True)
class SameFiles:
    """Students who handed in the same files, byte for byte.

    Attributes:
        students: Who, at most `MOST_NAMES`.
        count: How many.
        artifacts: The files that are the same for all of them.
    """

    students: list[str]
    count: int
    artifacts: list[str]


Why = Callable[[Result], str | None]  # why a submission is concerned, may be empty; else None


def needs_review(results: Sequence[Result], people: Roster) -> list[Matter]:
    """Return what needs a look, the most urgent first; empty for a class without any.

    Args:
        results: The class.
        people: The roster; empty where there is none.
    """
    matters = [_matter(title, advice, results, why) for title, advice, why in MATTERS]
    if people:
        advice = "Their grade goes to the learning platform under the submission's name."
        found = _matter(
            "Not on the roster", advice, results, lambda r: None if people.of(r) else ""
        )
        absent = [person.shown for person in people.absent(results) if not person.exempt]
        mentions = [Mention(student) for student in absent[:MOST_NAMES]]
        advice = "On the roster, but without a submission."
        matters += [found, Matter("No submission", advice, mentions, len(absent))]
    return [matter for matter in matters if matter.count]


def _matter(title: str, advice: str, results: Iterable[Result], why: Why) -> Matter:
    """Collect the students for whom `why` gives a reason, which may be empty; None is no reason."""
    found = [
        Mention(result.shown, feedback_link(result.student), reason)
        for result in results
        if (reason := why(result)) is not None
    ]
    return Matter(title, advice, found[:MOST_NAMES], len(found))


def _grader_failure(result: Result) -> str | None:
    """Return where the grader failed; None where it did not."""
    if result.status == FAILED:
        return result.reason
    stages = [record.stage for record in result.stages if record.verdict == GRADER_ERROR]
    return ", ".join(stages) or None


def _limits(result: Result) -> str | None:
    """Return which limits were hit where; None where none was."""
    words = [(record.stage, words_for(record.verdict)) for record in result.stages]
    return (
        ", ".join(f"{stage}: {word.label}" for stage, word in words if word.kind == "limit") or None
    )


def _high_with_an_error(result: Result) -> str | None:
    """Return points and errors of a submission that has high points all the same; else None."""
    words = [(record.stage, words_for(record.verdict)) for record in result.stages]
    errors = [f"{stage}: {word.label}" for stage, word in words if word.kind in _ENDED_BADLY]
    if result.status != GRADED or not errors or result.points < HIGH_SHARE * result.maximum:
        return None
    return f"{points_text(result.points)} points; {', '.join(errors)}"


def _no_exercise(result: Result) -> str | None:
    """Return how many exercises there are where none is right; else None."""
    exercises = [item for item in result.items if item.id in EXERCISES]
    right = any(item.points >= item.maximum for item in exercises)
    if result.status != GRADED or not exercises or right:
        return None
    return f"0 of {len(exercises)} right, {points_text(result.points)} points"


# Title, advice, and whom it is about; the most urgent first.
MATTERS: Final[tuple[tuple[str, str, Why], ...]] = (
    (
        "Graded without a sandbox",
        "Student code ran with your rights: grade again with a sandbox.",
        lambda result: "" if result.isolation == NO_ISOLATION else None,
    ),
    (
        "The grader failed",
        "The points are not to be trusted: see the log in evidence/, then grade again.",
        _grader_failure,
    ),
    (
        "Rejected",
        "Nothing in it could be graded: ask for the right files.",
        lambda result: result.reason if result.status == REJECTED else None,
    ),
    (
        "Hit a limit",
        "A notebook was stopped: a slow machine, a slip, or an attack. See what it printed.",
        _limits,
    ),
    (
        "High points, but an error",
        "A notebook ended with an error and cost little: see whether the points are right.",
        _high_with_an_error,
    ),
    (
        "No exercise is right",
        "Not begun, saved before the work was done, or the wrong files: ask.",
        _no_exercise,
    ),
    (
        "Names that look alike",
        "Each was graded: see whose is whose before the points go out.",
        lambda result: next((note for note in result.notes if ALIKE in note), None),
    ),
)


def same_files(results: Sequence[Result]) -> list[SameFiles]:
    """Return who shares which files: small groups with many files first, as they say most."""
    shown = {result.student: result.shown for result in results}
    shared: dict[tuple[str, ...], set[str]] = {}
    for result in results:
        for artifact, others in result.same_as.items():
            if others:
                students = tuple(sorted({result.student, *others}))
                shared.setdefault(students, set()).add(artifact)
    order = sorted(shared.items(), key=lambda entry: (-len(entry[1]), len(entry[0]), entry[0]))
    return [
        SameFiles(
            [shown.get(student, student) for student in students[:MOST_NAMES]],
            len(students),
            sorted(artifacts),
        )
        for students, artifacts in order
    ]
