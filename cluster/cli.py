"""The command `trialrun`. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 unreachable or
not found.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster import cli_runs
from cluster.command_line import JsonOption, report, stack
from cluster.config import RunConfig, load_config, recipe_names, to_toml
from cluster.doctor import run_doctor
from envs.errors import TrialrunError
from envs.tasks import Split

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distributed RL for language models that learn tools by trying them.",
)

RecipeArgument = Annotated[
    str, typer.Argument(help=f"A shipped recipe ({', '.join(recipe_names())}) or a TOML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Override one value of the recipe; repeatable."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
]


@app.command(epilog="Example: [bold]trialrun demo --seed 3[/]")
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Draw of tasks, tools and model.")] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a tiny model, teach it, reinforce it, and show what it learnt on tools it never saw."""
    config = _config("demo", [f"run.seed={seed}", *(overrides or [])], dry_run=False)
    result = stack("demo").run_demo(config)
    if as_json:
        report(result, as_json=True)


@app.command(epilog="Example: [bold]trialrun doctor --model models/my-model[/]")
def doctor(
    model: Annotated[
        str | None, typer.Option(help="Check this model folder's chat template too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine has, what is missing, and what to type."""
    raise typer.Exit(run_doctor(as_json, model))


@app.command(epilog="Example: [bold]trialrun sft catalog --set teacher.episodes=4000[/]")
def sft(
    recipe: RecipeArgument,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Run directory whose successes are imitated; without, the scripted teacher plays."
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the model on episodes that succeeded, and export it as a Hugging Face folder."""
    config = _config(recipe, overrides, dry_run=dry_run)
    report(stack("commands").run_sft(config, data), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun train catalog --set model.path=runs/taught/model[/]")
def train(
    recipe: RecipeArgument,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reinforce the model: rollout workers play episodes, the learner steps, weights flow back."""
    config = _config(recipe, overrides, dry_run=dry_run, training=True)
    report(stack("commands").run_train(config, resume=resume), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun audit toolhop --set env.path=ToolHop.json[/]")
def audit(
    recipe: RecipeArgument,
    calls: Annotated[int, typer.Option(min=1, help="Calls tried per tool.")] = 200,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call every tool of a ToolHop file in the sandbox, and say what its questions can reach."""
    config = _config(recipe, overrides, dry_run=False)
    report(stack("audit").run_audit(config, calls), as_json=as_json)


@app.command(
    "eval", epilog="Example: [bold]trialrun eval toolhop --set env.path=ToolHop.json --json[/]"
)
def evaluate(
    recipe: RecipeArgument,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory; one that was stopped goes on. Default: a new one."),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play the recipe's evaluation tasks and say how often it is right, by split and difficulty.

    Leaves every episode, eval.json, eval.md and plot.png in the run directory.
    """
    config = _config(recipe, overrides, dry_run=dry_run)
    path = stack("commands").run_eval(config, run)
    comparing = stack("compare")
    found = comparing.report_run(path)
    if as_json:
        sys.stdout.write(comparing.report_json(path) + "\n")
        return
    comparing.print_report(found)
    sys.stdout.write(f"Episodes, eval.json, eval.md and plot.png are in {path}\n")


@app.command(
    epilog="Example: [bold]trialrun serve catalog --port 8000[/], or for other machines "
    "[bold]trialrun serve toolhop --host 0.0.0.0 --port 8000 --token SECRET[/]"
)
def serve(
    recipe: RecipeArgument = "catalog",
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 0,
    token: Annotated[
        str, typer.Option(envvar="TRIALRUN_TOKEN", help="Bearer token; needed off loopback.")
    ] = "",
    split: Annotated[Split, typer.Option(help="Which tasks.")] = "train",
    tasks: Annotated[int, typer.Option(min=1, help="How many of them.")] = 12,
    overrides: SetOption = None,
) -> None:
    """Serve the tools of an environment's tasks over HTTP, MCP and OpenEnv, until stopped."""
    config = _config(recipe, overrides, dry_run=False)
    serving = stack("serve")
    serving.run_serve(config, serving.Address(host, port, token), split, tasks)


app.add_typer(cli_runs.app)
app.add_typer(cli_runs.episodes, name="episodes")


def main() -> None:
    """Run the command line; every expected error is one line on standard error and an exit code."""
    try:
        app()
    except TrialrunError as error:
        Console(stderr=True, highlight=False).print(
            f"[red]error:[/] {_plain(error)}", soft_wrap=True
        )
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; what was finished is kept")
        raise SystemExit(1) from None


def _plain(error: TrialrunError) -> str:
    return str(error).replace("[", "\\[")


def _config(
    recipe: str, overrides: Sequence[str] | None, *, dry_run: bool, training: bool = False
) -> RunConfig:
    config = load_config(recipe, overrides or ())
    if training:
        config.check_trainable()
    if dry_run:
        sys.stdout.write(to_toml(config))
        raise typer.Exit
    return config
