"""Commands that read run directories, whether their run is alive, finished or dead."""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from getpass import getuser
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from cluster.cli.command_line import JsonOption, report, stack
from envs.errors import ConfigError
from rollout.episode import Outcome
from rollout.store.control import MAX_WORKERS, ControlEvent, ScaleRequest, send_request
from rollout.store.run_layout import existing_run
from rollout.store.run_reader import EpisodeFilter, RunReader
from rollout.transcript import render

app = typer.Typer()


class _ShowByDefault(TyperGroup):
    """A group whose command `show` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in (*self.commands, "--help")
        return super().parse_args(ctx, args if named else ["show", *args])


episodes = typer.Typer(
    cls=_ShowByDefault,
    no_args_is_help=True,
    help="List the episodes of a run, show one whole, or replay them.\n\n"
    "`trialrun episodes RUN` is short for `trialrun episodes show RUN`.",
    epilog="Example: [bold]trialrun episodes runs/demo g000003-02[/]",
)


@episodes.command(epilog="Example: [bold]trialrun episodes replay runs/demo g000003-02[/]")
def replay(
    run: Annotated[Path, typer.Argument(help="A run directory, of a run at work or ended.")],
    episode: Annotated[
        str | None, typer.Argument(help="Replay this episode (a unique beginning of its id).")
    ] = None,
    traffic: Annotated[
        Path | None,
        typer.Option(help="Folder of recorded tool traffic, where it is not in the run."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play episodes again from their tokens and recorded tool answers; say where they differ.

    Runs neither the model nor tools. Exit code 0 where all are equal, 1 at a difference.
    """
    replayed = asyncio.run(stack("replay.replay_episodes").replay_run(run, episode, traffic))
    report(replayed.to_json(), as_json=as_json)
    raise typer.Exit(1 if replayed.different else 0)


@episodes.command(epilog="Example: [bold]trialrun episodes runs/demo g000003-02[/]")
def show(
    run: Annotated[Path, typer.Argument(help="A run directory, of a run at work or ended.")],
    episode: Annotated[
        str | None, typer.Argument(help="Show this episode (a unique beginning of its id).")
    ] = None,
    outcome: Annotated[
        Outcome | None, typer.Option(help="List only episodes that ended so.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many, the newest.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the episodes of a run, or show one whole."""
    reader = RunReader(run)
    if episode is not None:
        sys.stdout.write(render(reader.episode(episode)) + "\n")
        return
    rows = reader.episodes(EpisodeFilter(outcome=outcome or ""))[-limit:]
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n")
        return
    table = Table(
        "episode", "task", "outcome", "reward", title=f"{len(rows)} newest episodes of {run}"
    )
    for row in rows:
        reward = "-" if row.reward is None else f"{row.reward:.2f}"
        table.add_row(row.episode, row.task, row.outcome, reward)
    Console().print(table)


@app.command(epilog="Example: [bold]trialrun scale runs/first 4[/]")
def scale(
    run: Annotated[Path, typer.Argument(help="The run directory of a training job at work.")],
    workers: Annotated[
        int, typer.Argument(min=1, max=MAX_WORKERS, help="Target number of rollout workers.")
    ],
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds to wait for the job's answer.")
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Give a training job at work more or fewer rollout workers; it goes on meanwhile.

    New ones start, load the current weights and get work; surplus ones finish their episodes. A
    job that is started anew has as many as its recipe says.
    """
    event = ControlEvent(at=time.time(), actor=getuser(), request=ScaleRequest(workers=workers))
    answer = send_request(existing_run(run), event, timeout_s)
    if answer.refused:
        raise ConfigError(f"the job on {run} refused: {answer.refused}")
    note = {"note": answer.note} if answer.note else {}
    report({"run_dir": str(run), "workers": workers, **note}, as_json=as_json)


@app.command(
    epilog="Example: [bold]trialrun compare runs/sft-trial-001 runs/grpo-trial-001[/], or with "
    "seeds [bold]trialrun compare sft=runs/a1,runs/a2 grpo=runs/b1,runs/b2[/]"
)
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN[,RUN]",
            help="Two or more evaluations of the same tasks; several runs of one side are seeds, "
            "paired with the other sides' in order.",
        ),
    ],
    by: Annotated[
        list[str] | None,
        typer.Option(help="Tag to compare by; repeatable. Default: tags of 2 to 8 values."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the differences to this PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations task by task: differences with intervals and exact or permutation tests.

    Positive differences mean that the second side is better.
    """
    comparing = stack("evaluation.compare")
    found = comparing.compare_runs(sides, by or ())
    if markdown is not None:
        markdown.write_text(comparing.comparison_markdown(found), encoding="utf-8")
    if plot is not None:
        stack("evaluation.plots").plot_comparison(found, plot)
    if as_json:
        sys.stdout.write(json.dumps(comparing.comparison_json(found)) + "\n")
    else:
        stack("evaluation.text_table").print_tables(comparing.comparison_tables(found), found.notes)


@app.command(epilog="Example: [bold]trialrun plot runs/demo/train[/]")
def plot(
    run: Annotated[Path, typer.Argument(help="A run directory, of a run at work or ended.")],
) -> None:
    """Draw a training run's metrics, or an evaluation, to plot.png in its directory."""
    sys.stdout.write(f"{stack('plots').draw_run(run)}\n")


@app.command("replay-step", epilog="Example: [bold]trialrun replay-step runs/demo/train 7[/]")
def replay_step(
    run: Annotated[Path, typer.Argument(help="A run directory that nobody writes to.")],
    step: Annotated[int, typer.Argument(help="Learner step, from 1.")],
    as_json: JsonOption = False,
) -> None:
    """Run one learner step again from its stored episodes; compare weights and metrics bit by bit.

    Begins at the nearest checkpoint before the step, or at the initial model. Exit code 1 at a
    difference.
    """
    replayed = stack("replay.replay_step").run_replay_step(run, step)
    report(replayed.to_json(), as_json=as_json)
    raise typer.Exit(1 if replayed.differences else 0)
