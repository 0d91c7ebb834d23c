from dataclasses import replace

import numpy as np
import pytest

from envs.errors import LearnerError
from learner.batch import phase_weights, read_episodes
from learner.config import LearnerConfig, PhaseWeights
from learner.report import Scores, annotate, step_metrics
from learner.selection import select
from rollout.episode import Outcome


def test_each_episode_left_out_says_why(make_episode, make_table) -> None:
    episodes = [
        make_episode(0, reward=1.0),
        make_episode(1, reward=0.0),
        make_episode(2, reward=None, outcome=Outcome.INFRA_FAILED),
        make_episode(3, reward=0.0, outcome=Outcome.TRUNCATED),
        make_episode(4, reward=1.0, temperature=0.0),
        make_episode(5, reward=1.0, group="g1"),
        make_episode(6, reward=1.0, group="g1"),
        make_episode(7, reward=1.0, group="g2"),
    ]
    batch = read_episodes(make_table(episodes))
    selection = select(batch, LearnerConfig(mask_truncated=True, advantage="grpo_no_std"))
    assert selection.kept == (0, 1)
    assert selection.reasons_B[2:] == (
        "no_reward",
        "truncated",
        "greedy",
        "zero_variance",
        "zero_variance",
        "group_of_one",
    )
    assert selection.advantages_B[0] == 0.5  # the truncated episode's reward is in the baseline


def test_phase_weights_fall_on_predicted_policy_tokens_only(make_episode, make_table) -> None:
    batch = read_episodes(make_table([make_episode(0, length=8)]))
    weights = phase_weights(batch, PhaseWeights(trial=0.5, experience=9.0, execution=2.0))
    assert weights.tolist() == [0, 0, 0.5, 0.5, 0, 0, 2, 2]


def test_tokens_without_a_behaviour_logprob_are_not_trained_on(make_episode, make_table) -> None:
    batch = read_episodes(make_table([make_episode(0, reward=1.0), make_episode(1, reward=0.0)]))
    logprobs_N = batch.logprobs_N.copy()
    logprobs_N[batch.rows(1)] = np.nan
    batch = replace(batch, logprobs_N=logprobs_N)
    selection = select(batch, LearnerConfig())
    assert selection.reasons_B == ("", "no_policy_tokens")
    assert not selection.weights_N[batch.rows(1)].any()


def test_annotations_run_over_tokens_under_loss(make_episode, make_table) -> None:
    batch = read_episodes(
        make_table(
            [
                make_episode(0, reward=1.0, length=8),
                make_episode(1, reward=None, outcome=Outcome.DEADLINE, length=8),
                make_episode(2, reward=0.0, length=8),
            ]
        )
    )
    selection = select(batch, LearnerConfig(advantage="grpo_no_std"))
    scores = Scores.empty(24)
    scored = np.array([2, 3, 6, 7, 18, 19, 22, 23])
    scores.logprobs_N[scored] = batch.logprobs_N[scored] + 0.5
    scores.entropies_N[scored] = np.arange(8)
    rows = annotate(batch, selection, scores).to_pylist()
    assert [row["loss_positions"] for row in rows] == [[2, 3, 6, 7], [], [2, 3, 6, 7]]
    assert [row["advantage"] for row in rows] == [0.5, None, -0.5]
    assert [row["dropped"] for row in rows] == ["", "no_reward", ""]
    assert rows[2]["entropies"] == [4, 5, 6, 7]
    metrics = step_metrics(batch, selection, scores, seconds=2.0)
    assert metrics["dlogp_mean"] == pytest.approx(0.5)
    assert metrics["reward_mean"] == 0.5
    assert metrics["tokens"] == 8
    assert metrics["tokens_per_s"] == 8
    assert metrics["dropped_no_reward"] == 1


def test_ranks_scores_are_merged(make_episode, make_table) -> None:
    left, right = Scores.empty(3), Scores.empty(3)
    left.logprobs_N[0], left.entropies_N[0], left.loss, left.grad_norms = -1, 1, 0.25, [2.0]
    right.logprobs_N[2], right.entropies_N[2], right.loss, right.grad_norms = -2, 3, 0.5, [2.0]
    merged = Scores.merge([left, right])
    np.testing.assert_array_equal(merged.logprobs_N, [-1, np.nan, -2])
    assert merged.loss == 0.75
    assert merged.grad_norms == [2.0]


def test_token_columns_of_different_lengths_are_refused(make_episode, make_table) -> None:
    table = make_table([make_episode(0, length=8)])
    column = table.schema.get_field_index("phases")
    broken = table.set_column(
        column, table.field("phases"), make_table([make_episode(1, length=9)])["phases"]
    )
    with pytest.raises(LearnerError, match="phases"):
        read_episodes(broken)


def test_an_empty_table_is_refused(make_table, make_episode) -> None:
    with pytest.raises(LearnerError, match="empty"):
        read_episodes(make_table([make_episode(0)]).slice(0, 0))
