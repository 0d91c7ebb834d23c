"""Evaluation summaries against numbers worked out by hand."""

import json
import math
from dataclasses import replace

import pytest

from envs.tools import AnswerStatus
from rollout.engine import VersionSpan
from rollout.episode import (
    CallRecord,
    Episode,
    Lease,
    Outcome,
    Phase,
    RolloutKind,
    Sampling,
    Timings,
    Turn,
)
from rollout.evaluation.summary import EvalRow, summarise


def row(task: str, outcome: Outcome, answer: float = 0.0, **changes: object) -> EvalRow:
    fields: dict[str, object] = {
        "task": task,
        "outcome": outcome,
        "error": "",
        "parts": {"answer": answer, "malformed": 0.0} if outcome.counts else {},
        "trial_calls": 0,
        "execution_calls": 0,
        "tool_errors": 0,
        "turns": 1,
        "policy_errors": {},
        "sampled_tokens": 0,
        "started_at": 100.0,
        "ended_at": 100.0,
    }
    return EvalRow(**(fields | changes))  # pyright: ignore[reportArgumentType]


def test_world_failures_are_reported_and_kept_out_of_accuracy() -> None:
    summary = summarise(
        [
            row("a", Outcome.ANSWERED, 1.0),
            row("b", Outcome.ANSWERED, 0.0),
            row("c", Outcome.TRUNCATED),
            row("d", Outcome.POLICY_ERROR),
            row("e", Outcome.INFRA_FAILED, error="ToolServerError: gone"),
            row("e", Outcome.INFRA_FAILED, error="ToolServerError: gone"),
            row("f", Outcome.DEADLINE),
        ]
    )
    assert (summary.tasks, summary.episodes, summary.counted) == (6, 7, 4)
    assert summary.accuracy == 0.25
    assert summary.outcomes == {
        "answered": 2,
        "truncated": 1,
        "policy_error": 1,
        "infra_failed": 2,
        "deadline": 1,
    }
    assert summary.failures == {"ToolServerError: gone": 2, "deadline": 1}


def test_accuracy_is_of_answers_not_of_rewards_with_penalties() -> None:
    penalised = {"answer": 1.0, "malformed": -0.1, "exact": 0.0}
    plain = {"answer": 1.0, "malformed": 0.0, "exact": 1.0}
    summary = summarise(
        [row("a", Outcome.ANSWERED, parts=penalised), row("b", Outcome.ANSWERED, parts=plain)]
    )
    assert summary.accuracy == 1.0
    assert summary.parts == {"answer": 1.0, "malformed": -0.05, "exact": 0.5}


def test_every_task_weighs_the_same_however_many_of_its_samples_count() -> None:
    rows = [row("a", Outcome.ANSWERED, 1.0)] * 3 + [row("b", Outcome.ANSWERED, 0.0)]
    summary = summarise([*rows, row("b", Outcome.INFRA_FAILED), row("b", Outcome.DEADLINE)])
    # task means 1 and 0: mean 0.5, s = sqrt(0.5), s / sqrt(2) = 0.5
    assert (summary.accuracy, summary.stderr) == (0.5, 0.5)


def test_a_score_that_is_no_number_does_not_count() -> None:
    summary = summarise(
        [row("a", Outcome.ANSWERED, math.nan), row("b", Outcome.ANSWERED, 1.0, parts={"x": 1.0})]
    )
    assert (summary.counted, summary.accuracy) == (1, 0.0)
    assert summary.failures == {"score is not a number": 1}


@pytest.mark.parametrize("tasks", [[], ["a"], ["a", "a"]])
def test_stderr_needs_two_tasks(tasks: list[str]) -> None:
    assert summarise([row(task, Outcome.ANSWERED, 1.0) for task in tasks]).stderr is None


def test_calls_rates_and_faults_are_over_episodes_that_count() -> None:
    summary = summarise(
        [
            row("a", Outcome.ANSWERED, trial_calls=3, execution_calls=1, tool_errors=1, turns=5),
            row(
                "b",
                Outcome.POLICY_ERROR,
                execution_calls=1,
                turns=5,
                policy_errors={"malformed_json": 2, "no_action": 1},
            ),
            row("c", Outcome.INFRA_FAILED, trial_calls=50, tool_errors=50, turns=90),
        ]
    )
    assert summary.calls_per_episode == 2.5
    assert summary.trial_calls_per_episode == 1.5
    assert summary.tool_error_rate == 0.2
    assert summary.malformed_rate == 0.3
    assert summary.policy_errors == {"malformed_json": 2, "no_action": 1}


