"""What the commands share: an option, importing the stack late, and printing a result."""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from envs.errors import ConfigError
from envs.tools import JsonObject

RAY_START_WAIT = "RAY_raylet_start_wait_time_s"
"""Environment variable of Ray: seconds that its start may take; read once, as ray is imported."""
RAY_START_WAIT_S = 120
"""In place of Ray's 30, which two cores busy with other work outlast."""
RAY_AUTH_MODE = "RAY_AUTH_MODE"
"""Environment variable of Ray: `token` shows the cluster the user's token; read once, too."""

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]


def stack(module: str) -> Any:
    """Import a module that needs the whole stack; it takes seconds, which help must not wait."""
    # The driver computes nothing: no accelerator to look for, no bars for loading a file.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault(RAY_START_WAIT, str(RAY_START_WAIT_S))
    # `ray start` then asks for it, and a cluster that does not is indifferent. Only before Ray is
    # imported: it would start what asks for a token, and show none
    if _has_ray_token() and "ray" not in sys.modules:
        os.environ.setdefault(RAY_AUTH_MODE, "token")
    try:
        return importlib.import_module(f"cluster.{module}")
    except ImportError as error:
        raise ConfigError(
            f"the stack is not installed ({error}): type 'make setup', then 'trialrun doctor'"
        ) from error


def _has_ray_token() -> bool:
    """Whether there is one where Ray looks for it. Source: Ray's page on token authentication."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


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
