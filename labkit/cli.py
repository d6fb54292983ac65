"""The command line: parse, call the library, print; exit 0 done, 1 not done, 2 wrong usage."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.errors import LabError, UsageError
from labkit.operate.commands import app as operate_app
from labkit.server.commands import app as triton_app
from labkit.steps_display import StepsDisplay

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
    from labkit.repository_safety import own_repository
    from labkit.workspace import Workspace

    preset(profile)  # a wrong name is said before anything is downloaded
    stages = stages_from(first)
    fetch()  # before the clock of the first notebook starts
    workspace = Workspace.at(out.absolute() if out else Path("runs") / profile)
    console.print(f"{len(stages)} notebooks, profile {profile}, into {workspace.root}")
    with StepsDisplay(console, len(stages), 14, HEARTBEAT_S) as display:
        results = run_chain(
            workspace,
            profile,
            stages,
            on_progress=lambda now: display.say(now.stage, now.line),
            on_result=lambda result: display.end(result.stage, result.status, result.seconds),
        )
    last = results[-1]
    total = sum(result.seconds for result in results)
    if last.status != PASSED:
        verdict, advice = f"{last.stage} failed[/] after {total:.0f} s:", "mend it, then"
        if last.timed_out:
            verdict, advice = f"{last.stage}[/]", "if the machine was busy,"
        console.print(
            f"[red]{verdict} {escape(last.reason)}\n"
            f"  executed notebook: {last.notebook}\n  log: {last.log}\n"
            f"  {advice} go on with: {_labkit()} run --profile {profile} --from {last.stage[:2]}"
            + (f" --out {out}" if out else "")
        )
        raise typer.Exit(1)
    console.print(f"[green]{len(results)} notebooks passed[/] in {total:.0f} s")
    if STAGES[-1] == last.stage:
        # Notebook 10 puts a Python model there; elsewhere a repository counts as a stranger's.
        allow = "" if own_repository(workspace.repository) else " --allow-python-models"
        console.print(
            f"report: {workspace.path('report.html')}\n"
            f"models: {workspace.repository}\nrecord: {workspace.root / 'run.json'}\n\n"
            f"next, look:    open {workspace.path('report.html')}\n"
            f"      serve:   {_labkit()} serve {os.path.relpath(workspace.repository)}{allow}\n"
            "      step on: make jupyter"
        )


def _labkit() -> str:
    """Return this command as a person types it from the current folder."""
    return os.path.relpath(Path(sys.executable).with_name("labkit"))


AllowPython = Annotated[
    bool,
    typer.Option(
        "--allow-python-models",
        help="Run the Python models of somebody else's repository: programs, with all your rights.",
    ),
]


@app.command()
def serve(
    repository: Annotated[
        Path | None, typer.Argument(help="Model repository; the newest of the lab's if none.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Serve the models of runs/NAME.")] = None,
    http_port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 8002,
    runtime: Annotated[str, typer.Option(help="auto, native, stand-in or container")] = "auto",
    model: Annotated[
        list[str] | None, typer.Option(help="Serve only this model; may be repeated.")
    ] = None,
    config_name: Annotated[
        str | None, typer.Option(help="Prefer configs/NAME.pbtxt, such as `tuned`.")
    ] = None,
    allow_python_models: AllowPython = False,
) -> None:
    """Serve a model repository with Triton until Ctrl-C."""
    from labkit.server import TritonServer

    # A shell that starts this in the background, without job control, has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = _chosen_repository(repository, run)
    server = TritonServer(
        folder,
        http_port=http_port or None,
        grpc_port=grpc_port or None,
        metrics_port=metrics_port or None,
        models=model or _servable(folder),
        runtime=runtime,
        config_name=config_name,
        allow_python_models=allow_python_models,
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


@app.command()
def demo(
    repository: Annotated[
        Path | None, typer.Argument(help="Model repository; the newest of the lab's if none.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Serve the models of runs/NAME.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 chooses a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    allow_python_models: AllowPython = False,
) -> None:
    """Open a page on which a person drops a picture and sees its class, until Ctrl-C."""
    import webbrowser

    from labkit.demo import MODELS, DemoServer, require_pipeline
    from labkit.server import TritonServer

    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = _chosen_repository(repository, run)
    require_pipeline(folder)
    triton = TritonServer(folder, models=MODELS, allow_python_models=allow_python_models)
    with console.status("starting Triton …"):
        triton.start()
    try:
        with DemoServer(triton.http, port) as page:
            console.print(
                f"[green]ready:[/] http://{page.address}  (runtime {triton.runtime}, log "
                f"{triton.log_path})\nstop with Ctrl-C"
            )
            if browser:
                webbrowser.open(f"http://{page.address}")
            page.serve_forever()
    finally:
        triton.stop()


def _chosen_repository(repository: Path | None, run: str | None) -> Path:
    """Return the repository that was named, by its path or by its run; else the lab's newest."""
    if repository is not None and run is not None:
        raise UsageError(f"got {repository} and --run {run}, expected one of them")
    return repository or _lab_repository(run)


def _lab_repository(run: str | None) -> Path:
    """Return the repository of a run, or the newest of those in the lab; say which it is.

    The newest by its model files: the one of stepping by hand, or of a run.
    """
    from labkit.workspace import project_root

    root = project_root()
    if run is not None:
        return root / "runs" / run / "model_repository"
    folders = [root / "model_repository", *root.glob("runs/*/model_repository")]
    newest = {
        folder: max((file.stat().st_mtime for file in folder.glob("*/[0-9]*/*")), default=0.0)
        for folder in folders
    }
    chosen = max(folders, key=lambda folder: newest[folder])
    if newest[chosen]:
        console.print(f"serving the newest models, of {chosen.relative_to(root)}")
    return chosen


def _servable(repository: Path) -> list[str]:
    """Return the models of a repository that have a version to serve; name those left out."""
    from labkit.repository_safety import is_model

    if not repository.is_dir():
        raise LabError(f"got {repository}, which is no folder; expected a model repository")
    models: list[str] = []
    left_out: list[str] = []
    for folder in sorted(filter(is_model, repository.iterdir())):
        has_version = any(entry.name.isdecimal() for entry in folder.iterdir() if entry.is_dir())
        (models if has_version else left_out).append(folder.name)
    if left_out:
        console.print(f"[yellow]left out, no model file yet:[/] {', '.join(left_out)}")
    if not models:
        raise LabError(
            f"{repository} has no model file to serve; run notebooks 01 to 05, or `make lab` and "
            "then `labkit serve`"
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
    allow_python_models: AllowPython = False,
) -> None:
    """Hold a model repository against its files; exit 1 when something is wrong."""
    from labkit.repository_check import ERROR, check_repository
    from labkit.workspace import project_root

    folder = repository or project_root() / "model_repository"
    findings = check_repository(folder, model, allow_python_models=allow_python_models)
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


app.add_typer(triton_app, name="triton")
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
