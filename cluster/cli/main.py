"""The command `trialrun`. Exit codes: 0 ok, 1 failed or stopped, 2 usage or configuration, 3
unreachable or not found.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli import check as cli_check
from cluster.cli import dashboard as cli_dashboard
from cluster.cli import episodes as cli_episodes
from cluster.cli import inspection, rendering
from cluster.cli import jobs as cli_jobs
from cluster.cli import runs as cli_runs
from cluster.cli import steering as cli_steering
from cluster.cli.arguments import (
    Assignments,
    DryRunOption,
    RecipeArgument,
    RecipeCommand,
    RequeueOption,
    SetOption,
    TrustOption,
    TurnsOption,
    given_keys,
    read_config,
    recipe_and_overrides,
    stop_if_dry,
    typed_keys,
)
from cluster.cli.beside import DashboardOption, dashboard_beside
from cluster.cli.command_line import (
    Commands,
    JsonOption,
    Stopped,
    own_output,
    report,
    stack,
    version,
)
from cluster.cli.mirrors import local_source
from cluster.cli.path_checks import (
    check_inputs,
    check_run_folder,
    check_sources,
    check_turns,
    check_unmirrored,
    run_at,
)
from cluster.config.collect_config import CollectSource
from cluster.config.places import absolute_place, with_absolute_places
from cluster.lifecycle.trust import check_recipe
from cluster.study.recipe import load_study, read_seeds
from envs.errors import TrialrunError
from rollout.engines.openai_config import ToolFormat
from rollout.transcript import inert

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distributed RL for language models that learn tools by trying them.",
    epilog="Start with [bold]trialrun doctor[/], then [bold]trialrun demo[/]. Exit codes: 0 ok, "
    "1 failed or stopped, 2 usage or configuration, 3 unreachable or not found.",
)


def _show_version(*, wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"trialrun {version()}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=lambda wanted: _show_version(wanted=wanted),
        ),
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command(cls=RecipeCommand, epilog="Example: [bold]trialrun demo --seed 3[/]")
def demo(
    assignments: Assignments = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overrides: SetOption = None,
    dashboard: DashboardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a tiny model, train it with SFT and RL, and evaluate it on tools it has never seen."""
    seeded = [f"run.seed={seed}", *(overrides or [])]
    config = read_config("demo", assignments, seeded)
    check_unmirrored(config, "demo")
    check_inputs(config)
    demonstration = stack("study.demo", slow=True)
    config = demonstration.with_free_name(config)
    with dashboard_beside(config.path, os.environ, wanted=dashboard):
        result = demonstration.run_demo(config)
    if as_json:
        report(result, as_json=True)


@app.command(
    cls=RecipeCommand, epilog="Example: [bold]trialrun study --seeds 5 --dir runs/study[/]"
)
def study(
    recipe: Annotated[
        str, typer.Argument(help="The shipped recipe, or a TOML file with a section \\[study].")
    ] = "study",
    assignments: Assignments = None,
    seeds: Annotated[
        str, typer.Option(help="A number of seeds (5), or a list of seeds (11,12,13).")
    ] = "5",
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of the results; an existing study is resumed.")
    ] = Path("runs/study"),
    arms: Annotated[
        str | None, typer.Option(help="Only these arms of the recipe, separated by commas.")
    ] = None,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train and compare policies over seeds and kinds of tasks; an interrupted study is resumed.

    The recipe's section \\[study] names the arms (rows of the table: a model, and how it acts)
    and the settings (its columns).
    """
    recipe, values = recipe_and_overrides(recipe, assignments, overrides, "study")
    planned = load_study(recipe, values)
    check_recipe(Path(recipe), planned.config, trusted=trust_run, given=typed_keys(values))
    check_unmirrored(planned.config, "study")
    if arms is not None:
        planned = planned.only([arm.strip() for arm in arms.split(",")])
    planned = replace(planned, config=with_absolute_places(planned.config, os.environ))
    folder = absolute_place("--dir", folder, os.environ)
    chosen = read_seeds(seeds, planned.config.run.seed)
    check_inputs(planned.config)
    result = stack("study.study", slow=True).run_study(planned, chosen, folder)
    if as_json:
        report(result, as_json=True)


@app.command(
    cls=RecipeCommand, epilog="Example: [bold]trialrun sft catalog teacher.episodes=4000[/]"
)
def sft(
    recipe: RecipeArgument,
    assignments: Assignments = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            "--data",
            metavar="DIR[=WEIGHT]",
            help="Train on the episodes of this run directory, each WEIGHT times per epoch; "
            "repeatable. Default: the scripted teacher generates episodes.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted SFT from its newest checkpoint.")
    ] = False,
    requeue: RequeueOption = False,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the model on successful episodes, and export it as a Hugging Face folder.

    The folder is `model` in the recipe's run directory, RUN.DIR/RUN.NAME.
    """
    config = read_config(recipe, assignments, overrides, trusted=trust_run)
    stop_if_dry(config, dry_run=dry_run)
    check_inputs(config)
    sources = [local_source(source) for source in sources or []]
    check_sources(sources)
    check_run_folder(config.path, resume=resume or requeue, elsewhere="choose another run.name")
    found = stack("training.sft", slow=True).run_sft(
        config, sources, resume=resume, requeue=requeue, trusted=trust_run
    )
    report(found, as_json=as_json)


