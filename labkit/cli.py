"""The command line: parse, call the library, print; exit 0 done, 1 not done, 2 wrong usage."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from labkit.errors import LabError, UsageError
from labkit.operate.commands import app as operate_app

if TYPE_CHECKING:
    from labkit.chain import Progress, StageResult

app = typer.Typer(
    help="The model-deployment lab: train, export, quantize, serve, measure, tune, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True, highlight=False)
HEARTBEAT_S = 30.0  # how often a running notebook is heard of where there is no terminal


@app.command()
def doctor() -> None:
    """Say whether this machine can run the lab, and what to do where it cannot."""
    from labkit.doctor import run_checks

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
    table = Table(show_edge=False, header_style="bold")
    for column in ("check", "status", "found", "what to do"):
        table.add_column(column, overflow="fold")
    checks = run_checks()
    for check in checks:
        table.add_row(check.name, marks[check.status], escape(check.detail), escape(check.advice))
    console.print(table)
    if any(check.status == "missing" for check in checks):
        console.print("\n[red]The lab cannot run yet:[/] see the lines marked missing.")
        raise typer.Exit(1)
    console.print("\n[green]The lab can run here.[/]")


@app.command()
def data() -> None:
    """Fetch CIFAR-10 into the user's cache and verify every byte."""
    from labkit.data import load_cifar10
    from labkit.download import fetch

    folder = fetch()
    start = time.perf_counter()
    cifar = load_cifar10(folder)
    seconds = time.perf_counter() - start
    console.print(
        f"CIFAR-10 is in {folder}: {len(cifar.train.labels):,} training and "
        f"{len(cifar.test.labels):,} test images, checksums verified, loaded in {seconds:.2f} s"
    )


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="smoke, standard or full")] = "standard",
    first: Annotated[str | None, typer.Option("--from", help="Start at this notebook.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/PROFILE when left.")
    ] = None,
) -> None:
    """Run the notebooks headless, in order, each judged by what it made."""
    from labkit.chain import PASSED, STAGES, run_chain, stages_from
    from labkit.download import fetch
    from labkit.profiles import preset
    from labkit.workspace import Workspace

    preset(profile)  # a wrong name is said before anything is downloaded
    stages = stages_from(first)
    fetch()  # before the clock of the first notebook starts
    workspace = Workspace.at(out.absolute() if out else Path("runs") / profile)
    console.print(f"{len(stages)} notebooks, profile {profile}, into {workspace.root}")
    with _ChainDisplay(len(stages)) as display:
        results = run_chain(
            workspace,
            profile,
            stages,
            on_progress=display.progress,
            on_result=display.result,
        )
    last = results[-1]
    total = sum(result.seconds for result in results)
    if last.status != PASSED:
        console.print(
            f"[red]{last.stage} failed[/] after {total:.0f} s: {escape(last.reason)}\n"
            f"  executed notebook: {last.notebook}\n  log: {last.log}\n"
            f"  mend it, then go on with: labkit run --profile {profile} --from {last.stage[:2]}"
            + (f" --out {out}" if out else "")
        )
        raise typer.Exit(1)
    console.print(f"[green]{len(results)} notebooks passed[/] in {total:.0f} s")
    if STAGES[-1] == last.stage:
        console.print(
            f"report: {workspace.path('report.html')}\n"
            f"models: {workspace.repository}\nrecord: {workspace.root / 'run.json'}"
        )


class _ChainDisplay:
    """Progress of the chain: a live line on a terminal, a line per event elsewhere."""

    def __init__(self, total: int) -> None:
        self._live = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[line]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("starting", total=total, line="")
        self._total = total
        self._done = 0
        self._next_beat_s = 0.0
        self._stage = ""

    def __enter__(self) -> "_ChainDisplay":
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def progress(self, progress: "Progress") -> None:
        """Show what the running notebook last said."""
        if progress.stage != self._stage:
            self._stage, self._next_beat_s = progress.stage, HEARTBEAT_S
            self._live.reset(self._task)
        title = f"[{self._done + 1}/{self._total}] {progress.stage}"
        self._live.update(self._task, description=title, line=escape(progress.line))
        if not console.is_terminal and progress.seconds >= self._next_beat_s:
            self._next_beat_s += HEARTBEAT_S
            console.print(f"{title} {progress.seconds:4.0f} s  {escape(progress.line)}")

    def result(self, result: "StageResult") -> None:
        """Show the verdict on a notebook."""
        from labkit.chain import PASSED

        self._done += 1
        colour = "green" if result.status == PASSED else "red"
        console.print(
            f"[{self._done}/{self._total}] {result.stage:14} "
            f"[{colour}]{result.status}[/] {result.seconds:7.1f} s"
        )


