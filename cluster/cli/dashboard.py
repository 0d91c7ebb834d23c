"""The command `dashboard`."""

import os
from getpass import getuser
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.command_line import JsonOption, version
from envs.errors import ConfigError
from envs.late_imports import import_late

app = typer.Typer()


@app.command(
    epilog="Example: [bold]trialrun dashboard runs[/], or without a run "
    "[bold]trialrun dashboard --demo[/]"
)
def dashboard(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR]...", help="Run directories, or folders of runs. Default: runs."
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Show the recorded runs that trialrun ships.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; off loopback it needs a token in TRIALRUN_DASHBOARD_TOKEN "
            "and an --origin."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port. Default: 8365, or the next that is free."),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Address that browsers use, as behind a proxy; repeatable."),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse steering and writing to everyone.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of the index. Default: trialrun/dashboard in XDG_CACHE_HOME."),
    ] = None,
    memory: Annotated[
        int, typer.Option(min=64, help="Memory of the index's database, in MiB.")
    ] = 256,
    as_json: JsonOption = False,
) -> None:
    """Serve a dashboard over run directories, of runs that go on or have ended.

    It only reads the directories, apart from requests that an operator sends to a job; ending it
    ends no run. With --json the address is printed as one JSON object.
    """
    serve = _server()
    wanted = serve.Wanted(
        roots=tuple(directories or ()),
        host=host,
        port=port,
        origins=tuple(origin or ()),
        demo=demo,
        read_only=read_only,
        cache=cache,
        memory_mb=memory,
        as_json=as_json,
        environ=dict(os.environ),
        user=getuser(),
        version=version(),
    )
    serve.run_dashboard(wanted)


def _server() -> Any:
    """Import the server; its packages are an extra."""
    try:
        return import_late("cluster.dashboard.serve")
    except ImportError as error:
        raise ConfigError(
            f"the dashboard is not installed ({error}): type pip install 'trialrun[dashboard]'"
        ) from error
