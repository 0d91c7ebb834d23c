from dataclasses import replace

import numpy as np
import pytest

from envs.errors import LearnerError
from envs.tools import AnswerStatus
from learner.batch import phase_weights, read_episodes
from learner.config import LearnerConfig
from learner.credit_config import PhaseWeights, SoftOverlong, TrialCost
from learner.objective.selection import select, varies
from learner.report import Scores, annotate, step_metrics
from rollout.episode import CallRecord, Outcome, Phase, Turn


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


def test_tokens_without_a_behaviour_logprob_are_counted_and_not_trained_on(
    make_episode, make_table
) -> None:
    batch = read_episodes(make_table([make_episode(0, reward=1.0), make_episode(1, reward=0.0)]))
    logprobs_N = batch.logprobs_N.copy()
    lost = np.flatnonzero(batch.loss_mask_N)[:2]
    logprobs_N[lost] = np.nan
    selection = select(replace(batch, logprobs_N=logprobs_N), LearnerConfig())
    assert selection.reasons_B == ("", "")
    assert selection.unscored == 2
    assert not selection.weights_N[lost].any()


def test_phases_get_their_own_advantage(make_episode, make_table) -> None:
    """Three right episodes of which one paid for a trial, and a wrong one."""
    parts = [(1.0, 0.0), (0.7, -0.3), (1.0, 0.0), (0.0, 0.0)]
    episodes = [
        replace(
            make_episode(i, reward=reward, length=8),
            reward_parts={"answer": float(i < 3), "trial_cost": cost},
        )
        for i, (reward, cost) in enumerate(parts)
    ]
    config = LearnerConfig(advantage="grpo_no_std", credit="phase")
    selection = select(read_episodes(make_table(episodes)), config)
    # execution compares 1 1 1 0 (mean 3/4); trial 1 0.7 1 0 (mean 0.675)
    np.testing.assert_allclose(selection.advantages_B, [0.25, 0.25, 0.25, -0.75])
    np.testing.assert_allclose(
        selection.trial_advantages_B, [0.325, 0.025, 0.325, -0.675], atol=1e-6
    )
    # prompt, trial, observation, execution: two tokens each
    np.testing.assert_allclose(selection.advantages_N[10:12], [0.025] * 2, atol=1e-6)
    np.testing.assert_allclose(selection.advantages_N[14:16], [0.25] * 2, atol=1e-6)


def test_a_group_that_teaches_one_phase_only_stays(make_episode, make_table) -> None:
    episodes = [
        replace(
            make_episode(i, reward=1.0 - cost, length=8),
            reward_parts={"answer": 1.0, "trial_cost": -cost},
        )
        for i, cost in enumerate([0.0, 0.5])
    ]
    batch = read_episodes(make_table(episodes))
    selection = select(batch, LearnerConfig(advantage="grpo_no_std", credit="phase"))
    assert selection.kept == (0, 1)
    np.testing.assert_array_equal(selection.advantages_B, [0, 0])
    np.testing.assert_allclose(selection.trial_advantages_B, [0.25, -0.25])


@pytest.mark.parametrize(
    ("weights", "trained"),
    [({"trial": 0.0, "experience": 0.0}, False), ({"execution": 0.0}, True), ({}, True)],
)
def test_a_phase_without_weight_does_not_make_a_group_vary(
    make_episode, make_table, weights: dict[str, float], trained: bool
) -> None:
    """Only the trials of these two differ: where they are not trained, nothing is learned."""
    episodes = [
        replace(
            make_episode(i, reward=1.0 - cost, length=8),
            reward_parts={"answer": 1.0, "trial_cost": -cost},
        )
        for i, cost in enumerate([0.0, 0.5])
    ]
    batch = read_episodes(make_table(episodes))
    config = LearnerConfig.model_validate({"credit": "phase", "phase_weights": weights})
    assert varies(batch, config) == trained
    selection = select(batch, config)
    assert selection.reasons_B == (("", "") if trained else ("zero_variance",) * 2)
    loss_N = selection.advantages_N * selection.weights_N
    assert bool(np.nan_to_num(loss_N).any()) == trained


