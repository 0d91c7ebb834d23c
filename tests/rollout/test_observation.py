"""Observations that do not fit are cut, and say so."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.messages import Message
from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, Lease, Outcome, Phase, RolloutKind
from rollout.episode_schema import from_batch, to_batch
from rollout.language import Language, format_of
from rollout.observation import Cutter, fitted
from rollout.runner import EpisodeRunner, Identity
from rollout.transcript import render

LEASE = Lease(
    run="run",
    episode="e1",
    kind=RolloutKind.TRAIN,
    group="g1",
    group_number=1,
    task="task-1",
    sample_index=0,
    attempt=0,
    seed=7,
)
DOUBLE = '<tool_call>{"name": "double", "arguments": {"x": 1}}</tool_call>'
DIRECT = EpisodeConfig(mode="direct", max_tokens_per_turn=300)


def tokenise(messages: Sequence[Message]) -> list[int]:
    return list("".join(f"<{m.role}>{m.content}</{m.role}>" for m in messages).encode())


def prompt_tokens(template: ChatTemplate, task: Task, config: EpisodeConfig) -> int:
    language = Language(template, format_of(template, "auto"), task, config)
    return len(language.tokenise(language.opening()))


def room_after(template: ChatTemplate, task: Task, config: EpisodeConfig, tokens: int) -> int:
    return prompt_tokens(template, task, config) + tokens


async def play(
    template: ChatTemplate,
    task: Task,
    answers: Sequence[ToolAnswer],
    max_model_len: int,
    config: EpisodeConfig = DIRECT,
    turns: Sequence[str] = (DOUBLE, "<answer>42</answer>"),
) -> Episode:
    def answer(made: ToolCall, before: list[ToolCall]) -> ToolAnswer:
        return answers[len(before)]

    def reply(messages: Sequence[Message], seed: int) -> str:
        return turns[sum(message.role == "assistant" for message in messages)]

    engine = ScriptedEngine(reply, template)
    identity = Identity(worker="unit", max_model_len=max_model_len)
    runner = EpisodeRunner(engine, ScriptedTools(answer), template, identity)
    return await runner.run_episode(LEASE, task, config)


def said(text: str, *, truncated: bool = False) -> ToolAnswer:
    return ToolAnswer(status=AnswerStatus.OK, text=text, seconds=0.0, truncated=truncated)


@pytest.mark.parametrize("length", [3_000, 160_000])
async def test_a_long_answer_leaves_room_for_the_policys(
    template: ChatTemplate, task: Task, length: int
) -> None:
    limit = room_after(template, task, DIRECT, 1_000)
    episode = await play(template, task, [said("x" * length)], limit)
    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 1.0)
    observed = [i for i, p in enumerate(episode.phases_T) if p == Phase.OBSERVATION]
    assert limit - observed[-1] - 1 >= DIRECT.max_tokens_per_turn
    seen = next(message.content for message in episode.messages if message.role == "tool")
    kept = seen.count("x")
    assert f"[cut: {length - kept} of {length} characters left out]" in seen
    assert kept > 300, "no more than needed is left out"
    assert episode.extra["cut_observations"] == 1
    assert episode.extra["cut_characters"] == length - kept
    assert episode.calls[0].result == "x" * length, "the record keeps the complete answer"
    ids = episode.token_ids_T[observed[0] : observed[-1] + 1]
    whole = template.continuation([Message("tool", seen)], last_id=template.eos_token_id)
    assert list(ids) == whole, "the template ends the turn"


async def test_the_same_answer_is_cut_in_the_same_way(template: ChatTemplate, task: Task) -> None:
    text = "".join(chr(0x4E00 + i % 500) if i % 3 else "a" for i in range(20_000))
    limit = room_after(template, task, DIRECT, 1_000)
    first, second = [await play(template, task, [said(text)], limit) for _ in range(2)]
    assert first.token_ids_T == second.token_ids_T
    assert len(first.token_ids_T) <= limit


async def test_a_trial_leaves_room_for_the_experience_and_the_answer(
    template: ChatTemplate, task: Task
) -> None:
    config = EpisodeConfig(max_tokens_per_turn=150)
    limit = room_after(template, task, config, 900)
    turns = (DOUBLE, "<experience>long answers</experience>", "<answer>42</answer>")
    episode = await play(template, task, [said("y" * 9_000)], limit, config, turns)
    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 1.0)
    assert len(episode.token_ids_T) <= limit


@pytest.mark.parametrize("room", [40, 90, 150, 300])
async def test_no_episode_is_longer_than_the_context(
    template: ChatTemplate, task: Task, room: int
) -> None:
    """Whatever room the opening leaves, an episode that does not fit is truncated and counts."""
    config = EpisodeConfig(max_tokens_per_turn=100, trial=PhaseBudget(turns=2))
    turns = (DOUBLE, DOUBLE, "<experience>-</experience>", DOUBLE, DOUBLE, DOUBLE)
    limit = room_after(template, task, config, room)
    episode = await play(template, task, [said("z" * 80)] * 6, limit, config, turns)
    assert (episode.outcome, episode.reward is None) == (Outcome.TRUNCATED, False)
    assert len(episode.token_ids_T) <= limit


async def test_a_short_answer_stays_whole_where_room_is_short(
    template: ChatTemplate, task: Task
) -> None:
    limit = room_after(template, task, DIRECT, 240)
    episode = await play(template, task, [said("42")], limit)
    assert episode.outcome is Outcome.ANSWERED
    assert "cut_observations" not in episode.extra


async def test_the_configuration_bounds_one_observation(template: ChatTemplate, task: Task) -> None:
    config = DIRECT.model_copy(update={"max_observation_tokens": 200})
    episode = await play(template, task, [said("x" * 5_000)], 100_000, config)
    assert episode.phases_T.count(Phase.OBSERVATION) <= 200
    assert episode.extra["cut_observations"] == 1


async def test_an_answer_that_the_tool_server_cut_says_so(
    template: ChatTemplate, task: Task
) -> None:
    episode = await play(template, task, [said("half", truncated=True)], 100_000)
    seen = next(message.content for message in episode.messages if message.role == "tool")
    assert "half\n[cut: the tool returned more than this]" in seen


@pytest.mark.parametrize("over", [0, 1, 500])
async def test_a_prompt_without_room_is_typed_and_samples_nothing(
    template: ChatTemplate, task: Task, over: int
) -> None:
    class Forbidden(ScriptedEngine):
        async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
            raise AssertionError("nothing may be sampled")

    length = prompt_tokens(template, task, DIRECT)
    runner = EpisodeRunner(
        Forbidden(lambda messages, seed: "", template),
        ScriptedTools(lambda made, before: said("")),
        template,
        Identity(worker="unit", max_model_len=length - over),
    )
    episode = await runner.run_episode(LEASE, task, DIRECT)
    assert (episode.outcome, episode.reward) == (Outcome.PROMPT_TOO_LONG, None)
    assert all(text in episode.error for text in ("task-1", str(length), f"({length - over})"))
    (row,) = from_batch(to_batch([episode]))
    assert (row.outcome, row.token_ids_T, row.oldest_version) == (episode.outcome, (), -1)
    assert "the prompt has no room" in render(row)


async def test_one_token_of_room_is_room(template: ChatTemplate, task: Task) -> None:
    episode = await play(template, task, [], room_after(template, task, DIRECT, 1))
    assert episode.outcome is Outcome.TRUNCATED


@pytest.mark.parametrize("allowed", [150, 300, 600])
def test_the_longest_of_several_answers_are_cut_first(allowed: int) -> None:
    messages = [Message("tool", "short"), Message("tool", "a" * 300), Message("tool", "b" * 4_000)]
    seen = fitted(messages, tokenise, allowed, 10_000)
    assert seen is not None
    assert len(seen.token_ids) <= allowed
    assert seen.messages[0] == messages[0]
    kept = [seen.messages[1].content.count("aa"), seen.messages[2].content.count("bb")]
    assert kept[1] - kept[0] <= 1 or kept[0] == 150


def test_a_closing_tag_of_the_wording_stays() -> None:
    text = f"<tool_response>\n{'x' * 900}\n</tool_response>"
    seen = fitted([Message("tool", text)], tokenise, 200, 900)
    assert seen is not None
    assert seen.messages[0].content.endswith("characters left out]\n</tool_response>")


def test_what_cannot_be_cut_may_use_the_room_and_no_more() -> None:
    go = [Message("user", "go on")]
    length = len(tokenise(go))
    seen = fitted(go, tokenise, length - 5, length)
    assert seen is not None and seen.messages == tuple(go)
    assert fitted(go, tokenise, length - 5, length - 1) is None


async def test_a_cutter_counts_over_an_episode() -> None:
    cutter = Cutter(turn_tokens=10)
    for text in ("x" * 500, "short", "y" * 500):
        assert await cutter.fit([Message("tool", text)], tokenise, 200, 1) is not None
    assert cutter.counts["cut_observations"] == 2
    assert cutter.counts == replace(cutter).counts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    room=st.integers(1, 900),
    lengths=st.lists(st.integers(0, 1_500), min_size=12, max_size=12),
    turn_tokens=st.integers(1, 400),
    mode=st.sampled_from(["direct", "trial", "free"]),
    limit=st.sampled_from([0, 1, 60, 300]),
)
def test_whatever_tools_answer_an_episode_fits_and_counts(
    template: ChatTemplate,
    task: Task,
    room: int,
    lengths: list[int],
    turn_tokens: int,
    mode: str,
    limit: int,
) -> None:
    config = EpisodeConfig.model_validate(
        {
            "mode": mode,
            "max_tokens_per_turn": turn_tokens,
            "max_observation_tokens": limit,
            "trial": {"calls": 3, "turns": 4},
            "execution": {"calls": 3, "turns": 4},
        }
    )
    longest = room_after(template, task, config, room)
    answers = [said("é" * length) for length in lengths]
    turns = [f"{DOUBLE}{DOUBLE}", "<experience>-</experience>", DOUBLE, "hm", DOUBLE] * 6
    episode = asyncio.run(play(template, task, answers, longest, config, turns))
    assert episode.outcome.counts, episode.error
    assert len(episode.token_ids_T) <= longest
    assert sum(turn.end - turn.start for turn in episode.turns) == sum(episode.loss_mask_T)
