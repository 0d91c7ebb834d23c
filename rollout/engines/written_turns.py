"""Turns that a person wrote: a JSON file that maps tasks to texts and calls."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from envs.errors import ConfigError
from envs.messages import Message, Reply
from envs.tasks import Task

Turns = tuple[str, ...]
"""Texts of a policy's turns, in order; calls are in the Hermes format."""


def read_turns(key: str, path: Path, tasks: Sequence[Task]) -> dict[str, Turns]:
    """Return the turns in a file by the id of their task, in the order of the file.

    The file is an object that maps a task, by its id with or without the environment's name, to a
    list of turns: a text, or a call as `{"name": ..., "arguments": {...}}`. Raises ConfigError,
    which begins with `key` and the path.
    """
    where = f"{key} {path}"
    known = {name: task.id for task in tasks for name in names_of(task)}
    turns: dict[str, Turns] = {}
    for name, given in _object(where, path).items():
        if name not in known:
            first = f"the first is {tasks[0].id}" if tasks else "there is none"
            raise ConfigError(f"{where}: no task {name!r}; {first}")
        if known[name] in turns:
            raise ConfigError(f"{where}: task {known[name]} is there twice: remove one")
        if not isinstance(given, list) or not given:
            raise ConfigError(f"{where}: expected an object that maps a task to a list of turns")
        turns[known[name]] = tuple(
            _text(f"{where}, task {name!r}, turn {number}", turn)
            for number, turn in enumerate(given, start=1)
        )
    if not turns:
        raise ConfigError(f"{where}: expected the turns of at least one task, found none")
    return turns


def names_of(task: Task) -> tuple[str, str]:
    """Return the names by which a user may call a task: its id, also without the environment's."""
    return task.id, task.id.removeprefix(f"{task.environment}-")


def reply_of(turns: Sequence[str], after: Callable[[], str]) -> Reply:
    """Return a policy that writes `turns`, and what `after` returns once they have ended."""

    def reply(messages: Sequence[Message], seed: int) -> str:
        del seed
        made = sum(message.role == "assistant" for message in messages)
        return turns[made] if made < len(turns) else after()

    return reply


def _object(where: str, path: Path) -> dict[str, object]:
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: expected a JSON file, found {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: expected an object that maps a task to a list of turns")
    return given


def _text(where: str, turn: object) -> str:
    if isinstance(turn, str):
        return turn
    if not isinstance(turn, Mapping) or not isinstance(turn.get("name"), str):
        raise ConfigError(
            f"{where}: expected a text, or a call such as "
            f'{{"name": "add", "arguments": {{"a": 2}}}}, found {json.dumps(turn)[:80]}'
        )
    return f"<tool_call>\n{json.dumps(turn, ensure_ascii=False)}\n</tool_call>"
