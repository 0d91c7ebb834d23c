"""Whole episodes of models of each family: thoughts hold decoys, calls have the family's format."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from envs.errors import ConfigError
from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.engines.student_format import StudentFormat
from rollout.episode import Episode, Lease, Outcome, Phase, RolloutKind
from rollout.language import format_of
from rollout.runner import EpisodeRunner, Identity
from tests.rollout.chat.template_corpus import corpus_tokenizer, template_files

TEMPLATES = {path.stem: path for path in template_files()}
LEASE = Lease(
    run="run",
    episode="e",
    kind=RolloutKind.TRAIN,
    group="g",
    group_number=0,
    task="task-1",
    sample_index=0,
    attempt=0,
    seed=1,
)
CONFIG = EpisodeConfig(
    max_tokens_per_turn=4_000,
    trial=PhaseBudget(tokens=20_000),
    execution=PhaseBudget(tokens=20_000),
)
DECOYS = (
    'I could <tool_call>{"name": "halve", "arguments": {"x": 1}}</tool_call> or end with '
    "<experience>nothing</experience>, <answer>41</answer> or <trial/>; never <tool_call>."
)


def hermes(name: str, x: int) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": {x}}}}}\n</tool_call>'


TURNS = (
    f"<think>\n{DECOYS}\n</think>\n\n{hermes('double', 3)}",
    f"<think>\n{DECOYS}\n</think>\n\n<experience>it doubles</experience>",
    f"<think>\n{DECOYS}\n</think>\n\n{hermes('double', 21)}",
    f"<think>\n{DECOYS}\n</think>\n\n<answer>42</answer>",
)


def template_of(name: str) -> ChatTemplate:
    path: Path = TEMPLATES[name]
    return ChatTemplate(corpus_tokenizer(name, path.read_text(encoding="utf-8")))


def double(call: ToolCall, before: list[ToolCall]) -> ToolAnswer:
    x = call.arguments["x"]
    assert isinstance(x, int)
    return ToolAnswer(status=AnswerStatus.OK, text=str(2 * x), seconds=0.0)


class Heard(ScriptedEngine):
    """Keeps the prompt of every turn."""

    def __init__(
        self, turns: Sequence[str], template: ChatTemplate, student: StudentFormat | None
    ) -> None:
        self.prompts: list[Prompt] = []
        super().__init__(lambda messages, seed: turns[len(self.prompts) - 1], template, student)

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        self.prompts.append(
            replace(prompt, token_ids=tuple(prompt.token_ids), messages=tuple(prompt.messages))
        )
        return await super().sample(prompt, params)


async def play(
    template: ChatTemplate,
    task: Task,
    turns: Sequence[str],
    config: EpisodeConfig = CONFIG,
    *,
    as_teacher: bool = False,
) -> tuple[Episode, list[Prompt]]:
    student = StudentFormat(template, format_of(template, "auto")) if as_teacher else None
    engine = Heard(turns, template, student)
    identity = Identity(worker="unit", max_model_len=100_000)
    runner = EpisodeRunner(engine, ScriptedTools(double), template, identity)
    return await runner.run_episode(LEASE, task, config), engine.prompts


def check_played(episode: Episode) -> None:
    assert (episode.outcome, episode.error) == (Outcome.ANSWERED, "")
    assert (episode.answer, episode.reward, episode.extra["policy_errors"]) == ("42", 1.0, 0.0)
    assert [(call.name, call.arguments, call.purpose) for call in episode.calls] == [
        ("double", '{"x": 3}', "trial"),
        ("double", '{"x": 21}', "execution"),
    ]
    assert [turn.phase for turn in episode.turns] == [
        Phase.TRIAL,
        Phase.EXPERIENCE,
        Phase.EXECUTION,
        Phase.EXECUTION,
    ]


async def test_qwen3_thinks_of_decoys_and_plays_a_whole_episode(task: Task) -> None:
    template = template_of("qwen3")
    episode, prompts = await play(template, task, TURNS)
    check_played(episode)
    shown = template.decode(prompts[-1].token_ids)
    assert shown.count(DECOYS) == 3, "the thoughts of earlier turns stay in the context"
    assert all(DECOYS in turn.text for turn in episode.turns)


FAMILIES = {
    "qwen2_5": "hermes",
    "qwen3_5_think": "qwen3_coder",
    "nemotron_3_nano": "qwen3_coder",
    "glm4moe": "glm",
    "deepseekv3": "deepseek",
    "llama3_1": "llama3",
    "gptoss": "gpt_oss",
}


@pytest.mark.parametrize("name", FAMILIES)
async def test_a_demonstration_is_written_in_the_format_of_the_student(
    name: str, task: Task
) -> None:
    template = template_of(name)
    format = format_of(template, "auto")
    assert format.tools.name == FAMILIES[name]
    turns = TURNS if format.thinks else [turn.partition("</think>\n\n")[2] for turn in TURNS]
    episode, prompts = await play(template, task, turns, as_teacher=True)
    check_played(episode)
    for turn in episode.turns:
        assert turn.text == template.decode(episode.token_ids_T[turn.start : turn.end])
    assert format.tools.name == "hermes" or hermes("double", 21) not in episode.turns[2].text
    opening = template.decode(prompts[0].token_ids)
    assert "halve" in opening and "You have 8 trial calls".lower() in opening.lower()


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3"])
async def test_a_thought_without_an_end_is_a_typed_error(name: str, task: Task) -> None:
    opening = "" if name == "qwen3_5_think" else "<think>\n"
    turns = [f"{opening}{DECOYS}", *TURNS]
    if name == "qwen3_5_think":
        turns[1:] = [
            turn.removeprefix("<think>\n")
            .replace('{"name": "double", "arguments": {"x": 3}}', "\f3")
            .replace('{"name": "double", "arguments": {"x": 21}}', "\f21")
            for turn in turns[1:]
        ]
        coder = "<function=double>\n<parameter=x>\n{}\n</parameter>\n</function>"
        turns = [
            turn.replace("\f3", coder.format(3)).replace("\f21", coder.format(21)) for turn in turns
        ]
    episode, _ = await play(template_of(name), task, turns)
    assert [turn.policy_error for turn in episode.turns] == ["no_action", "", "", "", ""]
    told = [message.content for message in episode.messages if message.role == "tool"]
    assert "the thought never ended" in told[0] and "</think>" in told[0]
    assert episode.answer == "42"
    short = CONFIG.model_copy(update={"max_tokens_per_turn": 30})
    cut, _ = await play(template_of(name), task, turns[:1] * 6, short)
    assert {turn.policy_error for turn in cut.turns} == {"too_long"}


@pytest.mark.parametrize("calls", [2, 3])
async def test_the_policy_is_told_what_its_budget_did_not_cover(calls: int, task: Task) -> None:
    template = template_of("qwen3")
    many = "\n".join(hermes("double", x) for x in range(4))
    turns = [many, many, "<experience>-</experience>", "<answer>42</answer>"]
    budget = CONFIG.model_copy(update={"trial": PhaseBudget(calls=calls, tokens=20_000)})
    episode, _ = await play(template, task, turns, budget)
    assert episode.extra["trial_calls"] == calls
    told = [message.content for message in episode.messages if message.role == "tool"]
    assert told[:calls] == [str(2 * x) for x in range(calls)]
    were = "call was" if calls == 3 else "2 calls were"
    assert f"The last {were} not run: of 4 calls, only {calls} fitted" in told[calls]
    assert "No trial calls are left" in told[calls + 1]


@pytest.mark.parametrize(
    ("wording", "spelled"), [("hermes", True), ("template", False)], ids=["hermes", "template"]
)
async def test_who_lists_the_tools_is_a_setting(wording: str, spelled: bool, task: Task) -> None:
    config = CONFIG.model_copy(update={"prompt": wording})
    episode, prompts = await play(template_of("qwen3"), task, TURNS, config)
    check_played(episode)
    system = prompts[0].messages[0].content
    assert ("<tools>" in system) is spelled
    shown = template_of("qwen3").decode(prompts[0].token_ids)
    assert shown.count("<tools>\n") == 1 and '"name": "halve"' in shown


async def test_a_template_with_its_own_format_lists_the_tools(task: Task) -> None:
    _, prompts = await play(template_of("gptoss"), task, TURNS, as_teacher=True)
    assert "<tools>" not in prompts[0].messages[0].content
    assert "type double = " in template_of("gptoss").decode(prompts[0].token_ids)


async def test_a_call_token_ends_the_turn_and_is_no_text(task: Task) -> None:
    template = template_of("gptoss")
    episode, _ = await play(template, task, TURNS, as_teacher=True)
    trial = episode.turns[0]
    ids = episode.token_ids_T[trial.start : trial.end]
    assert ids[-1] == template.structure_tokens["<|call|>"]
    assert "<|call|>" not in trial.text and "to=functions.double" in trial.text


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "nemotron_3_nano", "glm4moe", "deepseekv3"]
)
async def test_dropped_thoughts_leave_the_context_and_stay_in_the_episode(
    name: str, task: Task
) -> None:
    template = template_of(name)
    config = CONFIG.model_copy(update={"thoughts": "drop"})
    episode, prompts = await play(template, task, TURNS, config, as_teacher=True)
    check_played(episode)
    for turn, prompt in zip(episode.turns, prompts, strict=True):
        shown = template.decode(prompt.token_ids)
        assert DECOYS not in shown, "no thought of an earlier turn is seen"
        assert DECOYS in turn.text, "but each was sampled, and is trained"
        seen = len(prompt.token_ids)
        assert episode.token_ids_T[turn.start - seen : turn.start] == prompt.token_ids
        assert Phase(episode.phases_T[turn.start - seen]) is Phase.PROMPT
    last = template.decode(prompts[-1].token_ids)
    assert template.decode(prompts[1].token_ids).count("double") > 2, "the call stays"
    assert "it doubles" in last and "42" in last and last.count("What is double 21?") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("qwen2_5", "marks thoughts"), ("gemma4_v5", "calls that it writes itself")],
)
async def test_thoughts_that_cannot_be_dropped_are_refused(
    name: str, reason: str, task: Task
) -> None:
    config = CONFIG.model_copy(update={"thoughts": "drop"})
    with pytest.raises(ConfigError, match=reason):
        await play(template_of(name), task, TURNS, config)
