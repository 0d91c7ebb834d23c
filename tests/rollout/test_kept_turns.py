"""Episodes that are interrupted after each of their turns and go on as if they had not been."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Prompt, SamplingParams, VersionSpan
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode
from rollout.kept_turns import KeptTurns, TurnsNotKept
from rollout.runner import EpisodeRunner
from tests.rollout.test_runner import LEASE, UNIT, arithmetic, call, script

TRIAL = (
    call("double", 1),
    "no action at all",
    call("halve", 8) + call("double", 3),
    "<experience>double doubles</experience>",
    call("double", 4),
    call("double", 21),
    "<answer>42</answer>",
)
FREE = (
    call("double", 5),
    "<experience>-</experience>",
    call("double", 1),
    "<trial/>",
    call("halve", 8),
    call("halve", 4),
    "<experience>-</experience>",
    call("double", 2),
    "<answer>42</answer>",
)
DIRECT = (call("double", 4), call("halve", 4), "<answer>42</answer>")
CASES = {
    "trial": (EpisodeConfig(), TRIAL),
    "shared": (EpisodeConfig(trial_sessions="shared"), TRIAL),
    "free": (EpisodeConfig(mode="free"), FREE),
    "direct": (EpisodeConfig(mode="direct"), DIRECT),
    "dropped": (EpisodeConfig(experience="dropped"), TRIAL),
    "short": (EpisodeConfig(max_observation_tokens=9), TRIAL),
}


class Sampled(ScriptedEngine):
    """Logprobs and versions tell which engine sampled a turn; waits for ever at turn `stop`."""

    def __init__(self, turns: Any, template: ChatTemplate, version: int, stop: int = -1) -> None:
        super().__init__(script(*turns), template)
        self._made_with, self._stop = version, stop
        self.stopped = asyncio.Event()

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        for _ in range(3):  # whoever takes turns gets each alone
            await asyncio.sleep(0)
        said = sum(message.role == "assistant" for message in prompt.messages)
        if said == self._stop:
            self.stopped.set()
            await asyncio.Event().wait()
        made = await super().sample(prompt, params)
        logprobs = tuple(-float(params.seed or 0) / 2**31 for _ in made.token_ids)
        return replace(made, logprobs=logprobs, spans=(VersionSpan(0, self._made_with),))


async def interrupted(
    template: ChatTemplate, task: Task, config: EpisodeConfig, engine: Sampled, tools: ScriptedTools
) -> KeptTurns:
    """Play until the engine stops; return what was reported, turn by turn."""
    runner = EpisodeRunner(engine, tools, template, UNIT)
    kept = KeptTurns(LEASE.attempt)
    playing = asyncio.create_task(runner.run_episode(LEASE, task, config))
    while not engine.stopped.is_set():
        await asyncio.sleep(0)
        for part in runner.take_turns():
            assert kept.add(part.sealed().opened())
    assert runner.take_turns() == []
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    return kept


def comparable(episode: Episode) -> dict[str, Any]:
    """Return what must not depend on an interruption."""
    extra = dict(episode.extra)
    for name in ("kept_turns", "replayed_calls"):
        extra.pop(name, None)
    return {
        "tokens": episode.token_ids_T,
        "phases": episode.phases_T,
        "logprobs": np.nan_to_num(np.array(episode.logprobs_T, np.float32), nan=9.0).tolist(),
        "turns": episode.turns,
        "messages": episode.messages,
        "reward": (episode.outcome, episode.reward, dict(episode.reward_parts)),
        "extra": extra,
    }


@pytest.mark.parametrize("name", CASES)
async def test_an_interrupted_episode_ends_as_if_it_had_not_been(
    template: ChatTemplate, task: Task, name: str
) -> None:
    config, turns = CASES[name]
    whole = await EpisodeRunner(
        Sampled(turns, template, 3), ScriptedTools(arithmetic), template, UNIT
    ).run_episode(LEASE, task, config)
    stops = range(1, len(whole.turns)) if name != "dropped" else (1, 2, 3)
    for stop in stops:
        kept = await interrupted(
            template, task, config, Sampled(turns, template, 3, stop), ScriptedTools(arithmetic)
        )
        assert len(kept.turns) == stop
        tools = ScriptedTools(arithmetic)
        second = EpisodeRunner(Sampled(turns, template, 4), tools, template, UNIT)
        lease = replace(LEASE, attempt=1)
        episode = await second.run_episode(lease, task, config, kept)
        assert comparable(episode) == comparable(whole), f"stopped at turn {stop}"
        assert episode.extra["kept_turns"] == stop
        first_of_second = whole.turns[stop].start
        assert episode.spans == (
            VersionSpan(whole.spans[0].start, 3),
            VersionSpan(first_of_second, 4),
        )
        assert all(session.closed for session in tools.sessions)


async def test_an_episode_may_be_interrupted_twice(template: ChatTemplate, task: Task) -> None:
    config, turns = CASES["trial"]
    kept = await interrupted(
        template, task, config, Sampled(turns, template, 1, 2), ScriptedTools(arithmetic)
    )
    engine = Sampled(turns, template, 2, 5)
    runner = EpisodeRunner(engine, ScriptedTools(arithmetic), template, UNIT)
    lease = replace(LEASE, attempt=1)
    playing = asyncio.create_task(runner.run_episode(lease, task, config, kept))
    await engine.stopped.wait()
    again = KeptTurns(1)
    (part,) = runner.take_turns()
    assert part.attempt == 1 and again.add(part) and len(again.turns) == 5
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    last = EpisodeRunner(Sampled(turns, template, 3), ScriptedTools(arithmetic), template, UNIT)
    episode = await last.run_episode(replace(LEASE, attempt=2), task, config, again)
    assert [span.version for span in episode.spans] == [1, 2, 3]
    assert episode.reward is not None and episode.extra["kept_turns"] == 5


@pytest.mark.parametrize("stop", [1, 5])
async def test_tools_that_answer_otherwise_end_the_attempt(
    template: ChatTemplate, task: Task, stop: int
) -> None:
    config, turns = CASES["trial"]
    kept = await interrupted(
        template, task, config, Sampled(turns, template, 1, stop), ScriptedTools(arithmetic)
    )

    def other(made: ToolCall, before: list[ToolCall]) -> ToolAnswer:
        del made, before
        return ToolAnswer(status=AnswerStatus.OK, text="of another day", seconds=0.0)

    tools = ScriptedTools(other)
    runner = EpisodeRunner(Sampled(turns, template, 2), tools, template, UNIT)
    with pytest.raises(TurnsNotKept, match="double answered 'of another day', before it was"):
        await runner.run_episode(LEASE, task, config, kept)
    assert tools.sessions and all(session.closed for session in tools.sessions)


async def test_a_call_that_timed_out_has_reset_its_session(
    template: ChatTemplate, task: Task
) -> None:
    """A sandbox starts again after a time-out: only what came after it is replayed."""

    def slow_at_first(made: ToolCall, before: list[ToolCall]) -> ToolAnswer:
        if made.arguments["x"] == 4:
            return ToolAnswer(status=AnswerStatus.TIMEOUT, text="too slow", seconds=5.0)
        return ToolAnswer(status=AnswerStatus.OK, text="fine", seconds=0.0)

    config, turns = CASES["direct"]
    turns = (call("double", 1), call("halve", 4), call("double", 2), "<answer>42</answer>")
    kept = await interrupted(
        template, task, config, Sampled(turns, template, 1, 3), ScriptedTools(slow_at_first)
    )
    tools = ScriptedTools(slow_at_first)
    runner = EpisodeRunner(Sampled(turns, template, 2), tools, template, UNIT)
    episode = await runner.run_episode(LEASE, task, config, kept)
    assert [made.arguments["x"] for made in tools.sessions[0].calls] == [2]
    assert episode.extra["replayed_calls"] == 1


def test_a_part_after_a_missing_one_is_refused(template: ChatTemplate, task: Task) -> None:
    async def parts() -> list[Any]:
        config, turns = CASES["direct"]
        engine = Sampled(turns, template, 1, 2)
        runner = EpisodeRunner(engine, ScriptedTools(arithmetic), template, UNIT)
        playing = asyncio.create_task(runner.run_episode(LEASE, task, config))
        found: list[Any] = []
        while not engine.stopped.is_set():
            await asyncio.sleep(0)
            found += runner.take_turns()
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        return found

    first, second = asyncio.run(parts())
    kept = KeptTurns(0)
    assert not kept.add(second) and kept.turns == []
    assert kept.add(first) and not kept.add(first) and kept.add(second)
