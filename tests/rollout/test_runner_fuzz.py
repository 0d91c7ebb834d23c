"""Ten thousand malformed completions leave the runner with typed outcomes and no exception."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.errors import PolicyErrorKind, ToolServerError
from envs.messages import Message
from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer, ToolCall
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease, Outcome, RolloutKind
from rollout.runner import EpisodeRunner, Identity

FEW, MANY, TURNS = 30, 500, 20
"""500 examples of 20 completions: 10,000."""

PIECES = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<experience>",
        "</experience>",
        "<answer>",
        "</answer>",
        "<trial/>",
    ),
    *("<tool_call", "</answer", "<|im_end|>", "<|im_start|>tool\n", "<tool_response>", "</think>"),
    *('{"name": "double", "arguments": {"x": 1}}', '{"name": "halve", "arguments": {"x": "1"}}'),
    *(
        '{"name": "triple", "arguments": {}}',
        '{"name": "double"}',
        '{"name": ',
        '"arguments": ',
        "{",
        "}",
        "[",
        "]",
    ),
    *(
        '"x"',
        ":",
        ",",
        "1e999",
        "-0",
        "NaN",
        "Infinity",
        "null",
        "true",
        "9" * 400,
        "[" * 300,
        '{"x":' * 40,
    ),
    *(
        "\\ud800",
        "\\u0000",
        "\x00",
        "\ufeff",
        "\u202e",
        "é",
        "\U0001f600",
        "\r\n",
        " ",
        "x" * 300,
        "'",
        '"',
        "\\",
    ),
)
whole_calls = st.sampled_from(PIECES).map(lambda body: f"<tool_call>{body}</tool_call>")
completions = st.lists(st.sampled_from(PIECES) | whole_calls | st.text(max_size=3), max_size=7).map(
    "".join
)


def answer(call: ToolCall, before: list[ToolCall]) -> ToolAnswer:
    return ToolAnswer(status=AnswerStatus.OK, text=repr(call.arguments), seconds=0.0)


completions_seen = count()


def play(template: ChatTemplate, task: Task, turns: list[str], mode: str) -> None:
    """Play episodes until every completion of `turns` was the policy's."""
    left = list(turns)

    def reply(messages: Sequence[Message], seed: int) -> str:
        if not left:
            raise ToolServerError("the script is over")
        next(completions_seen)
        return left.pop()

    async def play_all() -> None:
        tools = ScriptedTools(answer)
        runner = EpisodeRunner(
            ScriptedEngine(reply, template),
            tools,
            template,
            Identity(worker="fuzz", max_model_len=100_000),
        )
        budget = PhaseBudget(turns=TURNS // 2, tokens=50_000)
        config = EpisodeConfig.model_validate(
            {
                "mode": mode,
                "trial": budget,
                "execution": budget,
                "max_policy_errors": 10,
                "max_tokens_per_turn": 2_000,
            }
        )
        while left:
            episode = await runner.run_episode(
                Lease(
                    run="run",
                    episode="e",
                    kind=RolloutKind.TRAIN,
                    group="g",
                    group_number=0,
                    task=task.id,
                    sample_index=0,
                    attempt=0,
                    seed=1,
                ),
                task,
                config,
            )
            over = episode.error == "ToolServerError: the script is over"
            assert episode.outcome.counts or (over and episode.outcome is Outcome.INFRA_FAILED), (
                episode.error
            )
            kinds = {turn.policy_error for turn in episode.turns} - {""}
            assert kinds <= set(PolicyErrorKind)
            assert all(session.closed for session in tools.sessions)

    asyncio.run(play_all())


def fuzzed(examples: int) -> Callable[..., None]:
    """Return the test that plays so many scripts, the same ones each time."""
    scripts = given(
        turns=st.lists(completions, min_size=TURNS, max_size=TURNS),
        mode=st.sampled_from(["direct", "trial", "free"]),
    )
    drawn = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.function_scoped_fixture),
        database=None,
        derandomize=True,
    )
    return drawn(scripts(play))


test_malformed_completions = fuzzed(FEW)
test_ten_thousand_malformed_completions = pytest.mark.real(fuzzed(MANY))


@pytest.mark.parametrize("size", ["few", pytest.param("many", marks=pytest.mark.real)])
def test_all_were_played(size: str, request: pytest.FixtureRequest) -> None:
    """Count the completions of the collected tests; those of size "many" are real tests."""
    collected = [item.name for item in request.session.items]
    examples = FEW * ("test_malformed_completions" in collected)
    examples += MANY * ("test_ten_thousand_malformed_completions" in collected)
    assert next(completions_seen) >= examples * TURNS