def test_a_cost_of_the_learner_makes_a_group_vary(make_episode, make_table) -> None:
    episodes = [replace(make_episode(i, reward=1.0), extra={}, turns=trials(i)) for i in (1, 3)]
    batch = read_episodes(make_table(episodes))
    assert not varies(batch, LearnerConfig())
    priced = LearnerConfig(trial_cost=TrialCost(per_call=0.1), advantage="grpo_no_std")
    assert varies(batch, priced)
    np.testing.assert_allclose(select(batch, priced).advantages_B, [0.1, -0.1], atol=1e-6)
    assert varies(batch, LearnerConfig(advantage="reinforce_pp"))


def test_length_is_punished_before_the_limit(make_episode, make_table) -> None:
    batch = read_episodes(make_table([make_episode(i, reward=1.0, length=8 + i) for i in range(2)]))
    # 4 and 5 sampled tokens; the penalty rises from 3 to 5: a half and one
    rule = SoftOverlong(max_tokens=5, buffer_tokens=2, penalty=0.4)
    selection = select(batch, LearnerConfig(overlong=rule, advantage="grpo_no_std"))
    np.testing.assert_allclose(selection.rewards.episode_B, [0.8, 0.6])
    np.testing.assert_allclose(selection.advantages_B, [0.1, -0.1], atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-6, 0.1])
def test_equal_executions_get_nothing_of_what_their_trials_cost(
    make_episode, make_table, eps: float
) -> None:
    """Answers are all wrong; only trial turns were malformed, and only trials were paid for."""
    episodes = [
        replace(
            make_episode(i, reward=sum(parts), length=8),
            reward_parts=dict(zip(("answer", "malformed", "trial_cost"), parts, strict=True)),
            turns=(replace(trials(0)[0], policy_error="malformed_json" if parts[1] else ""),),
        )
        for i, parts in enumerate([(0, -0.1, -0.06), (0, 0, -0.07), (0, -0.1, -0.01), (0, 0, 0)])
    ]
    batch = read_episodes(make_table(episodes))
    config = LearnerConfig(credit="phase", advantage_eps=eps)
    selection = select(batch, config)
    assert np.ptp(selection.rewards.execution_B) > 0, "no rounding: nothing is tested"
    assert selection.kept == (0, 1, 2, 3)
    assert selection.advantages_B.tolist() == [0, 0, 0, 0]
    assert (selection.trial_advantages_B != 0).all()
    assert varies(batch, config)


def test_one_rule_says_that_a_group_does_not_vary(make_episode, make_table) -> None:
    """Choice of groups and advantages agree on both sides of the limit."""
    for difference, reasons in ((5e-7, ("zero_variance",) * 2), (2e-6, ("", ""))):
        pair = [make_episode(0, reward=0.5), make_episode(1, reward=0.5 + difference)]
        batch = read_episodes(make_table(pair))
        assert varies(batch, LearnerConfig()) == (reasons == ("", ""))
        assert select(batch, LearnerConfig(advantage_eps=0.0)).reasons_B == reasons


def trials(count: int) -> tuple[Turn, ...]:
    calls = tuple(
        CallRecord(
            name="probe",
            arguments=f'{{"x": {x}}}',
            status=AnswerStatus.OK,
            result="",
            seconds=0.0,
            cpu_seconds=0.0,
            purpose="trial",
        )
        for x in range(count)
    )
    return (
        Turn(
            phase=Phase.TRIAL,
            start=0,
            end=1,
            text="",
            finish_reason="stop",
            policy_error="",
            calls=calls,
        ),
    )


