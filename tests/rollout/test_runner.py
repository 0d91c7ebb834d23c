import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from envs.errors import DeadlineError, EngineError, ToolServerError
from envs.messages import Message
from envs.services.scripted import ScriptedTools
from envs.tasks import Score, Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engine import Completion, Prompt, SamplingParams, VersionSpan
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, Lease, Outcome, Phase, RolloutKind
from rollout.runner import EpisodeRunner, Identity

UNIT = Identity(worker="unit", max_model_len=8_192)
LONG = PhaseBudget(tokens=20_000)
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


def call(name: str, x: int) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{"x": {x}}}}}</tool_call>'


def arithmetic(made: ToolCall, before: list[ToolCall]) -> ToolAnswer:
    x = made.arguments["x"]
    assert isinstance(x, int)
    value = 2 * x if made.name == "double" else x // 2
    return ToolAnswer(status=AnswerStatus.OK, text=f"{value} after {len(before)}", seconds=0.0)


def script(*turns: str) -> Callable[[Sequence[Message], int], str]:
    def reply(messages: Sequence[Message], seed: int) -> str:
        said = sum(message.role == "assistant" for message in messages)
        return turns[min(said, len(turns) - 1)]

    return reply


async def play(
    template: ChatTemplate, task: Task, *turns: str, config: EpisodeConfig | None = None
) -> tuple[Episode, ScriptedTools]:
    tools = ScriptedTools(arithmetic)
    engine = ScriptedEngine(script(*turns), template)
    runner = EpisodeRunner(engine, tools, template, UNIT)
    return await runner.run_episode(LEASE, task, config or EpisodeConfig()), tools


def text_of(template: ChatTemplate, episode: Episode, phase: Phase) -> str:
    ids = [i for i, p in zip(episode.token_ids_T, episode.phases_T, strict=True) if p == phase]
    return template.decode(ids)


async def test_trial_experience_execution_answer(template: ChatTemplate, task: Task) -> None:
    episode, tools = await play(
        template,
        task,
        call("double", 1),
        "<experience>double doubles</experience>",
        call("double", 21),
        "<answer>42</answer>",
    )
    assert episode.outcome is Outcome.ANSWERED
    assert episode.reward == 1.0
    assert [session.purpose for session in tools.sessions] == ["trial", "execution"]
    assert all(session.closed for session in tools.sessions)
    assert [c.result for c in episode.calls] == ["2 after 0", "42 after 0"], (
        "execution starts clean"
    )
    assert [turn.phase for turn in episode.turns] == [
        Phase.TRIAL,
        Phase.EXPERIENCE,
        Phase.EXECUTION,
        Phase.EXECUTION,
    ]
    assert text_of(template, episode, Phase.EXPERIENCE) == "<experience>double doubles</experience>"
    assert "2 after 0" in text_of(template, episode, Phase.OBSERVATION)
    assert sum(episode.loss_mask_T) == sum(turn.end - turn.start for turn in episode.turns)
    assert (
        template.decode(episode.token_ids_T) + "<|im_end|>"
        == template.decode(template.prompt(episode.messages[:-1])) + "<answer>42</answer><|im_end|>"
    ), "the ids are those of the conversation"


async def test_direct_mode_has_no_trials(template: ChatTemplate, task: Task) -> None:
    config = EpisodeConfig(mode="direct")
    episode, tools = await play(
        template, task, call("double", 21), "<answer>42</answer>", config=config
    )
    assert (episode.reward, episode.extra["trial_calls"]) == (1.0, 0.0)
    assert [session.purpose for session in tools.sessions] == ["execution"]


async def test_free_mode_returns_to_a_trial_of_the_state_so_far(
    template: ChatTemplate, task: Task
) -> None:
    turns = (
        "<experience>-</experience>",
        call("double", 1),
        "<trial/>",
        call("halve", 8),
        "<experience>-</experience>",
    )
    episode, tools = await play(
        template, task, *turns, "<answer>42</answer>", config=EpisodeConfig(mode="free")
    )
    assert episode.reward == 1.0
    assert episode.calls[-1].result == "4 after 1", "the new trial replayed the execution"
    assert [len(session.calls) for session in tools.sessions] == [1, 2]


