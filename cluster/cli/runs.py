"""Commands that read run directories, whether their run is running, finished or was killed."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.arguments import TrustOption
from cluster.cli.command_line import JsonOption, report, stack
from cluster.cli.mirrors import Needs, fetch_run, local_run, local_side
from rollout.store.run_kind import kind_of
from rollout.store.run_layout import RunKind, RunLayout

RunArgument = Annotated[
    str,
    typer.Argument(
        help="Run directory (running or finished), or its mirror, s3://BUCKET/PREFIX/NAME.",
        show_default=False,
    ),
]

app = typer.Typer()


@app.command(
    epilog="Example: [bold]trialrun compare runs/sft-trial-001 runs/grpo-trial-001[/], or with "
    "seeds [bold]trialrun compare sft=runs/a1,runs/a2 grpo=runs/b1,runs/b2[/]"
)
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN[,RUN]",
            help="Two or more evaluations of the same tasks. Several runs of one side are seeds; "
            "they are paired with those of the other sides in order.",
        ),
    ],
    by: Annotated[
        list[str] | None,
        typer.Option(help="Tag to compare by; repeatable. Default: tags with 2 to 8 values."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the differences to this PNG file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations task by task: differences with intervals and exact or permutation tests.

    Positive differences mean that the second side is better.
    """
    comparing = stack("evaluation.compare")
    found = comparing.compare_runs([local_side(side, Needs.EPISODES) for side in sides], by or ())
    if markdown is not None:
        markdown.write_text(comparing.comparison_markdown(found), encoding="utf-8")
    if plot is not None:
        stack("evaluation.plots").plot_comparison(found, plot)
    if as_json:
        sys.stdout.write(json.dumps(comparing.comparison_json(found)) + "\n")
    else:
        stack("evaluation.text_table").print_tables(comparing.comparison_tables(found), found.notes)


@app.command(epilog="Example: [bold]trialrun plot runs/demo/train[/]")
def plot(run: RunArgument) -> None:
    """Plot a training run's metrics, or an evaluation, to plot.png in its directory."""
    path = local_run(run, Needs.METRICS)
    if kind_of(RunLayout(path)) not in (RunKind.TRAIN, RunKind.SFT):
        path = local_run(run, Needs.EPISODES)
    sys.stdout.write(f"{stack('evaluation.plots').draw_run(path)}\n")


@app.command(epilog="Example: [bold]trialrun fetch s3://bucket/runs/first runs/first[/]")
def fetch(
    run: Annotated[
        str, typer.Argument(help="Mirror of a run: s3://BUCKET/PREFIX/NAME.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(help="New folder.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Fetch a mirrored run with its checkpoints and model: to evaluate the model, or to keep it.

    To go on with a run, type `trialrun train RECIPE --resume`: it restores what it needs.
    """
    layout = fetch_run(run, folder)
    model = str(layout.model) if layout.model.exists() else None
    report({"run_dir": str(layout.root), "model": model}, as_json=as_json)


@app.command("replay-step", epilog="Example: [bold]trialrun replay-step runs/demo/train 7[/]")
def replay_step(
    run: RunArgument,
    step: Annotated[int, typer.Argument(help="Learner step, from 1.")],
    trust_run: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Repeat one learner step from its stored episodes, and compare weights and metrics bit by bit.

    Starts at the nearest checkpoint before the step, or at the initial model. Exit code 1 if
    something differs.
    """
    path = local_run(run, Needs.ALL)
    stack("cli.episode_views").check_step(path, step)
    replayed = stack("replay.replay_step", slow=True).run_replay_step(path, step, trusted=trust_run)
    report(replayed.to_json(), as_json=as_json)
    raise typer.Exit(1 if replayed.differences else 0)
