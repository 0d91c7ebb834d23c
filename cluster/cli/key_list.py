"""`trialrun keys`: the configuration keys in the terminal."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.config.known_keys import keys_meant_by
from cluster.config.reference import KeyDoc, key_docs, matching
from cluster.config.run_config import RecipeKeys
from envs.errors import MissingError


def print_keys(pattern: str, *, as_json: bool) -> None:
    """Print the keys that `pattern` selects, all of them if it is empty.

    Raises MissingError where there is none.
    """
    found = _found(pattern)
    if as_json:
        sys.stdout.write(json.dumps({"keys": [asdict(key) for key in found]}) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("default", overflow="fold")
    table.add_column("type and meaning", overflow="fold")
    for key in found:
        choice = f" (with {key.choice})" if key.choice else ""
        table.add_row(
            escape(key.dotted), escape(key.default), escape(f"{key.kind}{choice}. {key.doc}")
        )
    Console(highlight=False).print(table)


def _found(pattern: str) -> list[KeyDoc]:
    if not pattern:
        return key_docs()
    if found := matching(pattern):
        return found
    meant = keys_meant_by(pattern.rpartition(".")[2], RecipeKeys)
    if meant:
        return [key for key in key_docs() if key.dotted in meant]
    raise MissingError(
        f"no configuration key matches {pattern!r}; sections are: "
        f"{', '.join(RecipeKeys.model_fields)}"
    )