async def test_blocked_trials_answer_without_a_session(template: ChatTemplate, task: Task) -> None:
    config = EpisodeConfig(trial=PhaseBudget(calls=0))
    turns = (
        call("double", 1),
        "<experience>-</experience>",
        call("double", 21),
        "<answer>42</answer>",
    )
    episode, tools = await play(template, task, *turns, config=config)
    assert episode.reward == 1.0
    assert [session.purpose for session in tools.sessions] == ["execution"]
    assert "No trial calls are left" in text_of(template, episode, Phase.OBSERVATION)


@pytest.mark.parametrize(
    ("turns", "config", "outcome"),
    [
        (("hm",), EpisodeConfig(), Outcome.POLICY_ERROR),
        ((call("double", 1),), EpisodeConfig(mode="direct"), Outcome.TRUNCATED),
        (
            ("<experience>-</experience>", "<experience>-</experience>"),
            EpisodeConfig(),
            Outcome.POLICY_ERROR,
        ),
        ((call("double", 1), "<answer>1</answer>"), EpisodeConfig(), Outcome.POLICY_ERROR),
        (
            (call("double", 1) * 9,),
            EpisodeConfig(mode="direct", max_tokens_per_turn=900, execution=LONG),
            Outcome.POLICY_ERROR,
        ),
        (("x" * 900,), EpisodeConfig(max_tokens_per_turn=5), Outcome.POLICY_ERROR),
        (
            ("<answer>42</answer>",),
            EpisodeConfig(mode="direct", execution=PhaseBudget(tokens=3)),
            Outcome.TRUNCATED,
        ),
    ],
)
async def test_a_policy_that_gets_nowhere_ends_typed(
    template: ChatTemplate,
    task: Task,
    turns: tuple[str, ...],
    config: EpisodeConfig,
    outcome: Outcome,
) -> None:
    episode, _ = await play(template, task, *turns, config=config)
    assert episode.outcome is outcome, episode.error
    assert episode.reward is not None and episode.reward <= 0
    assert episode.error


async def test_a_fault_is_an_observation_and_costs_the_penalty(
    template: ChatTemplate, task: Task
) -> None:
    config = EpisodeConfig(mode="direct", malformed_penalty=0.25)
    episode, _ = await play(template, task, call("triple", 1), "<answer>42</answer>", config=config)
    assert episode.reward == 0.75
    assert episode.turns[0].policy_error == "unknown_tool"
    assert "tools are: double, halve" in text_of(template, episode, Phase.OBSERVATION)


class FailingEngine:
    def __init__(self, error: Exception) -> None:
        self.error = error
        self.version = 3

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ToolServerError("server died"), Outcome.INFRA_FAILED),
        (DeadlineError("too slow"), Outcome.DEADLINE),
        (ZeroDivisionError("a defect"), Outcome.INFRA_FAILED),
    ],
)
async def test_the_worlds_failures_carry_no_reward(
    template: ChatTemplate, task: Task, error: Exception, outcome: Outcome
) -> None:
    engine = FailingEngine(error)
    runner = EpisodeRunner(engine, ScriptedTools(arithmetic), template, UNIT)  # type: ignore[arg-type]
    episode = await runner.run_episode(LEASE, task, EpisodeConfig())
    assert (episode.outcome, episode.reward) == (outcome, None)


async def test_a_broken_engine_is_the_workers_exception(template: ChatTemplate, task: Task) -> None:
    engine = FailingEngine(EngineError("engine died"))
    runner = EpisodeRunner(engine, ScriptedTools(arithmetic), template, UNIT)  # type: ignore[arg-type]
    with pytest.raises(EngineError):
        await runner.run_episode(LEASE, task, EpisodeConfig())


async def test_a_phase_out_of_seconds_is_a_deadline(template: ChatTemplate, task: Task) -> None:
    class Stuck(ScriptedEngine):
        async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
            await asyncio.Event().wait()
            return await super().sample(prompt, params)

    config = EpisodeConfig(trial=PhaseBudget(seconds=0.05))
    runner = EpisodeRunner(Stuck(script("x"), template), ScriptedTools(arithmetic), template, UNIT)
    episode = await runner.run_episode(LEASE, task, config)
    assert (episode.outcome, episode.reward) == (Outcome.DEADLINE, None)


