"""What the commands share: an option, importing the stack late, and printing a result."""

import importlib
import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.fleet.ray_environment import prepare_environment
from envs.errors import ConfigError
from envs.tools import JsonObject

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]


def stack(module: str) -> Any:
    """Import a module that needs the whole stack; it takes seconds, which help must not wait."""
    prepare_environment()
    try:
        return importlib.import_module(f"cluster.{module}")
    except ImportError as error:
        raise ConfigError(
            f"the stack is not installed ({error}): type 'make setup', then 'trialrun doctor'"
        ) from error


def report(result: JsonObject, *, as_json: bool) -> None:
    """Print what a command found: one line of JSON, or a table of two columns."""
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
