"""What a trial does to the tools' state, in the real sandbox: thrown away, unless it is shared."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import ToolServerError
from envs.messages import Message
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.services.adapted import AdaptedTools
from envs.services.scripted import ScriptedSession, ScriptedTools
from envs.tasks import Task
from envs.tools import (
    Adaptation,
    AnswerStatus,
    CallRule,
    SessionPurpose,
    ToolAnswer,
    ToolCall,
    ToolService,
    ToolSession,
    ToolSet,
    ToolSpec,
)
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, Lease, Outcome, RolloutKind
from rollout.prompts import make_prompts
from rollout.runner import EpisodeRunner, Identity

CONFIG = ToolServerConfig(
    call_timeout_s=0.5, isolation=IsolationConfig(profile="files", required="landlock")
)
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
EXPERIENCE, BACK, DONE = "<experience>-</experience>", "<trial/>", "<answer>42</answer>"
LONG = PhaseBudget(calls=12, turns=20)
IN_MEMORY = """
balance = 100
def account(action, amount=0):
    global balance
    if action == "hang":
        while True: pass
    if amount > balance: raise ValueError("insufficient funds")
    balance -= amount
    return balance
"""
IN_A_FILE = """
import os
def account(action, amount=0):
    if action == "hang":
        while True: pass
    balance = int(open("balance").read()) if os.path.exists("balance") else 100
    if amount > balance: raise ValueError("insufficient funds")
    with open("balance", "w") as file: file.write(str(balance - amount))
    return balance - amount
