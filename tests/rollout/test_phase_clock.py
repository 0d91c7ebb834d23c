"""Whose time it is: a policy that calls tools which hang must not get its attempt back."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from envs.config import IsolationConfig, ToolServerConfig
from envs.messages import Message
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolService, ToolSet, ToolSpec
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, Outcome
from rollout.phase_clock import TurnClock
from rollout.runner import EpisodeRunner, Identity
from tests.rollout.test_runner import LEASE

ANSWER = "<answer>wrong</answer>"
EXPERIENCE = "<experience>it hangs</experience>"
BUDGET = PhaseBudget(calls=20, turns=6, tokens=20_000, seconds=0.4)


def hang(times: int = 1) -> str:
    call = json.dumps({"name": "hang", "arguments": {}})
    return f"<tool_call>{call}</tool_call>" * times


def script(turns: Sequence[str]) -> Callable[[Sequence[Message], int], str]:
    def reply(messages: Sequence[Message], seed: int) -> str:
        said = sum(message.role == "assistant" for message in messages)
        return turns[min(said, len(turns) - 1)]

    return reply


class World:
    """Tools that take `tool_s` per call, behind a service that takes `own_s` more."""

    id = server = isolation = "test"

    def __init__(
        self, tool_s: float, own_s: float = 0.0, status: AnswerStatus = AnswerStatus.TIMEOUT
    ) -> None:
        self._tool_s = tool_s
        self._own_s = own_s
        self._status = status
        self.made = 0

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: str, episode: str = ""
    ) -> "World":
        return self

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        self.made += len(calls)
        await asyncio.sleep((self._tool_s + self._own_s) * len(calls))
        answer = ToolAnswer(status=self._status, text="late", seconds=self._tool_s)
        return [answer] * len(calls)

    async def close(self) -> None: ...


async def play(
    template: ChatTemplate, task: Task, tools: ToolService, turns: Sequence[str], **config: object
) -> Episode:
    tool = ToolSpec(name="hang", description="", parameters={"type": "object", "properties": {}})
    source = "import time\ndef hang():\n    time.sleep(60)\n"
    hanging = ToolSet(tools=(tool,), sources=(source,), functions=("hang",))
    engine = ScriptedEngine(script(turns), template)
    runner = EpisodeRunner(engine, tools, template, Identity(worker="unit", max_model_len=8_192))
    settings = {"mode": "direct", "trial": BUDGET, "execution": BUDGET} | config
    settings = EpisodeConfig.model_validate(settings)
    return await runner.run_episode(LEASE, replace(task, tool_set=hanging), settings)


async def test_who_calls_what_hangs_is_scored_like_everybody(
    template: ChatTemplate, task: Task
) -> None:
    tools = World(tool_s=0.15)
    episode = await play(template, task, tools, [*[hang()] * 5, ANSWER])
    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 0.0)
    assert tools.made == 3, "its seconds are used up like calls"
    assert sum("No tool calls are left" in message.content for message in episode.messages) == 2


async def test_who_only_hangs_runs_out_of_turns(template: ChatTemplate, task: Task) -> None:
    episode = await play(template, task, World(tool_s=0.15), [hang(2)])
    assert (episode.outcome, episode.outcome.counts) == (Outcome.TRUNCATED, True)
    assert "out of turns" in episode.error


async def test_seconds_of_trials_are_used_up_in_trials(template: ChatTemplate, task: Task) -> None:
    tools = World(tool_s=0.25)
    turns = [hang(), hang(), hang(), EXPERIENCE, hang(), ANSWER]
    episode = await play(template, task, tools, turns, mode="trial")
    assert (episode.outcome, tools.made) == (Outcome.ANSWERED, 3), "two trials and an execution"
    assert any("No trial calls are left" in message.content for message in episode.messages)


async def test_a_slow_service_is_the_worlds(template: ChatTemplate, task: Task) -> None:
    episode = await play(template, task, World(0.01, own_s=0.15), [*[hang()] * 5, ANSWER])
    assert (episode.outcome, episode.reward) == (Outcome.DEADLINE, None)


async def test_both_have_their_own_seconds(template: ChatTemplate, task: Task) -> None:
    tools = World(tool_s=0.12, own_s=0.08)  # three calls: 0.36 s of tools, 0.24 s of the world
    episode = await play(template, task, tools, [*[hang()] * 3, ANSWER])
    assert (episode.outcome, tools.made) == (Outcome.ANSWERED, 3)


async def test_a_replay_may_take_as_long_as_the_calls_took_and_is_the_policys_time(
    template: ChatTemplate, task: Task
) -> None:
    world = World(tool_s=0.15, status=AnswerStatus.OK)
    turns = [EXPERIENCE, hang(), hang(), "<trial/>", hang(), EXPERIENCE, ANSWER]
    episode = await play(template, task, world, turns, mode="free", trial=BUDGET)
    assert (episode.outcome, episode.error) == (Outcome.ANSWERED, "")
    assert episode.extra["replayed_calls"] == 2
    assert world.made == 5, "two calls, their replay (0.3 s of 0.4 s), and one trial"
    turns = [EXPERIENCE, hang(), hang(), hang(), "<trial/>", hang(), EXPERIENCE, ANSWER]
    world = World(tool_s=0.15, status=AnswerStatus.OK)
    episode = await play(template, task, world, turns, mode="free", trial=BUDGET)
    assert episode.outcome is Outcome.ANSWERED
    assert world.made == 6, "the replay has used up the seconds of trials"


async def test_a_turn_ends_once_the_world_took_too_long() -> None:
    with pytest.raises(TimeoutError):
        async with TurnClock(0.05) as clock:

            async def answers() -> list[ToolAnswer]:
                await asyncio.sleep(0.1)
                return [ToolAnswer(status=AnswerStatus.OK, text="", seconds=9.0)]

            await clock.tools(answers())  # says more than can be: no credit for the rest
            assert clock.tools_s < 1
            await asyncio.sleep(5)


async def test_the_lever_through_a_real_tool_server(template: ChatTemplate, task: Task) -> None:
    isolation = IsolationConfig(required="seccomp")
    config = ToolServerConfig(isolation=isolation, call_timeout_s=0.3)
    with ToolServerProcess(config) as server:
        tools = ToolClient(server.address, config)
        budget = PhaseBudget(calls=20, turns=6, tokens=20_000, seconds=1.0)
        turns = [*[hang()] * 5, ANSWER]
        episode = await play(template, task, tools, turns, execution=budget)
        await tools.close()
    assert {call.status for call in episode.calls} == {AnswerStatus.TIMEOUT}
    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 0.0)
