"""The instructor's commands: release, grade, regrade. Thin: parse, call the library, print."""

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

import labkit
from labkit.errors import LabError, UsageError
from labkit.grading.results import GRADED, OK, Result

if TYPE_CHECKING:
    from labkit.grading.classroom import Event
    from labkit.grading.find_submissions import Found, Source
    from labkit.grading.roster import Roster

app = typer.Typer()
console = Console(soft_wrap=True, highlight=False)
SHOWN = 12  # rows of the live table


@app.command()
def release(
    out: Annotated[Path, typer.Argument(help="A new folder for the student edition.")],
) -> None:
    """Write the student edition: exercises unsolved, outputs cleared, hidden material left out."""
    from labkit.grading.release import release as write_release

    report = write_release(out)
    console.print(
        f"[green]released:[/] {escape(str(report.folder))}: {len(report.notebooks)} notebooks with "
        f"{len(report.exercises)} exercises, {report.files} files"
    )


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="A folder or zip for each student.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for grades and feedback.")],
    profile: Annotated[str, typer.Option(help="smoke, standard or full")] = "smoke",
    workers: Annotated[int, typer.Option(min=1, help="Submissions at once.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler, tcp://…, or `local` for a cluster here.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a grading in --out.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="This student; may be repeated.")] = None,
    rubric: Annotated[Path | None, typer.Option(help="A rubric file; else the lab's.")] = None,
    roster: Annotated[Path | None, typer.Option(help="CSV: student, name, email, id.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A run of the solved notebooks; made when left out.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of hidden images and inputs; else this checkout's.")
    ] = None,
    isolation: Annotated[str, typer.Option(help="bubblewrap, or none")] = "bubblewrap",
    runtime: Annotated[
        str | None,
        typer.Option(help="What serves the models, native or stand-in; else native if built here."),
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Exit 0 also where files are left out.")
    ] = False,
) -> None:
    """Grade a class: run every notebook in a sandbox, measure what it made, write feedback."""
    from labkit.download import FOLDER, fetch
    from labkit.grading.carry_forward import Reference, reference_folder
    from labkit.grading.classroom import LOCAL_CLUSTER, grade_class
    from labkit.grading.find_submissions import find_submissions
    from labkit.grading.limits import memory_for
    from labkit.grading.publish import ROSTER, publish
    from labkit.grading.roster import read_roster
    from labkit.grading.rubric import load_rubric
    from labkit.grading.sandbox import BUBBLEWRAP, NONE, find_isolation, require_readable
    from labkit.grading.session import Session, require_runtime, runtime_for, seed_for
    from labkit.grading.workdir import SERVER
    from labkit.server.engine import NATIVE
    from labkit.workspace import cache_dir

    # Everything that can be wrong is said before anything runs.
    with _wrong_usage():
        rubric_ = load_rubric(rubric, profile)
        found = find_submissions(submissions.absolute())
        kept = out / ROSTER if (out / ROSTER).is_file() else None
        people = read_roster(roster or kept, rubric_.title)
        if reference is not None:
            Reference.of(reference, profile)
    _tell_of(people, rubric_.maximum)
    chosen = _chosen(found.sources, only or [])
    if out.resolve().is_relative_to(submissions.resolve()):
        raise UsageError(f"got --out {out}, a folder of {submissions}: name one outside of it")
    if isolation not in (BUBBLEWRAP, NONE):
        raise UsageError(f"got --isolation {isolation}, expected {BUBBLEWRAP} or {NONE}")
    only_here = scheduler in (None, LOCAL_CLUSTER)
    serves = runtime or runtime_for(out, only_here)
    require_runtime(serves)
    if serves == NATIVE and not (runtime or only_here):
        raise UsageError(
            f"the grading in {out} was begun with native backends, which Dask's workers may lack: "
            "give --runtime native where they are built for each"
        )
    confinement = find_isolation(isolation)
    run = (reference or reference_folder(profile)).absolute()
    memory_mib = memory_for(min(workers, len(chosen)))
    chosen_seed = seed_for(out) if seed is None else seed
    wanted = Session(
        out.absolute(), profile, run, chosen_seed, isolation, memory_mib, workers, serves
    )
    session = Session.begin(wanted, rubric, resume or bool(only))
    for line in found.left_out:
        console.print(f"[yellow]{escape(line)}[/]")
    if isolation == "none":
        console.print("[yellow]no isolation:[/] student code runs as you, with all your files")
    fetch()
    servers = [path for path in (cache_dir() / SERVER).glob("*") if path.is_dir()]
    for folder in (cache_dir() / FOLDER, *servers, Path(labkit.__file__).parent):
        require_readable(confinement, folder)
    if reference is None:
        _ensure_reference(run, profile)
    about = f"{len(chosen)} submissions, profile {profile}, {confinement}, {serves}, into {out}"
    console.print(escape(about))
    try:
        found_people = {s.student: people.find(s.student, s.user) for s in chosen}
        names = {student: person.shown for student, person in found_people.items() if person}
        with _ClassDisplay(names) as display:
            graded = grade_class(session, chosen, workers, scheduler, display.event)
    except KeyboardInterrupt:
        done = len(session.result_files())
        console.print(
            f"[yellow]stopped:[/] {done} of {len(chosen)} graded; go on with --resume, which "
            "also writes the pages"
        )
        raise
    gone = [] if only else session.keep_only(source.student for source in found.sources)
    if gone:
        who = escape(", ".join(gone))
        console.print(f"[yellow]no longer handed in, put into removed/:[/] {who}")
    results = session.results() if only else graded
    for path in publish(session, results, roster):
        console.print(escape(str(path)))
    results = session.results()  # with the roster's names
    status = _summarize(results)
    if people and not only:
        _tell_who_is_missing(people, results)
    if _tell_what_was_left(found, results) and not leave_out:
        status = 2
    if status:
        raise typer.Exit(status)


@app.command()
def regrade(
    grades: Annotated[Path, typer.Argument(help="The folder of a grading.")],
    rubric: Annotated[Path | None, typer.Option(help="A new rubric; else the one there.")] = None,
    measure: Annotated[bool, typer.Option(help="Measure the kept files again.")] = False,
    roster: Annotated[Path | None, typer.Option(help="CSV: student, name, email, id.")] = None,
) -> None:
    """Give points again after a change of rubric or checks, without running student notebooks."""
    from labkit.grading.publish import publish
    from labkit.grading.regrade import regrade as give_points_again
    from labkit.grading.roster import read_roster
    from labkit.grading.session import Session

    session = Session.load(grades.absolute())
    if roster is not None:
        with _wrong_usage():
            _tell_of(read_roster(roster, session.rubric.title), session.rubric.maximum)

    def show(result: Result, measured: bool) -> None:
        how = "measured again" if measured else "from stored measurements"
        console.print(f"{escape(result.shown)}: {_points(result)}, {how}")

    session, results = give_points_again(session, rubric, measure, show)
    for path in publish(session, results, roster):
        console.print(escape(str(path)))
    if status := _summarize(session.results()):
        raise typer.Exit(status)


def _tell_of(people: "Roster", points: float) -> None:
    """Say what is not clear in a roster, and whether the platform counts in other points."""
    if people.note:
        console.print(f"[yellow]{escape(people.note)}[/]")
    if people.maximum not in (None, points):
        console.print(
            f"[yellow]the platform gives {people.maximum:g} points at most and the rubric "
            f"{points:g}:[/] set the assignment's points there to {points:g} before the import, or "
            "give a rubric of as many"
        )


def _tell_who_is_missing(people: "Roster", results: list[Result]) -> None:
    """Say whose submission and which person on the roster do not belong together."""
    twice = people.twice(results)
    for what, names in (
        ("not on the roster:", [r.student for r in results if not people.of(r)]),
        ("several submissions of one person, of which none goes to the platform:", [*twice]),
        ("on the roster, and handed in nothing:",
         [person.shown for person in people.absent(results) if not person.exempt]),
    ):  # fmt: skip
        if names:
            console.print(f"[yellow]{what}[/] {escape(_some(names))}")


def _tell_what_was_left(found: "Found", results: list[Result]) -> bool:
    """Say which work may be in archives and files that nobody opened; return whether any is."""
    from labkit.grading.submission import unopened

    closed = [result.shown for result in results if unopened(result.notes)]
    if closed:
        console.print(
            f"[red]not opened:[/] archives in {len(closed)} submissions "
            f"({escape(_some(closed))}): see the notes in gradebook.csv, unpack "
            "them there and go on with --resume"
        )
    if found.notebooks:
        console.print(
            f"[red]left out:[/] {len(found.notebooks)} notebooks or archives that are nobody's "
            f"({escape(_some(found.notebooks))}): put each into a folder of its student, or away"
        )
    return bool(closed or found.notebooks)


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _chosen(sources: "list[Source]", only: list[str]) -> "list[Source]":
    """Return the submissions of the students who are named; all where nobody is.

    Raises:
        UsageError: one of them has none.
    """
    names = {unicodedata.normalize("NFC", name) for name in only}
    if unknown := names - {source.student for source in sources}:
        known = ", ".join(source.student for source in sources)
        raise UsageError(f"got --only {', '.join(sorted(unknown))}, expected one of: {known}")
    return [source for source in sources if not names or source.student in names]


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Report whatever is wrong with what a command was given as wrong usage: exit status 2."""
    try:
        yield
    except LabError as error:
        raise UsageError(str(error)) from error


def _ensure_reference(run: Path, profile: str) -> None:
    """Use the grader's own reference run, or make it where there is none."""
    from labkit.chain import STAGES, Progress, StageResult
    from labkit.grading.carry_forward import NoReference, Reference, make_reference

    try:
        Reference.of(run, profile)
        return
    except NoReference:
        what = f"reference run: the solved notebooks, profile {profile}, once, into {run}"
        console.print(escape(what))

    def show(result: StageResult) -> None:
        number = STAGES.index(result.stage) + 1
        line = f"[{number}/{len(STAGES)}] {result.stage:14} {result.status} {result.seconds:.0f} s"
        console.print(escape(line))

    def progress(running: Progress) -> None:
        del running

    make_reference(run, profile, progress, show)
    Reference.of(run, profile)


class _ClassDisplay:
    """Progress of a class: a live table on a terminal, a line per event elsewhere.

    Args:
        names: Submission → the name that the roster has.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._steps: dict[str, str] = {}
        self._live = Live(console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "_ClassDisplay":
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if console.is_terminal:
            self._live.stop()

    def _shown(self, student: str) -> str:
        return self._names.get(student, student)

    def event(self, event: "Event") -> None:
        """Show what happened."""
        if event.result is not None:
            kept = " (graded earlier)" if event.kind == "kept" else ""
            line = f"[{event.done}/{event.total}] {self._shown(event.result.student):20} "
            console.print(escape(line) + describe(event.result) + kept)
        elif event.running is not None and not console.is_terminal:
            for student, (step, seconds) in event.running.items():
                if self._steps.get(student) != step:
                    self._steps[student] = step
                    console.print(
                        escape(f"      {self._shown(student):20} {step} after {seconds:.0f} s")
                    )
        elif event.running is not None:
            table = Table(show_edge=False, header_style="bold")
            for column in ("student", "step", "time"):
                table.add_column(column)
            for student, (step, seconds) in list(event.running.items())[:SHOWN]:
                table.add_row(escape(self._shown(student)), step, f"{seconds:.0f} s")
            table.caption = f"{event.done} of {event.total} graded"
            self._live.update(table)


def describe(result: Result) -> str:
    """Return a result as a line: points, time, and every verdict that is not `ok`."""
    if result.status != GRADED:
        return f"[red]{result.status}[/]: {escape(result.reason)}"
    numbers: dict[str, list[str]] = {}
    for record in result.stages:
        if record.verdict != OK:
            numbers.setdefault(record.verdict, []).append(record.stage[:2])
    verdicts = "".join(f"; {verdict} {', '.join(n)}" for verdict, n in numbers.items())
    return f"{_points(result)} in {result.timings.get('total', 0.0):.0f} s{verdicts}"


def _points(result: Result) -> str:
    return f"{result.points:g} of {result.maximum:g} points"


def _summarize(results: list[Result]) -> int:
    """Say how many are graded, and who is not; return the exit status."""
    bad = [result.shown for result in results if result.status != GRADED]
    console.print(f"[green]{len(results) - len(bad)} of {len(results)} graded[/]")
    if bad:
        who = escape(", ".join(bad))
        console.print(f"[yellow]not graded, and left empty for the platforms:[/] {who}")
    return 1 if bad else 0
