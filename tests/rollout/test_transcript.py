"""A transcript tells the whole episode to somebody who has never seen the project."""

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
played by the model with weights of version 3, 4; mode 'trial': trials first, then execution
depth 1

Instructions
    You may call tools.

Question
    What is double 21?

── Trials: the model tries the tools out; nothing they change lasts ────────────────────────────
  Turn 1 (1 tokens)
    Let me see.
    calls double {"x": 3}
      returned (250.0 ms): 6
    calls double {"x": "a"}
      failed (1.0 ms): ValueError
  Turn 2 (1 tokens, cut off at its token limit)
    <tool_call>{"name": "dou
    ! not accepted: unclosed tag
    told: error: <tool_call> has no end

── Experience: what the model writes down after its trials ─────────────────────────────────────
  Turn 3 (1 tokens)
    It doubles.

── Execution: the model works on the question ──────────────────────────────────────────────────
  Turn 4 (4 tokens)
    42

── Result ──────────────────────────────────────────────────────────────────────────────────────
  Outcome  answered
  Answer   42
  Reward   0.90  (correct +1.00, malformed -0.10)
  Cost     2 trial calls, 0 execution calls, 7 of 12 tokens the model's own
  Seconds  1.50 in all: 1.00 generating, 0.25 in tools, 0.25 waiting
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
        Turn(Phase.TRIAL, 4, 5, "Let me see.\n<tool_call>{}\n</tool_call>", "stop", "", calls),
        Turn(Phase.TRIAL, 5, 6, '<tool_call>{"name": "dou', "length", "unclosed_tag"),
        Turn(Phase.EXPERIENCE, 6, 7, "<experience>It doubles.</experience>", "stop", ""),
        Turn(Phase.EXECUTION, 8, 12, "<answer>42</answer>", "stop", ""),
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


def test_the_worlds_failure_is_not_put_on_the_model(episode_with: Callable[..., Episode]) -> None:
    text = render(episode_with(outcome=Outcome.INFRA_FAILED, source="careful"))
    assert "Outcome  the world failed (not the model's doing: no reward)" in text
    assert "Error    the server went away" in text
    assert "played by the teacher 'careful'" in text
    assert "Reward" not in text and "Answer" not in text


def test_hostile_output_cannot_reach_the_terminal(episode: Episode) -> None:
    hostile = call(AnswerStatus.OK, "\x1b[2J\x9b31m\rfake\u202e" + "y" * 5_000)
    turn = replace(episode.turns[0], calls=(hostile,))
    text = render(replace(episode, turns=(turn, *episode.turns[1:]), question="a\x1b]0;b\x07"))
    assert not any(char in text for char in "\x1b\x9b\r\x07\u202e")
    assert r"\x1b[2J\x9b31m\rfake\u202e" in text
    assert f"({5_000 + 14 - LONGEST_TEXT:,} more characters)" in text.replace("\n           ", "")
    assert max(map(len, text.splitlines())) <= 100
