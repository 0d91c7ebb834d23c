"""The scripted teacher of the dozen ToolHop tasks that ship with the project.

ToolHop has no gold calls. For these tasks a file holds, per hop, the call that misleads a
newcomer, the call that works, and its value; the teacher makes both in its trials, the second in
the execution.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from envs.errors import ConfigError
from envs.messages import Message
from envs.tasksets.toolhop.environment import OWN_TASKS
from envs.tools import JsonObject

OWN_CALLS = Path(__file__).parent / "data" / "own12_calls.json"


def trial_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the teacher's next turn: every hop's calls, what was learnt, then the chain."""
    del seed  # one way to play each task
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
    learnt = "; ".join(f"{hop['tool']} takes {json.dumps(hop['works'])}" for hop in chain)
    return f"<experience>{learnt}</experience>"


def direct_reply(messages: Sequence[Message], seed: int) -> str:
    """Return the next turn of one who knows the calls already and does not try them."""
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
    """Return the index of the message that opens the execution, 0 while there is none."""
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
        "expected a question of the project's own ToolHop tasks, found another: the scripted "
        "teacher knows no others"
    )


@cache
def _chains() -> dict[str, list[dict[str, Any]]]:
    calls = json.loads(OWN_CALLS.read_text(encoding="utf-8"))
    entries = json.loads(OWN_TASKS.read_text(encoding="utf-8"))
    return {entry["question"]: calls[str(entry["id"])] for entry in entries}
