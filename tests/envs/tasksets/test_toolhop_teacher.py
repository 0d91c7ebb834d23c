"""The scripted teacher of the project's own ToolHop tasks, as a pure function of the messages."""

import json

import pytest

from envs.errors import ConfigError
from envs.messages import Message
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import ToolHopEnvironment
from envs.tasksets.toolhop.teacher import OWN_CALLS, direct_reply, trial_reply

CHAIN = json.loads(OWN_CALLS.read_text(encoding="utf-8"))["9201"]
TASKS = ToolHopEnvironment(ToolHopEnvConfig()).all_tasks()


def opening() -> list[Message]:
    task = next(task for task in TASKS if task.id == "toolhop-9201")
    return [Message("system", "tools"), Message("user", task.question)]


def call_in(text: str) -> dict[str, object]:
    return json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))


def test_trials_mislead_and_mend_then_the_chain_is_played() -> None:
    messages, said = opening(), []
    for _ in range(20):
        text = trial_reply(messages, 0)
        said.append(text)
        messages.append(Message("assistant", text))
        if text.startswith("<answer>"):
            break
        note = text.startswith("<experience>")
        messages.append(Message("user", "go") if note else Message("tool", "x"))
    tried = [hop[key] for hop in CHAIN for key in ("naive", "works") if hop[key] is not None]
    assert [call_in(text)["arguments"] for text in said[: len(tried)]] == tried
    assert said[len(tried)].startswith("<experience>")
    played = [call_in(text)["arguments"] for text in said[len(tried) + 1 : -1]]
    assert played == [hop["works"] for hop in CHAIN]
    assert said[-1] == f"<answer>{CHAIN[-1]['value']}</answer>"


def test_without_trials_left_it_writes_down_what_it_learnt() -> None:
    messages = [*opening(), Message("assistant", "call"), Message("tool", "no trials left")]
    assert trial_reply(messages, 0).startswith("<experience>resident_register takes")


def test_the_direct_teacher_plays_the_chain_at_once() -> None:
    assert call_in(direct_reply(opening(), 0))["arguments"] == CHAIN[0]["works"]


def test_another_question_is_refused() -> None:
    with pytest.raises(ConfigError, match="own ToolHop tasks"):
        trial_reply([Message("system", ""), Message("user", "Who was first?")], 0)
