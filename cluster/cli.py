"""The command `trialrun`. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 unreachable or
not found.
"""

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from cluster.config import RunConfig, load_config, recipe_names, to_toml
from cluster.doctor import run_doctor
from envs.errors import ConfigError, TrialrunError
from envs.tasks import Split
from envs.tools import JsonObject
from rollout.episode import Outcome
from rollout.run_reader import EpisodeFilter, RunReader
from rollout.transcript import render

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
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]


@app.command(epilog="Example: [bold]trialrun demo --seed 3[/]")
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Draw of tasks, tools and model.")] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a tiny model, teach it, reinforce it, and show what it learnt on tools it never saw."""
    config = _config("demo", [f"run.seed={seed}", *(overrides or [])], dry_run=False)
    result = _stack("demo").run_demo(config)
    if as_json:
        _report(result, as_json=True)


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
    _report(_stack("commands").run_sft(config, data), as_json=as_json)


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
    _report(_stack("commands").run_train(config, resume=resume), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun audit toolhop --set env.path=ToolHop.json[/]")
def audit(
    recipe: RecipeArgument,
    calls: Annotated[int, typer.Option(min=1, help="Calls tried per tool.")] = 200,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call every tool of a ToolHop file in the sandbox, and say what its questions can reach."""
    config = _config(recipe, overrides, dry_run=False)
    _report(_stack("audit").run_audit(config, calls), as_json=as_json)


@app.command(
    "eval", epilog="Example: [bold]trialrun eval toolhop --set env.path=ToolHop.json --json[/]"
)
def evaluate(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play the recipe's evaluation tasks and summarise; every episode is kept."""
    config = _config(recipe, overrides, dry_run=dry_run)
    _report(_stack("commands").run_eval(config), as_json=as_json)


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
    serving = _stack("serve")
    serving.run_serve(config, serving.Address(host, port, token), split, tasks)


class _ShowByDefault(TyperGroup):
    """A group whose command `show` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in (*self.commands, "--help")
        return super().parse_args(ctx, args if named else ["show", *args])


episodes = typer.Typer(
    cls=_ShowByDefault,
    no_args_is_help=True,
    help="List the episodes of a run, show one whole, or replay them.",
    epilog="Example: [bold]trialrun episodes runs/demo g000003-02[/]",
)
app.add_typer(episodes, name="episodes")


@episodes.command(epilog="Example: [bold]trialrun episodes replay runs/demo g000003-02[/]")
def replay(
    run: Annotated[Path, typer.Argument(help="A run directory, live or dead.")],
    episode: Annotated[
        str | None, typer.Argument(help="Replay this episode (a unique beginning of its id).")
    ] = None,
    traffic: Annotated[
        Path | None, typer.Option(help="Recorded tool traffic, where it is not in the run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play episodes again from their tokens and recorded tool answers; say where they differ.

    Runs neither the model nor tools. Exit code 0 where all are equal, 1 at a difference.
    """
    report = asyncio.run(_stack("replay").replay_run(run, episode, traffic))
    _report(report.to_json(), as_json=as_json)
    raise typer.Exit(1 if report.different else 0)


@episodes.command(epilog="Example: [bold]trialrun episodes runs/demo g000003-02[/]")
def show(
    run: Annotated[Path, typer.Argument(help="A run directory, live or dead.")],
    episode: Annotated[
        str | None, typer.Argument(help="Show this episode (a unique beginning of its id).")
    ] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only episodes that ended so.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the newest.")] = 20,
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


def _stack(module: str) -> Any:
    """Import a module that needs the whole stack; it takes seconds, which help must not wait."""
    # The driver computes nothing: no accelerator to look for, no bars for loading a file.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        return importlib.import_module(f"cluster.{module}")
    except ImportError as error:
        raise ConfigError(
            f"the stack is not installed ({error}): type 'make setup', then 'trialrun doctor'"
        ) from error


def _report(result: JsonObject, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    table = Table(show_header=False, box=None)
    for key, value in result.items():
        table.add_row(key.replace("_", " "), _cell(value))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items()) or "-"
    return "-" if value is None else str(value)
