"""What `trialrun episodes` prints; it reads the store, whose library takes time to import."""

import json
import math
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from cluster.evaluation.text_table import cell
from envs.errors import MissingError
from envs.tools import JsonObject
from rollout.episode import Episode, Phase
from rollout.store.run_reader import EpisodeFilter, RunReader
from rollout.transcript import render


def show_episode(run: Path, prefix: str, *, as_json: bool) -> None:
    """Print one episode as a transcript, or as one JSON object. Raises MissingError."""
    episode = RunReader(run).episode(prefix)
    text = json.dumps(episode_json(episode), allow_nan=False) if as_json else render(episode)
    sys.stdout.write(text + "\n")


def list_episodes(run: Path, outcome: str, limit: int, *, as_json: bool) -> None:
    """Print the newest episodes of a run as a table, or as one JSON list."""
    rows = RunReader(run).episodes(EpisodeFilter(outcome=outcome))[-limit:]
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n")
        return
    title = cell(f"{len(rows)} newest episodes of {run}")
    table = Table("episode", "task", "outcome", "reward", title=title)
    for row in rows:
        reward = "-" if row.reward is None else f"{row.reward:.2f}"
        table.add_row(*map(cell, (row.episode, row.task, row.outcome, reward)))
    Console().print(table)


def check_step(run: Path, step: int) -> None:
    """Raise MissingError where `run` has not trained learner step `step`."""
    steps = [row.step for row in RunReader(run).metrics()]
    if step not in steps:
        trained = f"{min(steps)} to {max(steps)}" if steps else "none"
        raise MissingError(f"expected a step that {run} has trained ({trained}), found {step}")


def episode_json(episode: Episode) -> JsonObject:
    """Return every field of `episode` as JSON: enumerations by name, numbers that are not finite
    as null; `phases_T` are names of phases, one per token.
    """
    found = _plain(asdict(episode))
    assert isinstance(found, dict)
    phases: list[JsonValue] = [Phase(phase).name.lower() for phase in episode.phases_T]
    return {**found, "phases_T": phases}


def _plain(value: object) -> JsonValue:
    if isinstance(value, Enum):
        return value.name.lower() if isinstance(value, int) else str(value.value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    assert value is None or isinstance(value, str | int | bool), value
    return value