async def test_an_infrastructure_error_of_a_tool_ends_the_episode(
    template: ChatTemplate, task: Task
) -> None:
    def broken(made: ToolCall, before: list[ToolCall]) -> ToolAnswer:
        return ToolAnswer(status=AnswerStatus.INFRA_ERROR, text="child died", seconds=0.0)

    engine = ScriptedEngine(script(call("double", 1)), template)
    episode = await EpisodeRunner(engine, ScriptedTools(broken), template, UNIT).run_episode(
        LEASE, task, EpisodeConfig()
    )
    assert (episode.outcome, episode.reward, len(episode.calls)) == (Outcome.INFRA_FAILED, None, 1)


async def test_a_scorer_that_fails_is_a_defect_not_a_zero(
    template: ChatTemplate, task: Task
) -> None:
    class Broken:
        def score(self, answer: str) -> Score:
            raise KeyError(answer)

    config = EpisodeConfig(mode="direct")
    episode, _ = await play(
        template, replace(task, scorer=Broken()), "<answer>42</answer>", config=config
    )
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_FAILED, None)
    assert "defect: KeyError" in episode.error


async def test_cancellation_passes_through_and_closes_sessions(
    template: ChatTemplate, task: Task
) -> None:
    tools = ScriptedTools(arithmetic)
    reached = asyncio.Event()

    class Waits(ScriptedEngine):
        async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
            if tools.sessions:
                reached.set()
                await asyncio.Event().wait()
            return await super().sample(prompt, params)

    runner = EpisodeRunner(Waits(script(call("double", 1)), template), tools, template, UNIT)
    running = asyncio.create_task(runner.run_episode(LEASE, task, EpisodeConfig()))
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [session.closed for session in tools.sessions] == [True]


async def test_spans_follow_a_push_within_and_between_turns(
    template: ChatTemplate, task: Task
) -> None:
    class Pushed(ScriptedEngine):
        async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
            done = await super().sample(prompt, params)
            spans = (
                (VersionSpan(0, 4), VersionSpan(5, 5))
                if len(prompt.messages) == 2
                else (VersionSpan(0, 5),)
            )
            return Completion(
                done.token_ids, (-0.5,) * len(done.token_ids), spans, done.finish_reason
            )

    engine = Pushed(script(call("double", 21), "<answer>42</answer>"), template)
    runner = EpisodeRunner(engine, ScriptedTools(arithmetic), template, UNIT)
    episode = await runner.run_episode(LEASE, task, EpisodeConfig(mode="direct"))
    first = episode.turns[0].start
    assert episode.spans == (VersionSpan(first, 4), VersionSpan(first + 5, 5))
    assert episode.oldest_version == 4
    masked = [lp for lp, own in zip(episode.logprobs_T, episode.loss_mask_T, strict=True) if own]
    assert set(masked) == {-0.5}
    assert all(
        math.isnan(lp)
        for lp, own in zip(episode.logprobs_T, episode.loss_mask_T, strict=True)
        if not own
    )


async def test_hundreds_of_episodes_share_one_loop(template: ChatTemplate, task: Task) -> None:
    tools = ScriptedTools(arithmetic)
    engine = ScriptedEngine(
        script(call("double", 1), "<experience>-</experience>", "<answer>42</answer>"), template
    )
    runner = EpisodeRunner(engine, tools, template, UNIT)
    leases = [
        Lease(
            run="run",
            episode=f"e{i}",
            kind=RolloutKind.TRAIN,
            group="g",
            group_number=0,
            task="task-1",
            sample_index=i,
            attempt=0,
            seed=i,
        )
        for i in range(200)
    ]
    episodes = await asyncio.gather(
        *(runner.run_episode(lease, task, EpisodeConfig()) for lease in leases)
    )
    assert {episode.reward for episode in episodes} == {1.0}
    assert len({episode.lease.episode for episode in episodes}) == 200