@app.command()
def serve(
    repository: Annotated[
        Path | None, typer.Argument(help="Model repository; the project's own when left out.")
    ] = None,
    http_port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 8002,
    runtime: Annotated[str, typer.Option(help="auto, wheel or container")] = "auto",
    model: Annotated[
        list[str] | None, typer.Option(help="Serve only this model; may be repeated.")
    ] = None,
    config_name: Annotated[
        str | None, typer.Option(help="Prefer configs/NAME.pbtxt, such as `tuned`.")
    ] = None,
) -> None:
    """Serve a model repository with Triton until Ctrl-C."""
    from labkit.server import TritonServer
    from labkit.workspace import project_root

    folder = repository or project_root() / "model_repository"
    server = TritonServer(
        folder,
        http_port=http_port or None,
        grpc_port=grpc_port or None,
        metrics_port=metrics_port or None,
        models=model or _servable(folder),
        runtime=runtime,
        config_name=config_name,
    )
    with console.status("starting Triton …"):
        server.start()
    try:
        console.print(
            f"[green]ready:[/] {len(server.models or [])} models, runtime {server.runtime}\n"
            f"  HTTP     http://{server.http}\n  gRPC     {server.grpc}\n"
            f"  metrics  http://{server.metrics}/metrics\n  log      {server.log_path}\n"
            "stop with Ctrl-C"
        )
        server.wait()
    finally:
        server.stop()


def _servable(repository: Path) -> list[str]:
    """Return the models of a repository that have a version to serve; name those left out."""
    if not repository.is_dir():
        raise LabError(f"got {repository}, which is no folder; expected a model repository")
    models: list[str] = []
    left_out: list[str] = []
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        has_version = any(entry.name.isdecimal() for entry in folder.iterdir() if entry.is_dir())
        (models if has_version else left_out).append(folder.name)
    if left_out:
        console.print(f"[yellow]left out, no model file yet:[/] {', '.join(left_out)}")
    if not models:
        raise LabError(
            f"{repository} has no model file to serve; run notebooks 01 to 05, or `make lab` and "
            "then `labkit serve runs/standard/model_repository`"
        )
    return models


@app.command()
def check(
    repository: Annotated[
        Path | None, typer.Argument(help="Model repository; the project's own when left out.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Check only this model; may be repeated.")
    ] = None,
) -> None:
    """Hold a model repository against its files; exit 1 when something is wrong."""
    from labkit.repository_check import ERROR, check_repository
    from labkit.workspace import project_root

    folder = repository or project_root() / "model_repository"
    findings = check_repository(folder, model)
    for finding in findings:
        colour = "red" if finding.severity == ERROR else "yellow"
        console.print(f"[{colour}]{finding.severity}[/] {escape(str(finding))}")
    errors = sum(finding.severity == ERROR for finding in findings)
    console.print(f"{folder}: {errors} errors, {len(findings) - errors} warnings")
    if errors:
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/standard when left.")
    ] = None,
) -> None:
    """Build report.json and report.html again from the evidence of a run."""
    from labkit.report import write_report
    from labkit.workspace import Workspace, project_root

    folder = out.absolute() if out else project_root() / "runs" / "standard"
    if not (folder / "manifest.json").is_file():
        raise LabError(f"{folder} is not a run: it has no manifest.json; `labkit run` makes one")
    for path in write_report(Workspace.at(folder), made_by="08_report"):
        console.print(str(path))


@app.command()
def lab(
    port: Annotated[int | None, typer.Option(help="Port of JupyterLab; free when left.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open JupyterLab on the notebooks."""
    from labkit.jupyter import start_lab
    from labkit.workspace import project_root

    raise typer.Exit(start_lab(project_root(), port=port, open_browser=browser))


app.registered_commands += operate_app.registered_commands

# The student edition comes without the grader.
if (Path(__file__).parent / "grading").is_dir():
    from labkit.grading.commands import app as grading_app

    app.registered_commands += grading_app.registered_commands


def main() -> None:
    """Run the command line; an expected error is one red line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except (LabError, OSError) as error:  # OSError: a full disk, a folder that is not writable
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
