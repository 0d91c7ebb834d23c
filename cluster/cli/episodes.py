"""The commands of `trialrun episodes`."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.cli.arguments import TrustOption
from cluster.cli.command_line import JsonOption, report, stack
from cluster.cli.mirrors import Needs, local_run
from cluster.cli.runs import RunArgument
from envs.errors import ConfigError
from envs.late_imports import import_late
from rollout.episode import Outcome

WhereOption = Annotated[
    str,
    typer.Option(
        "--where",
        "-w",
        metavar="FILTER",
        help="Only episodes that match this filter, such as 'reward<0.2 and "
        'tool("search").errors>0\'; docs/dashboard.md has the language.',
        show_default=False,
    ),
]


class _ShowByDefault(TyperGroup):
    """A group whose command `show` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in (*self.commands, "--help")
        return super().parse_args(ctx, args if named else ["show", *args])


episodes = typer.Typer(
    cls=_ShowByDefault,
    no_args_is_help=True,
    help="List, show, compare, search, follow, export or replay the episodes of a run.\n\n"
    "`trialrun episodes RUN` is short for `trialrun episodes show RUN`.",
    epilog="Example: [bold]trialrun episodes runs/demo/train g000003-02[/]",
)


@episodes.command(
    epilog="Example: [bold]trialrun episodes replay runs/catalog g000003-02[/], of a run that was "
    "made with [bold]trialrun train catalog tools.record=true[/]"
)
def replay(
    run: RunArgument,
    episode: Annotated[
        str | None, typer.Argument(help="Replay this episode only (its id, or a unique prefix).")
    ] = None,
    traffic: Annotated[
        Path | None,
        typer.Option(help="Folder of recorded tool traffic. Default: the run's own."),
    ] = None,
    trust_run: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replay episodes from their tokens and recorded tool results, and report differences.

    Runs neither the model nor tools, and asks no server: tools and their answers are those of the
    record. The run must have been made with tools.record=true. Exit code 0 if all are equal, 1 if
    one differs.
    """
    path = local_run(run, Needs.ALL)
    replay_run = stack("replay.replay_episodes").replay_run
    replayed = asyncio.run(replay_run(path, episode, traffic, trusted=trust_run))
    report(replayed.to_json(), as_json=as_json)
    raise typer.Exit(1 if replayed.different else 0)


@episodes.command(epilog="Example: [bold]trialrun episodes runs/demo/train g000003-02[/]")
def show(
    run: RunArgument,
    episode: Annotated[
        str | None,
        typer.Argument(help="Show this episode: its id, a unique prefix, or its task's name."),
    ] = None,
    outcome: Annotated[
        Outcome | None, typer.Option(help="List only episodes with this outcome.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most this many, the newest.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the episodes of a run, or show one as a transcript (with --json: as one JSON object)."""
    path = local_run(run, Needs.EPISODES)
    views = stack("cli.episode_views")
    if episode is not None:
        views.show_episode(path, episode, as_json=as_json)
    else:
        views.list_episodes(path, outcome or "", limit, as_json=as_json)


@episodes.command(
    "ls", epilog="Example: [bold]trialrun episodes ls runs/first -w 'outcome=truncated'[/]"
)
def list_them(
    run: RunArgument,
    where: WhereOption = "",
    sort: Annotated[
        str, typer.Option(help="A field of the filter language; with `-` the largest first.")
    ] = "-uid",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the episodes that match a filter, the newest first, with reward, calls and flags."""
    path = local_run(run, Needs.EPISODES)
    _terminal().list_episodes(path, where, sort, limit, as_json=as_json)


@episodes.command(
    epilog="Example: [bold]trialrun episodes diff runs/first g000003-01 g000003-02[/]"
)
def diff(
    run: RunArgument,
    chosen: Annotated[
        list[str],
        typer.Argument(
            metavar="EPISODE EPISODE...", help="Ids, or unique prefixes.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare two or more episodes: where they part, and what that changed in reward and calls."""
    if len(chosen) < 2:
        raise ConfigError(f"expected two or more episodes, found {len(chosen)}")
    _terminal().diff_episodes(local_run(run, Needs.EPISODES), chosen, as_json=as_json)


@episodes.command(epilog="Example: [bold]trialrun episodes grep runs/first 'connection reset'[/]")
def grep(
    run: RunArgument,
    text: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    where: WhereOption = "",
    pattern: Annotated[
        bool, typer.Option("--regex", "-E", help="The text is a regular expression (RE2).")
    ] = False,
    case: Annotated[bool, typer.Option("--case", help="Capitals matter.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Hits after which it ends.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per hit.")] = False,
) -> None:
    """Search questions, turns, arguments, results, answers and errors, the newest first."""
    path, terminal = local_run(run, Needs.EPISODES), _terminal()
    wanted = terminal.Wanted(text=text, pattern=pattern, ignore_case=not case, limit=limit)
    terminal.grep_episodes(path, wanted, where, as_json=as_json)


@episodes.command(epilog="Example: [bold]trialrun episodes tail runs/first -f -w 'reward>0'[/]")
def tail(
    run: RunArgument,
    where: WhereOption = "",
    count: Annotated[int, typer.Option("--lines", "-n", min=1, help="So many at first.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print those that come, until the job ends.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per episode.")
    ] = False,
) -> None:
    """Print the newest episodes that match, one a line, the newest last."""
    path = local_run(run, Needs.EPISODES)
    _terminal().tail_episodes(path, where, count, follow=follow, as_json=as_json)


@episodes.command(epilog="Example: [bold]trialrun episodes failures runs/first[/]")
def failures(run: RunArgument, where: WhereOption = "", as_json: JsonOption = False) -> None:
    """Sum up what failed, was dropped or retried: by reason, with a count and an example."""
    path = local_run(run, Needs.EPISODES)
    _terminal().show_failures(path, where, as_json=as_json)


@episodes.command(
    epilog="Example: [bold]trialrun episodes export runs/first good.parquet -w 'reward>0.9'[/]"
)
def export(
    run: RunArgument,
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="New file, .parquet or .jsonl.", show_default=False),
    ],
    where: WhereOption = "",
    rows: Annotated[
        bool, typer.Option("--rows", help="The rows of the table instead of whole episodes.")
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="In .jsonl also the columns of tokens.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the episodes that match to a file."""
    path, terminal = local_run(run, Needs.EPISODES), _terminal()
    wanted = terminal.Export(filter_text=where, whole=not rows, tokens=tokens)
    size = terminal.export_episodes(path, target, wanted)
    report({"file": str(target.absolute()), "bytes": size}, as_json=as_json)


def _terminal() -> Any:
    """Import what reads the index of a run; its packages are an extra."""
    try:
        return import_late("cluster.dashboard.terminal.commands")
    except ImportError as error:
        raise ConfigError(
            f"the index of runs is not installed ({error}): type pip install 'trialrun[dashboard]'"
        ) from error
