"""Arguments that several commands share, and how a recipe is read from them."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cluster.config.known_keys import keys_meant_by
from cluster.config.places import with_absolute_paths
from cluster.config.reference import documented_toml, key_docs
from cluster.config.run_config import RecipeKeys, RunConfig, load_config, recipe_names
from cluster.lifecycle.trust import check_recipe
from envs.errors import ConfigError

RecipeArgument = Annotated[
    str, typer.Argument(help=f"A shipped recipe ({', '.join(recipe_names())}) or a TOML file.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Override values of the recipe, for example run.seed=3 learner.lr=1e-4. "
        "`trialrun keys` lists all keys.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="The same as an option; repeatable.",
        show_default=False,
    ),
]
RequeueOption = Annotated[
    bool,
    typer.Option(
        "--requeue",
        help="Resume the run if there is one, else start it: one command for the first start and "
        "for every restart, by hand or by a queue.",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-run",
        help="Trust who made the run directory: its recipe may start programs, and its checkpoints "
        "are pickles. Not needed for your own runs.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration as TOML and exit.")
]
TurnsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Collect the turns that you wrote in this JSON file: a task's name with a list of its "
        "turns, each a text or a call. It is --source turns.",
    ),
]


class RecipeCommand(TyperCommand):
    """A command with a recipe: an unknown option that resembles a key says how to set it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ConfigError for such an option."""
        known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        for place, argument in enumerate(args):
            name, _, value = argument.partition("=")
            if argument == "--":
                break
            if name.startswith("--") and name not in known:
                following = args[place + 1 : place + 2]
                value = value or next((f for f in following if not f.startswith("-")), "VALUE")
                _refuse_key_as_option(name, value)
        return super().parse_args(ctx, args)


def _refuse_key_as_option(name: str, value: str) -> None:
    word = name.removeprefix("--").replace("-", "_")
    exact = [key.dotted for key in key_docs() if key.dotted == word]
    keys = exact or keys_meant_by(word.rpartition(".")[2], RecipeKeys)
    if keys:
        better = " or ".join(f"{key}={value}" for key in dict.fromkeys(keys))
        raise ConfigError(
            f"no such option: {name}. Keys of the recipe are set without dashes: "
            f"did you mean {better}?"
        )


def recipe_and_overrides(
    recipe: str,
    assignments: Sequence[str] | None,
    overrides: Sequence[str] | None,
    default: str = "",
) -> tuple[str, list[str]]:
    """Return the recipe and all `section.key=value`, of which the later ones win.

    `default` is the recipe of a command that needs none: an assignment may then come first. Raises
    ConfigError for an argument that is neither.
    """
    given = list(assignments or ())
    if "=" in recipe and not Path(recipe).exists():
        if not default:
            raise ConfigError(
                f"expected a recipe before {recipe!r}: {', '.join(recipe_names())}, or a TOML file"
            )
        recipe, given = default, [recipe, *given]
    for text in given:
        if "=" not in text:
            raise ConfigError(
                f"expected section.key=value after the recipe, found {text!r}; for example "
                "run.steps=3"
            )
    return recipe, [*(overrides or ()), *given]


def read_config(
    recipe: str,
    assignments: Sequence[str] | None,
    overrides: Sequence[str] | None,
    default: str = "",
    *,
    trusted: bool = False,
) -> RunConfig:
    """Return the configuration that a command line describes, with absolute paths.

    Raises ConfigError, also for a recipe in a run directory of somebody else that could do harm,
    unless it is `trusted`; and MissingError.
    """
    recipe, values = recipe_and_overrides(recipe, assignments, overrides, default)
    config = with_absolute_paths(load_config(recipe, values), os.environ)
    check_recipe(Path(recipe), config, trusted=trusted, given=typed_keys(values))
    return config


def given_keys(section: str, values: Mapping[str, str | None]) -> list[str]:
    """Return `section.key=value` texts of the options that were given."""
    return [
        f"{section}.{key}={json.dumps(value)}" for key, value in values.items() if value is not None
    ]


def typed_keys(values: Sequence[str]) -> list[str]:
    """Return the keys of `section.key=value` texts."""
    return [value.partition("=")[0].strip() for value in values]


def stop_if_dry(config: RunConfig, *, dry_run: bool) -> None:
    """Print the configuration and end the command where `--dry-run` is given."""
    if dry_run:
        sys.stdout.write(documented_toml(config))
        raise typer.Exit
