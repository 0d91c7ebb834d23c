"""`trialrun check`: what a model meets in an environment, before any run."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.arguments import (
    Assignments,
    RecipeCommand,
    SetOption,
    TrustOption,
    read_config,
)
from cluster.cli.command_line import JsonOption, report, stack
from cluster.cli.path_checks import check_tasks
from cluster.config.run_config import recipe_names
from cluster.progress import Progress

app = typer.Typer()
_CUT = 300


@app.command(
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun check my-tasks/[/], or [bold]trialrun check my-tasks/ --play "
    "turns.json episode.mode=direct[/]",
)
def check(
    world: Annotated[
        str,
        typer.Argument(
            help="A folder with `tasks.jsonl` or such a file, a shipped recipe "
            f"({', '.join(recipe_names())}), or a TOML file.",
            metavar="ENV|RECIPE",
        ),
    ],
    assignments: Assignments = None,
    task: Annotated[
        str, typer.Option(help="Show the prompt of this task. Default: the first.")
    ] = "",
    play: Annotated[
        Path | None,
        typer.Option(
            help="Play the turns of this JSON file: a task's name with a list of turns, each a "
            'text or a call, as {"name": ..., "arguments": {...}}.'
        ),
    ] = None,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Load every tool of an environment once, and show what a model sees; starts no run.

    Names what cannot be loaded, what was left out, whose state is shared, and prompts that do not
    fit into the model. Exit code 0 if nothing is wrong, 1 if something is.
    """
    recipe, values = _recipe_of(world)
    config = read_config(recipe, assignments, [*values, *(overrides or [])], trusted=trust_run)
    check_tasks(config)
    checking = stack("evaluation.world_check", slow=True)
    found = checking.run_check(config, checking.Options(task, play), Progress(quiet=as_json))
    if as_json:
        report(found, as_json=True)
    else:
        _print(found)
    raise typer.Exit(1 if found["faults"] else 0)


def _recipe_of(world: str) -> tuple[str, list[str]]:
    """Return the recipe of an argument, and what it sets: a path to tasks is the recipe `file`."""
    path = Path(world).expanduser()
    is_tasks = (path / "tasks.jsonl").is_file() or (path.is_file() and path.suffix == ".jsonl")
    return ("file", [f"env.path={json.dumps(str(path))}"]) if is_tasks else (world, [])


def _print(found: Any) -> None:
    lines = [
        f"environment {found['environment']}: {found['tasks']} tasks "
        f"({', '.join(f'{name} {count}' for name, count in found['splits'].items())})",
        "",
        "What the model sees at the start of " + found["shown"]["task"],
        "-" * 72,
        found["shown"]["prompt"],
        "-" * 72,
        "",
    ]
    for tools in found["tool_sets"][:20]:
        state = "loads" if tools["loads"] else f"CANNOT BE LOADED: {tools['error']}"
        lines.append(
            f"{tools['place']}: {len(tools['tools'])} tools, {tools['tasks']} tasks, state "
            f"{tools['state']}; {state}"
        )
        lines += [f"  left out: {each['name']}: {each['why']}" for each in tools["left_out"]]
    if len(found["tool_sets"]) > 20:
        lines.append(f"... and {len(found['tool_sets']) - 20} more tool sets")
    lines += [f"note: {note}" for note in found["notes"]]
    lines += _prompt_lines(found)
    for episode in found.get("played", ()):
        lines += _played_lines(episode)
    lines += _summary(found.get("played", ()))
    lines += [f"fault: {fault}" for fault in found["faults"]]
    well = "nothing is wrong with the environment"
    lines.append(f"{len(found['faults'])} faults" if found["faults"] else well)
    sys.stdout.write("\n".join(lines) + "\n")


def _prompt_lines(found: Any) -> list[str]:
    prompts, shown = found["prompts"], found["shown"]
    if not prompts:
        return [f"tokens are not counted: {found['model']}"]
    by_tool = ", ".join(f"{name} {count}" for name, count in shown["tokens_by_tool"].items())
    return [
        f"prompt of {shown['task']}: {shown['tokens']} tokens (schemas: {by_tool})",
        f"longest prompt: {prompts['longest_tokens']} tokens ({prompts['longest_task']}), median "
        f"{prompts['median_tokens']}; model.max_model_len is {prompts['max_model_len']}",
    ]


def _played_lines(episode: Any) -> list[str]:
    lines = [
        "",
        f"played {episode['task']}: {episode['outcome']}, reward {_reward(episode)}, "
        f"{episode['isolation'] or 'no tool was called'}"
        + (f"; {episode['error']}" if episode["error"] else ""),
    ]
    for turn in episode["turns"]:
        error = f"  [policy error: {turn['policy_error']}]" if turn["policy_error"] else ""
        lines.append(f"  > {_short(turn['text'])}{error}")
        lines += [f"    {c['status']}: {_short(c['result'])}" for c in turn["calls"]]
        if turn["policy_error"] and turn["told"]:
            lines.append(f"    the policy is told: {_short(turn['told'])}")
    return [*lines, *(f"  remark: {remark}" for remark in episode["remarks"]), ""]


def _reward(episode: Any) -> str:
    return "none" if episode["reward"] is None else f"{episode['reward']:.4g}"


def _summary(played: Any) -> list[str]:
    if not played:
        return []
    rewards = ", ".join(f"{episode['task']} {_reward(episode)}" for episode in played)
    remarks = sum(map(len, (episode["remarks"] for episode in played)))
    return [f"rewards: {rewards}; {remarks or 'no'} remark{'' if remarks == 1 else 's'}"]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CUT else line[:_CUT] + "..."
