"""The command `trialrun`. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 unreachable or
not found.
"""

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.checks.doctor import run_doctor
from cluster.cli import runs as cli_runs
from cluster.cli.command_line import JsonOption, report, stack
from cluster.config.collect_config import CollectSource
from cluster.config.run_config import RunConfig, load_config, recipe_names, to_toml
from cluster.study.recipe import load_study, read_seeds
from envs.errors import TrialrunError
from envs.tasks import Split
from rollout.engines.openai_config import ToolFormat

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distributed RL for language models that learn tools by trying them.",
    epilog="Begin with [bold]trialrun doctor[/], then [bold]trialrun demo[/]. Exit codes: 0 ok, "
    "1 failed, 2 usage or configuration, 3 unreachable or not found.",
)

RecipeArgument = Annotated[
    str, typer.Argument(help=f"A shipped recipe ({', '.join(recipe_names())}) or a TOML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one value of the recipe, such as run.seed=3; repeatable. "
        "`trialrun train RECIPE --dry-run` lists the keys.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
]


def _show_version(*, wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"trialrun {metadata.version('trialrun')}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            is_eager=True,
            callback=lambda wanted: _show_version(wanted=wanted),
        ),
    ] = False,
) -> None:
    """Take what may stand before a command."""


@app.command(epilog="Example: [bold]trialrun demo --seed 3[/]")
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Draw of tasks, tools and model.")] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a tiny model, teach it, reinforce it, and show what it learnt on tools it never saw."""
    config = _config("demo", [f"run.seed={seed}", *(overrides or [])], dry_run=False)
    result = stack("study.demo").run_demo(config)
    if as_json:
        report(result, as_json=True)


