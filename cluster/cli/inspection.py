"""Commands that train nothing: checks of machine, recipe and tools, and a server of tools."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli.arguments import (
    Assignments,
    RecipeArgument,
    RecipeCommand,
    SetOption,
    TrustOption,
    read_config,
    typed_keys,
)
from cluster.cli.command_line import JsonOption, report, stack
from cluster.cli.key_list import print_keys
from cluster.cli.path_checks import check_tasks
from cluster.config.run_config import load_config
from cluster.lifecycle.trust import check_recipe
from cluster.progress import Progress
from envs.tasks import Split

app = typer.Typer()


@app.command(
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun doctor[/], or [bold]trialrun doctor models/my-model "
    "model.dtype=bfloat16[/]",
)
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="A model folder: check it, and not this machine.", show_default=False),
    ] = None,
    assignments: Assignments = None,
    recipe: Annotated[
        str, typer.Option(help="Take the settings of this recipe.", show_default=False)
    ] = "",
    gpu_memory_gib: Annotated[
        float, typer.Option("--gpu-memory-gib", min=1, help="Memory of one GPU, in GiB.")
    ] = 80.0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and the installed packages, or one model folder; starts nothing.

    For a machine, the recipe says which isolation its tools need. For a model: chat template, tool
    calls, thoughts, control tokens, weights, names, packing, log-probabilities and memory. Exit
    code 1 if something is missing.
    """
    if model is None:
        config = load_config(recipe, overrides or [])
        check_recipe(Path(recipe), config, trusted=False, given=typed_keys(overrides or []))
        raise typer.Exit(stack("checks.doctor").run_doctor(config.tools.isolation, as_json=as_json))
    chosen = [*(assignments or []), *(overrides or []), f"model.path={model}"]
    report_model = stack("checks.model_report", slow=True).run_model_report
    raise typer.Exit(report_model(load_config(recipe, chosen), gpu_memory_gib, as_json=as_json))


@app.command(epilog="Example: [bold]trialrun keys learner[/], or [bold]trialrun keys lr[/]")
def keys(
    pattern: Annotated[
        str, typer.Argument(help="A section, or part of a key's name or description.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List the configuration keys: type, default and meaning. docs/reference.md has the same."""
    print_keys(pattern, as_json=as_json)


@app.command(
    cls=RecipeCommand, epilog="Example: [bold]trialrun audit toolhop env.path=ToolHop.json[/]"
)
def audit(
    recipe: RecipeArgument,
    assignments: Assignments = None,
    calls: Annotated[int, typer.Option(min=1, help="Calls to make per tool.")] = 200,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Call every tool of a ToolHop file in the sandbox, and report which questions are solvable."""
    config = read_config(recipe, assignments, overrides, trusted=trust_run)
    check_tasks(config)
    progress = Progress()
    progress.phase(f"calling every tool of the file, {calls} times each")
    report(stack("evaluation.audit").run_audit(config, calls), as_json=as_json)


@app.command(
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun serve catalog --port 8000[/], or for other machines "
    "[bold]TRIALRUN_TOKEN=SECRET trialrun serve toolhop --host 0.0.0.0 --port 8000[/]",
)
def serve(
    recipe: RecipeArgument = "catalog",
    assignments: Assignments = None,
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Listen on this port; 0 takes a free one.")
    ] = 0,
    token: Annotated[
        str,
        typer.Option(
            envvar="TRIALRUN_TOKEN",
            help="Bearer token that clients must send. Default: one is drawn and printed; required "
            "if other machines can connect. Other users can see arguments: set the variable.",
        ),
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token.", exists=True, dir_okay=False)
    ] = None,
    no_token: Annotated[
        bool,
        typer.Option(
            "--no-token",
            help="Let in every process of this machine; not for tools outside of the sandbox.",
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer under this name, too; may be repeated."),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(help="Only tasks of this split. Default: all of a file, train of others."),
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(min=1, help="Number of tasks. Default: all of a file, 12 of others."),
    ] = None,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
) -> None:
    """Serve the tools of an environment's tasks over HTTP, MCP and OpenEnv, until stopped."""
    config = read_config(recipe, assignments, overrides, "catalog", trusted=trust_run)
    check_tasks(config)
    serving = stack("cli.serve")
    address = serving.Address(
        host=host,
        port=port,
        token=token,
        token_file=token_file,
        no_token=no_token,
        allowed_hosts=tuple(allow_host or ()),
    )
    serving.run_serve(config, address, split, tasks)


@app.command(
    cls=RecipeCommand, epilog="Example: [bold]trialrun estimate qwen2.5-7b --gpu-memory-gib 80[/]"
)
def estimate(
    recipe: RecipeArgument,
    assignments: Assignments = None,
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
    """Estimate the memory that a recipe needs in every process; starts nothing.

    Exit code 0 if it fits, 1 if it does not.
    """
    config = read_config(recipe, assignments, overrides, trusted=True)  # it starts nothing
    found, result = stack("checks.estimate").run_estimate(config, gpu_memory_gib, model_config)
    if as_json:
        report(result, as_json=True)
    else:
        stack("checks.estimate_table").print_estimate(config, found, Console(highlight=False))
    raise typer.Exit(1 if found.problems else 0)
