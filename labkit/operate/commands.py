"""The command `labkit drills`. Thin: parse, call the library, print."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from labkit.steps_display import StepsDisplay

if TYPE_CHECKING:
    from labkit.operate.drills import Result

app = typer.Typer()
console = Console(soft_wrap=True, highlight=False)


@app.command()
def drills(
    names: Annotated[list[str] | None, typer.Argument(help="Drills; all if none.")] = None,
    short: Annotated[bool, typer.Option("--short", help="Fewer requests and seconds.")] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Run whose model is served; the newest complete one if none."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for drills.json and the page.")
    ] = (Path("runs/drills")),
    list_: Annotated[bool, typer.Option("--list", help="Say which drills there are.")] = False,
) -> None:
    """Break a real deployment on purpose; exit 1 when a drill does not keep to its limits."""
    from labkit.operate.drills import DRILLS, DrillEnvironment, find_drills, perform, record
    from labkit.operate.drills.page import write_page

    if list_:
        for drill in DRILLS:
            console.print(f"{drill.name:18} {drill.title}")
        return
    chosen = find_drills(names or ())
    model = _model(run)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    shown_run = model.parents[1].name if model.parent.name == "model_repository" else model.name
    console.print(f"{len(chosen)} drills with {model.name} of {shown_run}, into {escape(str(out))}")
    results: list[Result] = []
    with StepsDisplay(console, len(chosen), 18) as display:
        for drill in chosen:
            say = partial(display.say, drill.name)
            say("")
            result = perform(drill, DrillEnvironment(model, out / "work", short, say=say))
            results.append(result)
            display.end(result.name, result.status, result.took_s, result.summary)
            kept = record.save(out / "drills.json", results, shown_run, short)
    page = write_page(out / "drills.html", kept)
    console.print(f"{escape(str(out / 'drills.json'))}\n{escape(str(page))}")
    if {result.status for result in results} in ({"not measured"}, set()):
        console.print("[red]nothing was measured:[/] each row says why")
        raise typer.Exit(1)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _model(run: Path | None) -> Path:
    """Return the model to serve; where there is no run at all, make one first."""
    from labkit.chain import PASSED, run_chain
    from labkit.download import fetch
    from labkit.operate.drills import NoRun, find_model
    from labkit.workspace import Workspace, project_root

    try:
        return find_model(run)
    except NoRun:
        if run is not None:
            raise
    smoke = project_root() / "runs" / "smoke"
    console.print("no run has a model to serve yet: running the notebooks, profile smoke, once")
    fetch()
    last = run_chain(
        Workspace.at(smoke),
        "smoke",
        on_result=lambda result: console.print(f"  {result.stage:14} {result.status}"),
    )[-1]
    if last.status != PASSED:
        raise NoRun(f"the run broke off in {last.stage}: {last.reason}")
    return find_model(smoke)
