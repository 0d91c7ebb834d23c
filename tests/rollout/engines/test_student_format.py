"""A teacher reads and writes Hermes or native calls; the episode has them as the student writes."""

import json
from collections.abc import Sequence

import pytest

from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_engine import OpenAIEngine, TeacherTask
from rollout.engines.student_format import StudentFormat
from rollout.episode import Lease, Outcome, RolloutKind
from rollout.language import format_of
from rollout.runner import EpisodeRunner, Identity
from tests.rollout.chat.template_corpus import corpus_tokenizer, template_files
from tests.rollout.engines.fake_endpoint import (
    NATIVE,
    PROMPT,
    Answer,
    FakeEndpoint,
    call,
    native_call,
    says,
)

TEMPLATES = {path.stem: path for path in template_files()}
LEASE = Lease(
    run="run",
    episode="e1",
    kind=RolloutKind.COLLECT,
    group="g1",
    group_number=1,
    task="task-1",
    sample_index=0,
    attempt=0,
    seed=7,
)
THOUGHT = "<think>a small value: <tool_call> <answer>1</answer></think>"
TEXT = (
    says(f"{THOUGHT}I try. {call('double', 3)}"),
    says("<experience>it doubles</experience><|call|>"),
    says(call("double", 21)),
    says("<answer>42</answer>"),
)
CALLED = (
    says("I try.", reasoning="a small value", **native_call("double", {"x": 3})),
    says("<experience>it doubles</experience>"),
    says(None, "tool_calls", **native_call("double", {"x": 21})),
    says("<answer>42</answer>"),
)
STUDENTS = {
    "qwen2_5": '<tool_call>{"name": "double", "arguments": {"x": 21}}</tool_call>',
    "qwen3_5_think": "<function=double>\n<parameter=x>\n21\n</parameter>",
    "glm4moe": "<arg_key>x</arg_key>\n<arg_value>21</arg_value>",
    "gptoss": 'commentary to=functions.double <|constrain|>json<|message|>{"x": 21}',
    "llama3_1": '{"name": "double", "parameters": {"x": 21}}',
}


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(corpus_tokenizer(name, TEMPLATES[name].read_text(encoding="utf-8")))


def double(made: ToolCall, before: list[ToolCall]) -> ToolAnswer:
    return ToolAnswer(
        status=AnswerStatus.OK, text=str(2 * int(str(made.arguments["x"]))), seconds=0
    )


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("thinking", ["drop", "keep"])
@pytest.mark.parametrize(("config", "answers"), [(PROMPT, TEXT), (NATIVE, CALLED)])
async def test_an_endpoints_calls_become_the_students(
    student: str, thinking: str, config: EndpointConfig, answers: Sequence[Answer], task: Task
) -> None:
    template, endpoint = template_of(student), FakeEndpoint(answers)
    config = config.model_copy(update={"thinking": thinking})
    episode = EpisodeConfig(max_tokens_per_turn=2_000)
    engine = OpenAIEngine(endpoint.client(config), config, template, TeacherTask(task, episode))
    identity = Identity(worker="unit", source="m", max_model_len=50_000)
    runner = EpisodeRunner(engine, ScriptedTools(double), template, identity)
    played = await runner.run_episode(LEASE, task, episode)
    assert (played.outcome, played.answer, played.error) == (Outcome.ANSWERED, "42", "")
    assert [made.arguments for made in played.calls] == ['{"x": 3}', '{"x": 21}']
    text = played.turns[2].text
    assert STUDENTS[student].replace("\n", "") in text.replace("\n", "").replace("</think>", "")
    assert ("a small value" in played.turns[0].text) is (thinking == "keep")
    foreign = StudentFormat(template, format_of(template, "auto")).foreign_tokens
    assert not any(token in turn.text for token in foreign for turn in played.turns)
    said = json.dumps(endpoint.requests[-1]["messages"])
    assert "halve" in json.dumps(endpoint.requests[-1]), "the teacher is told the tools"
    if config.tool_format == "native":
        (asked,) = endpoint.requests[-1]["messages"][-2]["tool_calls"]
        assert json.loads(asked["function"]["arguments"]) == {"x": 21}
    else:
        assert "<tool_call>" in said and "<function=" not in said and "<|channel|>" not in said