"""


def bank(source: str) -> ToolSet:
    properties = {"action": {"type": "string"}, "amount": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": ["action"]}
    tool = ToolSpec(name="account", description="A bank account.", parameters=parameters)
    return ToolSet(tools=(tool,), sources=(source,), functions=("account",))


def act(action: str, amount: int = 0) -> str:
    arguments = {"action": action, "amount": amount}
    return f"<tool_call>{json.dumps({'name': 'account', 'arguments': arguments})}</tool_call>"


def script(turns: Sequence[str]) -> Callable[[Sequence[Message], int], str]:
    def reply(messages: Sequence[Message], seed: int) -> str:
        return turns[sum(message.role == "assistant" for message in messages)]

    return reply


@dataclass(frozen=True, slots=True)
class Stage:
    """Where episodes of this module are played."""

    template: ChatTemplate
    task: Task

    async def play(self, tools: ToolService, turns: Sequence[str], **config: object) -> Episode:
        runner = EpisodeRunner(
            ScriptedEngine(script(turns), self.template),
            tools,
            self.template,
            Identity(worker="unit", max_model_len=8_192),
        )
        return await runner.run_episode(LEASE, self.task, EpisodeConfig.model_validate(config))


@pytest.fixture(scope="module")
def server() -> Iterator[ToolServerProcess]:
    with ToolServerProcess(CONFIG) as process:
        yield process


@pytest.fixture
async def tools(server: ToolServerProcess) -> AsyncIterator[ToolClient]:
    client = ToolClient(server.address, CONFIG, name="tools-0")
    yield client
    await client.close()


@pytest.fixture
def stage(template: ChatTemplate, task: Task) -> Stage:
    return Stage(template, replace(task, tool_set=bank(IN_MEMORY)))


@pytest.mark.parametrize("source", [IN_MEMORY, IN_A_FILE], ids=["memory", "file"])
@pytest.mark.parametrize(("sharing", "result"), [("isolated", "70"), ("shared", "insufficient")])
async def test_a_trial_that_empties_the_account_harms_execution_only_where_shared(
    stage: Stage, tools: ToolClient, source: str, sharing: str, result: str
) -> None:
    stage = replace(stage, task=replace(stage.task, tool_set=bank(source)))
    turns = (act("withdraw", 100), EXPERIENCE, act("withdraw", 30), DONE)
    episode = await stage.play(tools, turns, trial_sessions=sharing)
    assert episode.outcome is Outcome.ANSWERED, episode.error
    assert episode.calls[0].result == "0"
    assert result in episode.calls[1].result
    assert episode.tool_server == "tools-0"
    assert episode.isolation.startswith(("namespaces", "landlock"))


async def test_a_trial_after_execution_sees_its_state_and_leaves_it_alone(
    stage: Stage, tools: ToolClient
) -> None:
    turns = (
        *(act("withdraw", 100), EXPERIENCE),
        *(act("withdraw", 30), act("withdraw", 500), BACK),
        *(act("withdraw", 60), EXPERIENCE),
        *(act("withdraw", 20), BACK, act("balance"), EXPERIENCE, DONE),
    )
    episode = await stage.play(tools, turns, mode="free")
    assert episode.outcome is Outcome.ANSWERED, episode.error
    results = [call.result for call in episode.calls]
    assert results == ["0", "70", "ValueError: insufficient funds", "10", "50", "50"]
    assert (episode.extra["replayed_calls"], episode.extra["replay_differences"]) == (5.0, 0.0)


async def test_a_call_that_ran_out_of_time_is_not_repeated_by_the_replay(
    stage: Stage, tools: ToolClient
) -> None:
    """The sandbox begins again after it, so the state to return to is the first one."""
    turns = (
        *(EXPERIENCE, act("withdraw", 30), act("hang"), act("balance"), BACK),
        *(act("balance"), EXPERIENCE, act("balance"), DONE),
    )
    episode = await stage.play(tools, turns, mode="free")
    assert [call.status for call in episode.calls].count(AnswerStatus.TIMEOUT) == 1
    assert [call.result for call in episode.calls if call.status is AnswerStatus.OK] == [
        *("70", "100", "100", "100")
    ]
    assert (episode.extra["replayed_calls"], episode.extra["replay_differences"]) == (1.0, 0.0)


async def test_faults_of_an_adaptation_are_the_same_in_the_replay_after_a_time_out(
    stage: Stage, tools: ToolClient
) -> None:
    """Which call meets a fault depends on its number, so the replay must not leave out any."""
    base = bank(IN_MEMORY)
    rules = (CallRule(target="account"),)
    weather = Adaptation(level="heavy", seed=3, base=base, rules=rules, fault_rate=0.5)
    adapted = ToolSet(tools=base.tools, adaptation=weather)
    stage = replace(stage, task=replace(stage.task, tool_set=adapted))
    draws = (act("hang"), *(act("withdraw", 10) for _ in range(6)))
    turns = (EXPERIENCE, *draws, BACK, act("balance"), EXPERIENCE, DONE)
    episode = await stage.play(AdaptedTools(tools), turns, mode="free", execution=LONG)
    statuses = {call.status for call in episode.calls}
    assert {AnswerStatus.TIMEOUT, AnswerStatus.TOOL_ERROR, AnswerStatus.OK} <= statuses
    assert (episode.extra["replayed_calls"], episode.extra["replay_differences"]) == (7.0, 0.0)


async def test_in_free_mode_shared_sessions_are_one_session(
    stage: Stage, tools: ToolClient
) -> None:
    turns = (EXPERIENCE, act("withdraw", 30), BACK, act("withdraw", 60), EXPERIENCE, DONE)
    episode = await stage.play(tools, turns, mode="free", trial_sessions="shared")
    assert [call.result for call in episode.calls] == ["70", "10"]
    assert episode.extra["replayed_calls"] == 0.0


ANSWER = ToolAnswer(status=AnswerStatus.OK, text="70", seconds=0.0)
RETURN = (EXPERIENCE, act("balance"), BACK, act("balance"), EXPERIENCE, DONE)


class _Slow(ScriptedTools):
    """Its trial sessions need `seconds` for their first call, which is the replay."""

    def __init__(self, seconds: float) -> None:
        super().__init__(lambda call, before: ANSWER)
        self._seconds = seconds

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ScriptedSession:
        session = await super().open_session(tool_set, seed, purpose, episode)
        return _SlowSession(session, self._seconds) if purpose == "trial" else session  # type: ignore[return-value]


class _SlowSession:
    def __init__(self, session: ToolSession, seconds: float) -> None:
        self._session = session
        self._seconds = seconds
        self.id, self.isolation, self.server = session.id, session.isolation, session.server

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        seconds, self._seconds = self._seconds, 0.0
        await asyncio.sleep(seconds)
        return await self._session.call(calls)

    async def close(self) -> None:
        await self._session.close()


async def test_a_replay_is_on_nobodys_budget(stage: Stage) -> None:
    budget = PhaseBudget(calls=1, seconds=0.2)
    episode = await stage.play(_Slow(0.4), RETURN, mode="free", trial=budget)
    assert episode.outcome is Outcome.ANSWERED, episode.error
    assert episode.extra["trial_calls"] == 1.0
    assert episode.timings.tool_s > 0.4


async def test_a_replay_without_an_end_is_a_deadline(stage: Stage) -> None:
    budget = PhaseBudget(seconds=0.3)
    episode = await stage.play(_Slow(60.0), RETURN, mode="free", execution=budget)
    assert (episode.outcome, episode.reward) == (Outcome.DEADLINE, None)
    assert "the replay before a trial" in episode.error


async def test_a_replay_that_the_world_fails_ends_the_episode(stage: Stage) -> None:
    def dies_in_the_replay(call: ToolCall, before: list[ToolCall]) -> ToolAnswer:
        sessions = len(tools.sessions)
        status = AnswerStatus.INFRA_ERROR if sessions > 1 else AnswerStatus.OK
        return ToolAnswer(status=status, text="child died", seconds=0.0)

    tools = ScriptedTools(dies_in_the_replay)
    episode = await stage.play(tools, RETURN, mode="free")
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_FAILED, None)
    assert "the replay of account failed: child died" in episode.error
    assert [session.closed for session in tools.sessions] == [True, True]


async def test_a_server_lost_during_the_replay_ends_the_episode(stage: Stage) -> None:
    class Lost(ScriptedTools):
        async def open_session(
            self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
        ) -> ScriptedSession:
            if purpose == "trial":
                raise ToolServerError("the server went away")
            return await super().open_session(tool_set, seed, purpose, episode)

    episode = await stage.play(Lost(lambda call, before: ANSWER), RETURN, mode="free")
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_FAILED, None)
    assert "the server went away" in episode.error


async def test_tools_that_answer_otherwise_in_a_replay_are_counted(stage: Stage) -> None:
    def never_the_same(call: ToolCall, before: list[ToolCall]) -> ToolAnswer:
        return ToolAnswer(status=AnswerStatus.OK, text=f"{len(tools.sessions)}", seconds=0.0)

    tools = ScriptedTools(never_the_same)
    episode = await stage.play(tools, RETURN, mode="free")
    assert episode.outcome is Outcome.ANSWERED
    assert (episode.extra["replayed_calls"], episode.extra["replay_differences"]) == (1.0, 1.0)


async def test_without_trial_calls_left_nothing_is_replayed(stage: Stage) -> None:
    tools = ScriptedTools(lambda call, before: ANSWER)
    episode = await stage.play(
        tools, RETURN, mode="free", trial=PhaseBudget(calls=0), execution=PhaseBudget(calls=1)
    )
    assert episode.outcome is Outcome.ANSWERED
    assert [session.purpose for session in tools.sessions] == ["execution"]


class _Overhearing(ScriptedEngine):
    """Keeps what every turn was asked with."""

    def __init__(self, turns: Sequence[str], template: ChatTemplate) -> None:
        self.prompts: list[Prompt] = []
        super().__init__(lambda messages, seed: turns[len(self.prompts) - 1], template)

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        self.prompts.append(replace(prompt, token_ids=tuple(prompt.token_ids)))
        return await super().sample(prompt, params)


async def test_dropped_experience_leaves_execution_the_opening_alone(
    template: ChatTemplate, task: Task
) -> None:
    turns = (act("balance"), "<experience>it is 70</experience>", act("balance"), DONE)
    engine = _Overhearing(turns, template)
    tools = ScriptedTools(lambda call, before: ANSWER)
    runner = EpisodeRunner(engine, tools, template, Identity(worker="unit", max_model_len=8_192))
    task = replace(task, tool_set=bank(IN_MEMORY))
    episode = await runner.run_episode(LEASE, task, EpisodeConfig(experience="dropped"))
    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 1.0)
    assert (episode.extra["trial_calls"], episode.extra["execution_calls"]) == (1.0, 1.0)
    opening, trial, execution, last = (template.decode(p.token_ids) for p in engine.prompts)
    assert "it is 70" not in execution and "70" in trial
    assert execution.startswith(opening.removesuffix("<|im_start|>assistant\n"))
    assert [m.role for m in engine.prompts[2].messages] == ["system", "user", "user"]
    assert last.startswith(execution), "from there on the sequence only grows"
    for turn, prompt in zip(episode.turns, engine.prompts, strict=True):
        seen = len(prompt.token_ids)
        assert episode.token_ids_T[turn.start - seen : turn.start] == prompt.token_ids


@pytest.mark.parametrize(
    ("experience", "outcome"), [("carried", Outcome.TRUNCATED), ("dropped", Outcome.ANSWERED)]
)
async def test_dropped_trials_take_no_room_from_execution(
    template: ChatTemplate, task: Task, experience: str, outcome: Outcome
) -> None:
    task = replace(task, tool_set=bank(IN_MEMORY))
    notes = f"<experience>{'it is 70 ' * 20}</experience>"
    engine = _Overhearing((act("balance"), notes, act("balance"), DONE), template)
    opening = make_prompts("hermes", wrap_answers=not template.wraps_answers).opening(
        task, "trial", EpisodeConfig().trial.calls
    )
    room = Identity(worker="unit", max_model_len=len(template.prompt(opening)) + 500)
    runner = EpisodeRunner(engine, ScriptedTools(lambda call, before: ANSWER), template, room)
    config = EpisodeConfig.model_validate({"experience": experience})
    assert (await runner.run_episode(LEASE, task, config)).outcome is outcome
