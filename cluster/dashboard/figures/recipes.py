"""The recipe of a run, the one of each attempt, and what differs between them."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.dashboard.index.run_facts import RunFacts
from cluster.dashboard.models.runs import ConfigAnswer, ConfigAttempt, ConfigChange
from envs.errors import StoreError
from rollout.store.shared_files import read_bytes

_UNTIL = re.compile(r"config-until-(\d+)\.toml")


def recipe_of(facts: RunFacts) -> ConfigAnswer:
    """Return the recipes of a run, oldest first."""
    older = sorted(
        (int(match[1]), path)
        for path in facts.layout.root.glob("config-until-*.toml")
        if (match := _UNTIL.fullmatch(path.name))
    )
    attempts: list[ConfigAttempt] = []
    first = 1
    for last, path in older:
        try:
            text = read_bytes(path).decode("utf-8", "replace")
        except OSError:  # no plain file, or one that may not be read
            text = ""
        attempts.append(_attempt(first, last, text))
        first = last + 1
    attempts.append(_attempt(first, None, facts.config_text()))
    try:
        versions = facts.info().versions
    except (StoreError, OSError):
        versions = {}
    return ConfigAnswer(attempts=attempts, changes=changes_of(attempts), versions=versions)


def changes_of(attempts: list[ConfigAttempt]) -> list[ConfigChange]:
    """Return the keys whose value differs between attempts, in the order of the recipe."""
    flat = [dict(_flat(_parsed(attempt.toml))) for attempt in attempts]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [(key, [values.get(key) for values in flat]) for key in keys]
    return [ConfigChange(key=key, values=found) for key, found in rows if len(set(found)) > 1]


def _attempt(first: int, last: int | None, text: str) -> ConfigAttempt:
    label = f"steps {first} to {last}" if last is not None else f"from step {first}"
    return ConfigAttempt(label=label, first_step=first, last_step=last, toml=text)


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)
