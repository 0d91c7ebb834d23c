"""A transcript shows the complete episode to a reader who does not know the project."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.messages import Message
from envs.tools import AnswerStatus
from rollout.episode import CallRecord, Episode, Outcome, Phase, Turn
from rollout.transcript import LONGEST_TEXT, render

EXPECTED = """\
── Episode e0 ──────────────────────────────────────────────────────────────────────────────────
task task-1 (unit, train), sample 0 of group g0
run by the model with weights of version 3, 4; mode 'trial': trials first, then execution
depth 1

Instructions
    You may call tools.

Question
    What is double 21?

── Trials: the model tests the tools; their changes are discarded ──────────────────────────────
  Turn 1 (1 tokens)
    Let me see.
    calls double {"x": 3}
      returned (250.0 ms): 6
    calls double {"x": "a"}
      failed (1.0 ms): ValueError
  Turn 2 (1 tokens, cut off at its token limit)
    <tool_call>{"name": "dou
    ! not accepted: unclosed tag
    message: error: <tool_call> has no end

── Experience: the model's notes after its trials ──────────────────────────────────────────────
  Turn 3 (1 tokens)
    It doubles.

── Execution: the model works on the question ──────────────────────────────────────────────────
  Turn 4 (4 tokens)
    42

── Result ──────────────────────────────────────────────────────────────────────────────────────
  Outcome  answered
  Answer   42
  Reward   0.90  (correct +1.00, malformed -0.10)
  Cost     2 trial calls, 0 execution calls, 7 of 12 tokens sampled by the model
  Seconds  1.50 in total: 1.00 generating, 0.25 in tools, 0.25 waiting
"""


def call(status: AnswerStatus, result: str) -> CallRecord:
    return CallRecord(
        name="double",
        arguments='{"x": "a"}',
        status=status,
        result=result,
        seconds=0.001,
        cpu_seconds=0.0,
        purpose="trial",
    )


@pytest.fixture
def episode(episode_with: Callable[..., Episode]) -> Episode:
    plain = episode_with()
    calls = (plain.calls[0], call(AnswerStatus.TOOL_ERROR, "ValueError"))
    turns = (
        Turn(
            phase=Phase.TRIAL,
            start=4,
            end=5,
            text="Let me see.\n<tool_call>{}\n</tool_call>",
            finish_reason="stop",
            policy_error="",
            calls=calls,
        ),
        Turn(
            phase=Phase.TRIAL,
            start=5,
            end=6,
            text='<tool_call>{"name": "dou',
            finish_reason="length",
            policy_error="unclosed_tag",
        ),
        Turn(
            phase=Phase.EXPERIENCE,
            start=6,
            end=7,
            text="<experience>It doubles.</experience>",
            finish_reason="stop",
            policy_error="",
        ),
        Turn(
            phase=Phase.EXECUTION,
            start=8,
            end=12,
            text="<answer>42</answer>",
            finish_reason="stop",
            policy_error="",
        ),
    )
    said = [Message("assistant", turn.text) for turn in turns]
    messages = (
        Message("system", "You may call tools."),
        Message("user", plain.question),
        said[0],
        Message("tool", "6"),
        Message("tool", "error: ValueError"),
        said[1],
        Message("tool", "error: <tool_call> has no end"),
        said[2],
        Message("user", "go"),
        said[3],
    )
    parts = {"correct": 1.0, "malformed": -0.1}
    return replace(plain, turns=turns, messages=messages, reward=0.9, reward_parts=parts)


def test_an_episode_reads_from_question_to_reward(episode: Episode) -> None:
    assert render(episode) == EXPECTED


def test_an_infrastructure_failure_is_not_blamed_on_the_model(
    episode_with: Callable[..., Episode],
) -> None:
    text = render(episode_with(outcome=Outcome.INFRA_FAILED, source="careful"))
    assert "Outcome  infrastructure failure (not caused by the model: no reward)" in text
    assert "Error    the server went away" in text
    assert "run by the teacher 'careful'" in text
    assert "Reward" not in text and "Answer" not in text


def test_hostile_output_cannot_reach_the_terminal(episode: Episode) -> None:
    hostile = call(AnswerStatus.OK, "\x1b[2J\x9b31m\rfake\u202e" + "y" * 5_000)
    turn = replace(episode.turns[0], calls=(hostile,))
    text = render(replace(episode, turns=(turn, *episode.turns[1:]), question="a\x1b]0;b\x07"))
    assert not any(char in text for char in "\x1b\x9b\r\x07\u202e")
    assert r"\x1b[2J\x9b31m\rfake\u202e" in text
    assert f"({5_000 + 14 - LONGEST_TEXT:,} more characters)" in text.replace("\n           ", "")
    assert max(map(len, text.splitlines())) <= 100