@app.command(
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun collect toolhop --source endpoint --model NAME "
    "--base-url https://HOST/v1 --key-variable API_KEY --out runs/teacher[/]",
)
def collect(
    recipe: RecipeArgument = "catalog",
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory to write. Default: `collected` in the recipe's run directory, "
            "RUN.DIR/RUN.NAME."
        ),
    ] = None,
    source: Annotated[
        CollectSource | None,
        typer.Option(
            help="Source of the episodes: the environment's scripted teacher, a chat endpoint, the "
            "recipe's model, or turns that you wrote. Default: the recipe's collect.source."
        ),
    ] = None,
    turns: TurnsOption = None,
    base_url: Annotated[
        str | None, typer.Option(help="Address of the endpoint, such as https://HOST/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model at the endpoint.")] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the endpoint's API key.")
    ] = None,
    tool_format: Annotated[
        ToolFormat | None,
        typer.Option(help="Tool calls as text (prompt), or in the endpoint's `tools` (native)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted collection.")
    ] = False,
    requeue: RequeueOption = False,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Generate and filter demonstrations for SFT; use them with `trialrun sft --from`."""
    endpoint = {
        "base_url": base_url,
        "model": model,
        "key_variable": key_variable,
        "tool_format": tool_format,
    }
    own = {"source": source or ("turns" if turns else None), "turns": turns and str(turns)}
    values = [*given_keys("collect.endpoint", endpoint), *given_keys("collect", own)]
    values += overrides or []
    config = read_config(recipe, assignments, values, "catalog", trusted=trust_run)
    stop_if_dry(config, dry_run=dry_run)
    target = absolute_place("--out", out or config.path / "collected", os.environ)
    check_inputs(config)
    check_turns(config)
    check_run_folder(target, resume=resume or requeue, elsewhere="choose another --out")
    found = stack("teachers.collect", slow=True).run_collect(
        config, target, resume=resume, requeue=requeue, trusted=trust_run
    )
    report(found, as_json=as_json)


@app.command(
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun train catalog model.path=runs/catalog/model run.name=rl[/]",
)
def train(
    recipe: RecipeArgument,
    assignments: Assignments = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run from its newest checkpoint.")
    ] = False,
    requeue: RequeueOption = False,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    dashboard: DashboardOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the model with RL: workers run episodes, the learner updates and publishes weights.

    The recipe's run directory, RUN.DIR/RUN.NAME, receives episodes, metrics, checkpoints and the
    model.
    """
    config = read_config(recipe, assignments, overrides, trusted=trust_run)
    config.check_trainable()
    stop_if_dry(config, dry_run=dry_run)
    check_inputs(config)
    if resume and not requeue and not config.mirror.url:
        run_at(config.path)
    check_run_folder(config.path, resume=resume or requeue, elsewhere="choose another run.name")
    training = stack("training.train", slow=True)
    with dashboard_beside(config.path, os.environ, wanted=dashboard):
        found = training.run_train(config, resume=resume, requeue=requeue, trusted=trust_run)
    report(found, as_json=as_json)


@app.command(
    "eval",
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun eval toolhop env.path=ToolHop.json --json[/]",
)
def evaluate(
    recipe: RecipeArgument,
    assignments: Assignments = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory; an interrupted evaluation is resumed. Default: new."),
    ] = None,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the recipe's evaluation tasks and report the accuracy by split and difficulty.

    Writes every episode, eval.json, eval.md and plot.png to the run directory.
    """
    config = read_config(recipe, assignments, overrides, trusted=trust_run)
    stop_if_dry(config, dry_run=dry_run)
    check_inputs(config)
    run = run and absolute_place("--run", run, os.environ)
    path = stack("evaluation.evaluate", slow=True).run_eval(config, run, trusted=trust_run)
    found = stack("evaluation.report_files").report_on(path)
    stack("evaluation.plots").plot_report(found, path.name, path / "plot.png")
    if as_json:
        sys.stdout.write(json.dumps(json.loads((path / "eval.json").read_bytes())) + "\n")
        return
    sheets = stack("evaluation.eval_tables").evaluation_tables(found)
    stack("evaluation.text_table").print_tables(sheets, found.notes)
    sys.stdout.write(f"Episodes, eval.json, eval.md and plot.png are in {path}\n")


app.add_typer(inspection.app)
app.add_typer(cli_check.app)
app.add_typer(cli_jobs.app)
app.add_typer(rendering.app)
app.add_typer(cli_steering.app)
app.add_typer(cli_dashboard.app, name="dashboard")
app.add_typer(cli_runs.app)
app.add_typer(cli_episodes.episodes, name="episodes")


def main() -> None:
    """Run the command line; every expected error is one line on standard error and an exit code."""
    console = Console(stderr=True, highlight=False)
    # Losses and environments of the user are modules in the folder in which trialrun starts.
    sys.path.append(str(Path.cwd()))
    try:
        with own_output():
            app()
    except Stopped as stopped:
        console.print(_plain(stopped), soft_wrap=True)
        raise SystemExit(stopped.exit_code) from None
    except TrialrunError as error:
        console.print(f"[red]error:[/] {_plain(error)}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None


def _plain(error: TrialrunError) -> str:
    return inert(str(error)).replace("[", "\\[")


if __name__ == "__main__":
    main()
