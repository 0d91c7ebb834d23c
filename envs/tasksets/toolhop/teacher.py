"""The scripted teacher of the twelve ToolHop tasks shipped with the project.

ToolHop has no reference calls. For these tasks a file gives three things per hop: a call that seems
correct but misleads, the call that works, and its result. The teacher makes both calls in its
trials, and only the one that works in the execution.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from envs.errors import ConfigError
from envs.messages import Message
from envs.tasks import Mode, Teacher
from envs.tools import JsonObject

OWN_TASKS = Path(__file__).parent / "data" / "own12.json"
OWN_CALLS = Path(__file__).parent / "data" / "own12_calls.json"


def own_teacher(mode: Mode) -> Teacher:
    """Return the teacher of the project's own tasks for episodes of `mode`."""
    return Teacher(direct_reply if mode == "direct" else trial_reply, full_budget)


def trial_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the next turn: both calls of every hop, then the experience, then the execution."""
    del seed  # each task has one demonstration
    chain, started = _chain(messages[1].content), _execution_start(messages)
    if started:
        return _execution_turn(chain, messages[started:])
    moves = [
        _call(hop["tool"], arguments)
        for hop in chain
        for arguments in (hop["naive"], hop["works"])
        if arguments is not None
    ]
    turn, last = _turns(messages), messages[-1]
    blocked = last.role == "tool" and "no trial" in last.content.lower()
    if turn < len(moves) and not blocked:
        return moves[turn]
    learned = "; ".join(f"{hop['tool']} takes {json.dumps(hop['works'])}" for hop in chain)
    return f"<experience>{learned}</experience>"


def direct_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the next turn of a teacher that already knows the calls and tries nothing."""
    del seed
    return _execution_turn(_chain(messages[1].content), messages)


def full_budget(seed: int, full: int) -> int:
    """Return the trial budget of a teacher episode: all of it."""
    del seed
    return full


def _execution_turn(chain: list[dict[str, Any]], messages: Sequence[Message]) -> str:
    turn = _turns(messages)
    if turn < len(chain):
        return _call(chain[turn]["tool"], chain[turn]["works"])
    return f"<answer>{chain[-1]['value']}</answer>"


def _turns(messages: Sequence[Message]) -> int:
    return sum(message.role == "assistant" for message in messages)


def _execution_start(messages: Sequence[Message]) -> int:
    """Return the index of the message that starts the execution; 0 during the trials."""
    later = (index for index in range(2, len(messages)) if messages[index].role == "user")
    return next(later, 0)


def _call(tool: str, arguments: JsonObject) -> str:
    written = json.dumps({"name": tool, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{written}</tool_call>"


def _chain(opening: str) -> list[dict[str, Any]]:
    for question, chain in _chains().items():
        if opening.startswith(question):
            return chain
    raise ConfigError(
        "expected a question of the project's own ToolHop tasks, found another one: the scripted "
        "teacher knows only those"
    )


@cache
def _chains() -> dict[str, list[dict[str, Any]]]:
    calls = json.loads(OWN_CALLS.read_text(encoding="utf-8"))
    entries = json.loads(OWN_TASKS.read_text(encoding="utf-8"))
    return {entry["question"]: calls[str(entry["id"])] for entry in entries}
