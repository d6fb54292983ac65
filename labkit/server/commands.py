"""The commands `labkit triton …`. Thin: parse, call the library, print."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(help="The Triton server in the cache: what is there, fetch it, build for it.")
console = Console(soft_wrap=True, highlight=False)


@app.callback(invoke_without_command=True)
def triton(context: typer.Context) -> None:
    """Say which Triton serves here, and from where."""
    if context.invoked_subcommand:
        return
    from labkit.server import choose_runtime, find_triton
    from labkit.server.fetch import SERVER_VERSION, runtime_folder, unsupported

    binary = find_triton()
    problem = unsupported() or (binary.problem if binary else "not fetched: labkit triton fetch")
    console.print(f"server    {SERVER_VERSION}, {escape(problem or str(runtime_folder()))}")
    if binary:
        stub = "built here" if binary.stub_is_built else "the wheel's"
        if not binary.stub_fits_numpy:
            stub += ", older than numpy 2: by DLPack, and without strings"
        console.print(f"stub      {stub}: {escape(str(binary.stub))}")
        native = binary.native or "not built: labkit triton build (needs g++)"
        console.print(f"native    {escape(str(native))}")
        console.print(f"libpython {escape(str(binary.libpython or 'none yet'))}")
    console.print(f"runtime   {choose_runtime()}")


@app.command()
def fetch() -> None:
    """Fetch the server (55 MB) into the cache, and libpython where the system lacks it."""
    from labkit.server.find import require_triton

    binary = require_triton()
    console.print(f"Triton {binary.version} is in {escape(str(binary.executable.parents[2]))}")


@app.command()
def build(
    if_possible: Annotated[
        bool,
        typer.Option(help="Where it cannot be built, say so in a line, and exit with 0."),
    ] = False,
) -> None:
    """Compile Triton's own backends and its Python stub, for the libraries at hand."""
    from labkit.server.errors import BuildError
    from labkit.server.native.build import build_all, cannot_build

    if if_possible and (why := cannot_build()):
        console.print(_not_built(why))
        return
    try:
        with console.status("compiling …") as status:
            lines = build_all(
                (lambda line: status.update(escape(line)))
                if console.is_terminal
                else (lambda line: console.print(escape(line)))
            )
    except BuildError as error:
        if not if_possible:
            raise
        console.print(_not_built(str(error)))
        return
    for line in lines:
        console.print(escape(line))


def _not_built(why: str) -> str:
    """Return the line for a build that is not whole."""
    from labkit.server.native.built import built_backends

    if built_backends():
        return f"Python stub: not built, the wheel's serves ({escape(why)})"
    return f"native backends: not built, the stand-ins serve ({escape(why)})"