@app.command(epilog="Example: [bold]trialrun study --seeds 5 --dir runs/study[/]")
def study(
    recipe: Annotated[
        str, typer.Argument(help="The shipped recipe, or a TOML file with a section \\[study].")
    ] = "study",
    seeds: Annotated[
        str, typer.Option(help="A number of seeds (5), or a list of seeds (11,12,13).")
    ] = "5",
    folder: Annotated[
        Path, typer.Option("--dir", help="Where results are kept; an existing one goes on.")
    ] = Path("runs/study"),
    arms: Annotated[
        str | None, typer.Option(help="Only these arms of the recipe, separated by commas.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and compare policies over seeds and kinds of tasks; once stopped, it goes on.

    The recipe's section \\[study] names the arms (rows of the table: a model, and how it plays)
    and the settings (its columns).
    """
    planned = load_study(recipe, overrides or ())
    if arms is not None:
        planned = planned.only([arm.strip() for arm in arms.split(",")])
    chosen = read_seeds(seeds, planned.config.run.seed)
    result = stack("study.study").run_study(planned, chosen, folder)
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
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            "--data",
            metavar="DIR[=WEIGHT]",
            help="Imitate what this run directory holds, each episode WEIGHT times an epoch; "
            "repeatable. Without, the scripted teacher plays.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of a stopped SFT.")
    ] = False,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the model on episodes that succeeded, and export it as a Hugging Face folder.

    The folder is `model` in the recipe's run directory, RUN.DIR/RUN.NAME.
    """
    config = _config(recipe, overrides, dry_run=dry_run)
    report(stack("training.sft").run_sft(config, sources or [], resume=resume), as_json=as_json)


@app.command(
    epilog="Example: [bold]trialrun collect toolhop --source endpoint --model NAME "
    "--base-url https://HOST/v1 --key-variable API_KEY --out runs/teacher[/]"
)
def collect(
    recipe: RecipeArgument = "catalog",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory to write. Default: `collected` in the recipe's, RUN.DIR/RUN.NAME."
        ),
    ] = None,
    source: Annotated[
        CollectSource | None,
        typer.Option(
            help="Who plays: the environment's own teacher, a chat endpoint, or the recipe's "
            "model. Default: the recipe's collect.source."
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The endpoint, such as https://HOST/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's name of its model.")] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable with its API key.")
    ] = None,
    tool_format: Annotated[
        ToolFormat | None,
        typer.Option(help="Tool calls as text, or by the endpoint's own `tools`."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the collection was left.")
    ] = False,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play examples for imitation, filter them, and keep them for `trialrun sft --from`."""
    endpoint = {
        "base_url": base_url,
        "model": model,
        "key_variable": key_variable,
        "tool_format": tool_format,
    }
    values = [f"collect.endpoint.{k}={json.dumps(v)}" for k, v in endpoint.items() if v is not None]
    values += [f"collect.source={source}"] if source else []
    config = _config(recipe, [*values, *(overrides or [])], dry_run=dry_run)
    target = out or config.path / "collected"
    report(stack("teachers.collect").run_collect(config, target, resume=resume), as_json=as_json)


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
    """Reinforce the model: rollout workers play episodes, the learner steps, weights flow back.

    All of it is kept in the recipe's run directory, RUN.DIR/RUN.NAME: episodes, metrics,
    checkpoints and the model.
    """
    config = _config(recipe, overrides, dry_run=dry_run, training=True)
    report(stack("training.train").run_train(config, resume=resume), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun audit toolhop --set env.path=ToolHop.json[/]")
def audit(
    recipe: RecipeArgument,
    calls: Annotated[int, typer.Option(min=1, help="Calls tried per tool.")] = 200,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call every tool of a ToolHop file in the sandbox, and say what its questions can reach."""
    config = _config(recipe, overrides, dry_run=False)
    report(stack("evaluation.audit").run_audit(config, calls), as_json=as_json)


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
    path = stack("evaluation.evaluate").run_eval(config, run)
    found = stack("evaluation.evaluate").report_on(path)
    stack("evaluation.plots").plot_report(found, path.name, path / "plot.png")
    if as_json:
        sys.stdout.write(json.dumps(json.loads((path / "eval.json").read_bytes())) + "\n")
        return
    sheets = stack("evaluation.eval_tables").evaluation_tables(found)
    stack("evaluation.text_table").print_tables(sheets, found.notes)
    sys.stdout.write(f"Episodes, eval.json, eval.md and plot.png are in {path}\n")


@app.command(
    epilog="Example: [bold]trialrun serve catalog --port 8000[/], or for other machines "
    "[bold]trialrun serve toolhop --host 0.0.0.0 --port 8000 --token SECRET[/]"
)
def serve(
    recipe: RecipeArgument = "catalog",
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Listen on this port; 0 takes a free one.")
    ] = 0,
    token: Annotated[
        str,
        typer.Option(
            envvar="TRIALRUN_TOKEN",
            help="Bearer token that clients must send; needed where others reach the address.",
        ),
    ] = "",
    split: Annotated[Split, typer.Option(help="Split that the tasks are of.")] = "train",
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 12,
    overrides: SetOption = None,
) -> None:
    """Serve the tools of an environment's tasks over HTTP, MCP and OpenEnv, until stopped."""
    config = _config(recipe, overrides, dry_run=False)
    serving = stack("cli.serve")
    serving.run_serve(config, serving.Address(host, port, token), split, tasks)


@app.command(epilog="Example: [bold]trialrun estimate qwen2.5-7b --gpu-memory-gib 80[/]")
def estimate(
    recipe: RecipeArgument,
    gpu_memory_gib: Annotated[
        float, typer.Option("--gpu-memory-gib", min=1, help="Memory of one GPU, in GiB.")
    ] = 80.0,
    model_config: Annotated[
        Path | None,
        typer.Option("--model-config", help="config.json of a model that is not on this machine."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what memory a recipe takes on every process, and whether it fits; starts nothing.

    Exit code 0 where it fits, 1 where it does not.
    """
    config = _config(recipe, overrides, dry_run=False)
    found, result = stack("checks.estimate").run_estimate(config, gpu_memory_gib, model_config)
    if as_json:
        report(result, as_json=True)
    else:
        stack("checks.estimate_table").print_estimate(config, found, Console(highlight=False))
    raise typer.Exit(1 if found.problems else 0)


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
