import math

import numpy as np
import pytest
import torch

from learner.objective.losses import (
    Clip,
    aggregation_weights,
    cispo_loss,
    kl_penalty,
    log_ratio,
    reinforce_loss,
    sapo_loss,
    sequence_loss,
    sequence_token_loss,
    token_loss,
)

CLIP = Clip(0.2, 0.25)


def logs(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios).log()


def test_ppo_clips_only_where_the_gain_would_grow() -> None:
    ratios = logs(1.5, 1.5, 0.5, 0.5, 1.1)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, cut = token_loss(ratios, advantages, CLIP)
    torch.testing.assert_close(loss, torch.tensor([-1.25, 1.5, -0.5, 0.8, -2.2]))
    assert cut.tolist() == [True, False, False, True, False]


def test_clipped_tokens_have_no_gradient() -> None:
    ratios = logs(1.5, 1.1).requires_grad_()
    token_loss(ratios, torch.tensor([1.0, 1.0]), CLIP)[0].sum().backward()
    assert ratios.grad is not None
    torch.testing.assert_close(ratios.grad, torch.tensor([0.0, -1.1]))


def test_dual_clip_bounds_negative_advantages() -> None:
    loss, cut = token_loss(logs(5.0, 2.0), torch.tensor([-1.0, -1.0]), Clip(0.2, 0.25, dual=3.0))
    torch.testing.assert_close(loss, torch.tensor([3.0, 2.0]))
    assert cut.tolist() == [True, False]


def test_gspo_uses_the_geometric_mean_ratio_of_each_sequence() -> None:
    ratios = logs(2.0, 0.5, 4.0, 1.0)
    segments = torch.tensor([0, 0, 1, 1])
    loss, cut = sequence_loss(ratios, torch.ones(4), segments, Clip(0.2, 0.25))
    torch.testing.assert_close(loss, torch.tensor([-1.0, -1.0, -1.25, -1.25]))  # sqrt(4) is clipped
    assert cut.tolist() == [False, False, True, True]


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, cut = cispo_loss(logs(3.0, 1.0), logprobs, torch.tensor([1.0, -1.0]), CLIP)
    torch.testing.assert_close(loss.detach(), torch.tensor([1.25, -2.0]))
    loss.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.25, 1.0]))
    assert cut.tolist() == [True, False]


def test_gspo_token_keeps_every_tokens_own_advantage_and_gradient() -> None:
    # ratios 2 and 1/2 have the geometric mean 1; its gradient goes to each token by itself
    ratios = logs(2.0, 0.5).requires_grad_()
    loss, cut = sequence_token_loss(
        ratios, torch.tensor([1.0, -3.0]), torch.tensor([0, 0]), Clip(0.2, 0.25)
    )
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.0, 3.0]))
    loss.sum().backward()
    torch.testing.assert_close(ratios.grad, torch.tensor([-1.0, 3.0]))
    assert not cut.any()


def test_sapo_gates_softly() -> None:
    # tau 1: 4 * sigmoid(2 - 1) = 4 / (1 + e^-1); tau 2: 2 * sigmoid(2 * (1.5 - 1)) the same / 2
    gate = 4 / (1 + math.exp(-1))
    loss, cut = sapo_loss(logs(2.0, 1.5), torch.tensor([1.0, -1.0]), 1.0, 2.0)
    torch.testing.assert_close(loss, torch.tensor([-gate, gate / 2]))
    assert not cut.any()


def test_sapo_has_slope_one_at_ratio_one() -> None:
    ratios = logs(1.0, 1.0).requires_grad_()
    sapo_loss(ratios, torch.tensor([2.0, -3.0]), 1.0, 1.05)[0].sum().backward()
    torch.testing.assert_close(ratios.grad, torch.tensor([-2.0, 3.0]))


def test_reinforce_has_no_ratio() -> None:
    loss, _ = reinforce_loss(torch.tensor([-2.0, -1.0]), torch.tensor([0.5, -1.0]))
    assert loss.tolist() == [1.0, -1.0]


def test_a_huge_ratio_stays_finite() -> None:
    assert torch.isfinite(log_ratio(torch.tensor([0.0]), torch.tensor([-500.0])).exp()).all()


@pytest.mark.parametrize(
    ("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)]
)
def test_kl_estimators(estimator: str, value: float) -> None:
    penalty = kl_penalty(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator)  # pyright: ignore
    assert penalty.item() == pytest.approx(value)


def test_aggregations_share_out_one_sum() -> None:
    tokens = [np.array([1, 1, 0, 2], np.float32), np.array([1], np.float32)]
    mean = aggregation_weights(tokens, "token_mean", 10)
    np.testing.assert_allclose(mean[0], [0.2, 0.2, 0, 0.4])
    np.testing.assert_allclose(mean[1], [0.2])
    sequence = aggregation_weights(tokens, "sequence_mean", 10)
    np.testing.assert_allclose(sequence[0], [0.125, 0.125, 0, 0.25])
    np.testing.assert_allclose(sequence[1], [0.5])
    # divided by 10 tokens and 2 episodes
    constant = aggregation_weights(tokens, "constant", 10)
    np.testing.assert_allclose(constant[0], [0.05, 0.05, 0, 0.1])
    np.testing.assert_allclose(constant[1], [0.05])
    sums = aggregation_weights(tokens, "constant", 1)
    np.testing.assert_allclose(sums[0], [0.5, 0.5, 0, 1])