def test_tokens_per_second_is_over_the_time_in_which_something_ran() -> None:
    rows = [
        row("a", Outcome.ANSWERED, sampled_tokens=300, started_at=10.0, ended_at=14.0),
        row("b", Outcome.INFRA_FAILED, sampled_tokens=100, started_at=12.0, ended_at=20.0),
        row("c", Outcome.ANSWERED, sampled_tokens=100, started_at=90.0, ended_at=100.0),
    ]
    summary = summarise(rows)
    assert (summary.sampled_tokens, summary.wall_s, summary.tokens_per_s) == (500, 20.0, 25.0)


def test_nothing_counted_leaves_ratios_open() -> None:
    for rows in ([], [row("a", Outcome.CANCELLED)]):
        summary = summarise(rows)
        assert summary.accuracy is summary.stderr is summary.malformed_rate is None
        assert summary.calls_per_episode is summary.tool_error_rate is None
        assert summary.tokens_per_s is None


def test_json_is_plain() -> None:
    summary = summarise([row("a", Outcome.ANSWERED, 1.0), row("b", Outcome.ANSWERED, 1.0)])
    read = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert read["accuracy"] == 1.0
    assert read["stderr"] == 0.0
    assert read["outcomes"] == {"answered": 2}
    assert {"tasks", "episodes", "tokens_per_s"} <= read.keys()


def call(status: AnswerStatus, purpose: str) -> CallRecord:
    assert purpose in ("trial", "execution")
    return CallRecord(
        name="find",
        arguments="{}",
        status=status,
        result="",
        seconds=0.1,
        cpu_seconds=0.1,
        purpose=purpose,
    )


def turn(phase: Phase, start: int, end: int, *calls: CallRecord, policy_error: str = "") -> Turn:
    return Turn(
        phase=phase,
        start=start,
        end=end,
        text="",
        finish_reason="stop",
        policy_error=policy_error,
        calls=calls,
    )


def test_row_of_an_episode() -> None:
    turns = (
        turn(Phase.TRIAL, 2, 4, call(AnswerStatus.TIMEOUT, "trial")),
        turn(Phase.TRIAL, 5, 6, policy_error="malformed_json"),
        turn(
            Phase.EXECUTION,
            6,
            7,
            call(AnswerStatus.TOOL_ERROR, "execution"),
            call(AnswerStatus.OK, "execution"),
        ),
    )
    phases = (0, 0, 1, 1, 4, 1, 3)
    episode = Episode(
        lease=Lease(
            run="run",
            episode="episode",
            kind=RolloutKind.TRAIN,
            group="group",
            group_number=0,
            task="toolhop-7",
            sample_index=0,
            attempt=0,
            seed=1,
        ),
        environment="toolhop",
        split="heldout",
        mode="trial",
        outcome=Outcome.ANSWERED,
        error="",
        reward=0.9,
        reward_parts={"answer": 1.0, "malformed": -0.1},
        answer="12",
        question="?",
        tags={"depth": "2"},
        token_ids_T=tuple(range(7)),
        phases_T=phases,
        logprobs_T=(math.nan, math.nan, -1.0, -1.0, math.nan, -1.0, -1.0),
        spans=(VersionSpan(2, 0),),
        turns=turns,
        messages=(),
        sampling=Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1),
        timings=Timings(started_at=50.0, wall_s=2.5, queue_s=0.0, generate_s=2.0, tool_s=0.5),
        source="policy",
        worker="w0",
        tool_server="t0",
        isolation="namespaces",
    )
    found = EvalRow.of(episode)
    assert (found.task, found.outcome) == ("toolhop-7", Outcome.ANSWERED)
    assert (found.trial_calls, found.execution_calls, found.tool_errors) == (1, 2, 2)
    assert (found.turns, found.policy_errors) == (3, {"malformed_json": 1})
    assert (found.sampled_tokens, found.started_at, found.ended_at) == (4, 50.0, 52.5)
    assert (found.answer, found.split, found.tags) == ("12", "heldout", {"depth": "2"})
    assert found.question == EvalRow.of(replace(episode, answer="")).question
    assert found.question != EvalRow.of(replace(episode, question="!")).question
    assert summarise([episode]) == summarise([found])