def test_the_step_says_what_trials_cost(make_episode, make_table) -> None:
    """Groups of two: 0 and 2 informative trials, of which the one with 2 was right twice of 3."""
    answers = [(0.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
    episodes = [
        replace(
            make_episode(2 * g + i, reward=pair[i], group=f"g{g}"),
            reward_parts={"answer": pair[i]},
            turns=trials(2 * i),
        )
        for g, pair in enumerate(answers)
        for i in range(2)
    ]
    batch = read_episodes(make_table(episodes))
    config = LearnerConfig(trial_cost=TrialCost(per_call=0.1, charge="successes"))
    metrics = step_metrics(batch, select(batch, config), Scores.empty(6 * 24), seconds=1.0)
    # only the third group is right often enough: its second episode pays 0.2 of 6
    assert metrics["trial_cost_charged"] == pytest.approx(0.2 / 6)
    assert metrics["trial_cost_payers"] == pytest.approx(1 / 6)


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
    assert [row["trial_advantage"] for row in rows] == [None] * 3
    assert [row["dropped"] for row in rows] == ["", "no_reward", ""]
    assert rows[2]["entropies"] == [4, 5, 6, 7]
    metrics = step_metrics(batch, selection, scores, seconds=2.0)
    assert metrics["abs_dlogp_mean"] == pytest.approx(0.5)
    assert (metrics["trained_reward"], metrics["trained_success"]) == (0.5, 0.5)
    assert metrics["loss_tokens"] == 8
    assert metrics["sequence_tokens_per_s"] == 8
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


def test_credit_columns_of_a_part_of_a_table(make_episode, make_table) -> None:
    fault = Turn(
        phase=Phase.EXECUTION,
        start=0,
        end=1,
        text="",
        finish_reason="stop",
        policy_error="no_action",
    )
    again = replace(trials(1)[0], calls=trials(2)[0].calls * 2)
    turns = [(), trials(3), (again, fault), trials(1)]
    table = make_table([replace(make_episode(i), turns=made) for i, made in enumerate(turns)])
    credit = read_episodes(table.slice(1, 2)).credit
    assert credit.distinct_B.tolist() == [3, 2]
    assert credit.trial_calls_B.tolist() == [3, 4]
    assert credit.execution_faults_B.tolist() == [False, True]
    assert not credit.trial_faults_B.any()


@pytest.mark.parametrize("advantage", ["grpo", "rloo", "maxrl"])
@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.ANSWERED])
def test_an_overlong_episode_has_no_reward_anywhere(
    make_episode, make_table, advantage: str, outcome: Outcome
) -> None:
    """Two right episodes and two that are too long: nothing to compare, so nothing to learn."""
    right = [make_episode(i, reward=1.0, length=8) for i in range(2)]
    long = [replace(make_episode(i, reward=0.0, length=30), outcome=outcome) for i in (2, 3)]
    batch = read_episodes(make_table([*right, *long]))
    config = LearnerConfig.model_validate({"advantage": advantage})
    assert varies(batch, config)
    assert not varies(batch, config, 20)
    selection = select(batch, config, 20)
    assert selection.reasons_B[2:] == ("overlong", "overlong")
    assert selection.kept == ()
    assert np.isnan(selection.rewards.episode_B[2:]).all()
    metrics = step_metrics(batch, selection, Scores.empty(len(batch.token_ids_N)), 1.0)
    assert np.isnan(metrics["trained_reward"]), "nothing was trained on"
    alone = select(read_episodes(make_table(right)), config, 20)
    np.testing.assert_array_equal(selection.advantages_B[:2], alone.advantages_B)


def test_a_truncated_episode_that_fits_counts_everywhere(make_episode, make_table) -> None:
    episodes = [make_episode(i, reward=1.0, length=8) for i in range(2)]
    episodes.append(replace(make_episode(2, reward=0.0, length=20), outcome=Outcome.TRUNCATED))
    batch = read_episodes(make_table(episodes))
    assert varies(batch, LearnerConfig(), 20)
    assert select(batch, LearnerConfig(), 20).kept == (0, 1, 2)
