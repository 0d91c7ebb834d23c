"""Each option of the objective on one pack, against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.batch import EpisodeBatch, read_episodes
from learner.config import LearnerConfig
from learner.objective.objective import PackLoss, Prediction, Targets, pack_loss
from learner.packed.packing import Pack, pack

LN2 = math.log(2)


@pytest.fixture(scope="module")
def packed(make_episode, make_table) -> tuple[EpisodeBatch, Pack]:
    """Two episodes of 4 tokens, of which the second and the fourth are predicted."""
    batch = read_episodes(make_table([make_episode(i, length=4) for i in range(2)]))
    mask_N = np.array([0, 1, 0, 1] * 2, bool)
    return batch, pack(batch, [0, 1], mask_N)


def loss_of(
    packed: tuple[EpisodeBatch, Pack],
    config: LearnerConfig,
    ratios: list[float],
    *,
    proximal: list[float] | None = None,
    reference: list[float] | None = None,
    advantages: tuple[float, ...] = (1.0, 1.0, -1.0, -1.0),
) -> tuple[PackLoss, Tensor]:
    """Return the loss and its gradient; behaviour logprobs are 0 and weights 1/4 a token."""
    batch, one = packed
    total = len(batch.token_ids_N)

    def over_tokens(values: Any) -> np.ndarray:
        filled = np.full(total, np.nan, np.float32)
        filled[one.sources_P] = values
        return filled

    logprobs = torch.tensor(ratios).log().requires_grad_()
    entropies = logprobs * 3
    targets = Targets(
        advantages_N=over_tokens(advantages),
        weights_N=over_tokens(0.25),
        behaviour_N=over_tokens(0.0),
        proximal_N=None if proximal is None else over_tokens(np.log(proximal)),
    )
    copy = None if reference is None else torch.tensor(reference).log()
    share = pack_loss(one, Prediction(logprobs, entropies, copy), targets, config)
    share.loss.backward()
    assert logprobs.grad is not None
    return share, logprobs.grad


def test_token_loss_is_a_weighted_sum(packed) -> None:
    # gains 1.25 (clipped), 1, -2, -1 of which a quarter each, with the sign turned
    share, gradient = loss_of(packed, LearnerConfig(), [2.0, 1.0, 2.0, 1.0])
    assert share.loss.item() == pytest.approx((-1.25 - 1 + 2 + 1) / 4)
    assert gradient.tolist() == pytest.approx([0, -0.25, 0.5, 0.25])
    assert (share.clipped, share.masked, share.corrected) == (1, 0, 0)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        # geometric means sqrt(2) clipped to 1.25, and sqrt(2), for both tokens of a sequence
        ("gspo", (-2 * 1.25 + 2 * math.sqrt(2)) / 4),
        ("gspo_token", (-2 * 1.25 + 2 * math.sqrt(2)) / 4),
        # weights 1.25 and 1 times logprobs ln 2 and 0
        ("cispo", (-1.25 * LN2 + 1.25 * LN2) / 4),
        # 4 / (1 + e^-1) and 2 for ratios 2 and 1; tau 1 for both signs
        ("sapo", 0.0),
        ("reinforce", 0.0),
    ],
)
def test_the_other_losses(packed, loss: str, value: float) -> None:
    taus = {"sapo_tau_negative": 1.0} if loss == "sapo" else {}
    config = LearnerConfig.model_validate({"loss": loss, **taus})
    share, _ = loss_of(packed, config, [2.0, 1.0, 2.0, 1.0])
    assert share.loss.item() == pytest.approx(value, abs=1e-6)


def test_gradients_of_reinforce_and_sapo(packed) -> None:
    _, plain = loss_of(packed, LearnerConfig(loss="reinforce"), [2.0, 1.0, 2.0, 1.0])
    assert plain.tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25])
    # at ratio 1 the gate's slope is 1; at 2 it is 4 s (1 - s) * 2 with s = sigmoid(1)
    s = 1 / (1 + math.exp(-1))
    _, soft = loss_of(
        packed, LearnerConfig(loss="sapo", sapo_tau_negative=1.0), [2.0, 1.0, 2.0, 1.0]
    )
    far = 4 * s * (1 - s) * 2 / 4
    assert soft.tolist() == pytest.approx([-far, -0.25, far, 0.25])


@pytest.mark.parametrize(
    ("mode", "weights", "corrected"),
    [
        # proximal / behaviour: 3 1/4 | 1 1; bounds 0.5 and 2
        ("token_truncate", [2.0, 0.5, 1.0, 1.0], 2),
        ("token_mask", [0.0, 0.0, 1.0, 1.0], 2),
        ("sequence_truncate", [0.75, 0.75, 1.0, 1.0], 0),
        ("sequence_mask", [0.75, 0.75, 1.0, 1.0], 0),
    ],
)
def test_the_learners_own_start_with_a_correction(
    packed, mode: str, weights: list[float], corrected: int
) -> None:
    config = LearnerConfig.model_validate(
        {"ratio_reference": "proximal", "tis_mode": mode, "tis_cap": 2.0, "tis_floor": 0.5}
    )
    # the ratio to the proximal policy is 1 everywhere: gains are the advantages times weights
    ratios = [3.0, 0.25, 1.0, 1.0]
    share, gradient = loss_of(packed, config, ratios, proximal=ratios)
    signs = [-1, -1, 1, 1]
    expected = [sign * weight / 4 for sign, weight in zip(signs, weights, strict=True)]
    assert share.loss.item() == pytest.approx(sum(expected))
    assert gradient.tolist() == pytest.approx(expected)
    assert share.corrected == corrected


def test_a_single_update_is_its_own_proximal_policy(packed) -> None:
    config = LearnerConfig(ratio_reference="proximal", tis_cap=1.5)
    share, _ = loss_of(packed, config, [2.0, 1.0, 1.0, 1.0])
    assert share.loss.item() == pytest.approx((-1.5 - 1 + 1 + 1) / 4)


def test_sequences_far_off_are_masked(packed) -> None:
    # mean |dlogp| of the first is ln(4) / 2 = ln 2, of the second 0
    share, gradient = loss_of(packed, LearnerConfig(max_sequence_dlogp=0.6), [4.0, 1.0, 1.0, 1.0])
    assert share.loss.item() == pytest.approx(0.5)
    assert gradient[:2].tolist() == [0, 0]
    assert share.masked == 2


def test_negative_advantages_far_off_are_masked(packed) -> None:
    # behaviour - present: both sequences (ln 2 + ln 8) / 2 = ln 4; only the second is negative
    share, _ = loss_of(packed, LearnerConfig(max_negative_kl=1.3), [0.5, 0.125, 0.5, 0.125])
    assert share.loss.item() == pytest.approx(-(0.5 + 0.125) / 4)
    assert share.masked == 2


@pytest.mark.parametrize(
    ("estimator", "value", "unbiased"),
    [
        ("k1", LN2, False),
        ("k2", LN2**2 / 2, False),
        ("k3", 0.5 - 1 + LN2, False),
        ("k1", LN2, True),
        ("k3", 0.5 - 1 + LN2, True),
    ],
)
def test_the_kl_penalty(packed, estimator: str, value: float, unbiased: bool) -> None:
    """Only the third token has left its reference, by ln 2; its ratio is 2."""
    config = LearnerConfig.model_validate(
        {"kl_coef": 0.1, "kl_estimator": estimator, "kl_unbiased": unbiased}
    )
    ratios, reference = [1.0, 1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    without, _ = loss_of(packed, LearnerConfig(), ratios)
    share, _ = loss_of(packed, config, ratios, reference=reference)
    expected = value * (2 if unbiased else 1) / 4
    assert without.kl is None, "nothing was measured"
    assert share.kl == pytest.approx(value, rel=1e-5), "a sum over tokens, without any factor"
    assert share.loss.item() - without.loss.item() == pytest.approx(0.1 * expected, rel=1e-4)


def test_the_entropy_bonus(packed) -> None:
    """Entropies are 3 times the logprobs here: a bonus of 0.5 * 3 / 4 in every gradient."""
    _, without = loss_of(packed, LearnerConfig(), [1.0] * 4)
    _, gradient = loss_of(packed, LearnerConfig(entropy_coef=0.5), [1.0] * 4)
    assert (gradient - without).tolist() == pytest.approx([-0.375] * 4)


def test_dual_clip_reaches_the_objective(packed) -> None:
    share, _ = loss_of(packed, LearnerConfig(dual_clip=3.0), [1.0, 1.0, 9.0, 1.0])
    assert share.loss.item() == pytest.approx((-1 - 1 + 3 + 1) / 4)


def test_a_pack_without_targets_has_a_gradient_of_zero(packed) -> None:
    batch, _ = packed
    logprobs = torch.zeros(0, requires_grad=True)
    nothing = np.zeros(len(batch.token_ids_N), np.float32)
    share = pack_loss(
        pack(batch, [], batch.loss_mask_N),
        Prediction(logprobs, logprobs),
        Targets(nothing, nothing, nothing, None),
        LearnerConfig(),
    )
    share.loss.backward()
    assert share.loss.item() == 0
