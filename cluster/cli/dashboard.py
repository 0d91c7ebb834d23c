"""The commands of `trialrun dashboard`: serve one, or write a snapshot."""

import os
from getpass import getuser
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.cli.command_line import JsonOption, report, version
from cluster.cli.episodes import WhereOption
from cluster.cli.mirrors import Needs, local_run
from cluster.cli.runs import RunArgument
from envs.errors import ConfigError
from envs.late_imports import import_late


class _ServeByDefault(TyperGroup):
    """A group whose command `serve` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else ["serve", *args])


app = typer.Typer(
    cls=_ServeByDefault,
    help="Serve a dashboard over run directories, or write a snapshot of a run to a file.",
)


@app.command(
    epilog="Example: [bold]trialrun dashboard runs[/], or without a run "
    "[bold]trialrun dashboard --demo[/]. Its command `bundle` writes a snapshot to share."
)
def serve(
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
    server = _part("serve")
    wanted = server.Wanted(
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
    server.run_dashboard(wanted)


@app.command(
    epilog="Example: [bold]trialrun dashboard bundle runs/first -o first.html -w 'reward<0.2'[/]"
)
def bundle(
    run: RunArgument,
    target: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR|FILE.html",
            help="New file, or new folder, which also gets the table as episodes.parquet.",
            show_default=False,
        ),
    ],
    where: WhereOption = "",
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="At most so many episodes, the newest.")
    ] = 200,
    as_json: JsonOption = False,
) -> None:
    """Write a snapshot of a run with chosen episodes, to share: it opens offline, from a file.

    It holds all texts of these episodes, its recipe and its figures: look at what you share.
    """
    writer = _part("bundle.write")
    path = local_run(run, Needs.ALL)
    wanted = writer.Bundle(path=path, target=target, filter_text=where, limit=limit)
    report(writer.write_bundle(wanted, os.environ), as_json=as_json)


def _part(module: str) -> Any:
    """Import a module of the dashboard; its packages are an extra."""
    try:
        return import_late(f"cluster.dashboard.{module}")
    except ImportError as error:
        raise ConfigError(
            f"the dashboard is not installed ({error}): type pip install 'trialrun[dashboard]'"
        ) from error
