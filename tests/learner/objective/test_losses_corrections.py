import math

import numpy as np
import pytest
import torch

from learner.config import CorrectionMode
from learner.objective.corrections import (
    Correction,
    importance_weights,
    mismatch,
    off_policy_mask,
    sequence_mask,
)

SEGMENTS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("mode", "weights", "outside"),
    [
        # ratios 4 1/4 | 2 1; bounds [0.5, 3]
        ("token_truncate", [3.0, 0.5, 2.0, 1.0], [1, 1, 0, 0]),
        ("token_mask", [0.0, 0.0, 2.0, 1.0], [1, 1, 0, 0]),
        # products 4 * 1/4 = 1 | 2 * 1 = 2
        ("sequence_truncate", [1.0, 1.0, 2.0, 2.0], [0, 0, 0, 0]),
        ("sequence_mask", [1.0, 1.0, 2.0, 2.0], [0, 0, 0, 0]),
    ],
)
def test_importance_weights(mode: CorrectionMode, weights: list[float], outside: list[int]) -> None:
    proximal = torch.tensor([4.0, 0.25, 2.0, 1.0]).log().requires_grad_()
    found, cut = importance_weights(
        proximal, torch.zeros(4), SEGMENTS, Correction(mode, cap=3.0, floor=0.5)
    )
    torch.testing.assert_close(found, torch.tensor(weights))
    assert cut.tolist() == [bool(value) for value in outside]
    assert not found.requires_grad


@pytest.mark.parametrize(("mode", "weight"), [("sequence_truncate", 3.0), ("sequence_mask", 0.0)])
def test_a_sequence_whose_product_is_out_of_bounds(mode: CorrectionMode, weight: float) -> None:
    # 2 * 2 = 4 > 3, though each token alone is within
    found, cut = importance_weights(
        torch.tensor([2.0, 2.0]).log(), torch.zeros(2), torch.tensor([0, 0]), Correction(mode, 3.0)
    )
    torch.testing.assert_close(found, torch.full((2,), weight))
    assert cut.all()


def test_a_long_sequence_far_off_stays_finite() -> None:
    found, _ = importance_weights(
        torch.zeros(900),
        torch.full((900,), -5.0),
        torch.zeros(900, dtype=torch.int64),
        Correction("sequence_mask", 2.0),
    )
    assert not found.any()


def test_sequences_far_from_their_sampler_are_masked_whole() -> None:
    keep = sequence_mask(torch.tensor([0.1, -0.1, 2.0, 0.0]), SEGMENTS, 0.5)
    assert keep.tolist() == [1, 1, 0, 0]


def test_only_negative_advantages_of_drifted_sequences_are_masked() -> None:
    # mean drifts 0.3 and 1.0 against a limit of 0.5
    drift = torch.tensor([0.6, 0.0, 2.0, 0.0])
    keep = off_policy_mask(drift, torch.tensor([-1.0, -1.0, -1.0, 1.0]), SEGMENTS, 0.5)
    assert keep.tolist() == [1, 1, 0, 1]


def test_mismatch_is_zero_for_equal_and_known_for_different_logprobs() -> None:
    behaviour = np.array([-1.0, -2.0], np.float32)
    assert mismatch(behaviour, behaviour).max == 0
    gap = mismatch(np.array([-1.5, -2.0], np.float32), behaviour)
    assert gap.kl == pytest.approx((math.exp(-0.5) - 1 + 0.5) / 2)
    assert gap.mean == pytest.approx(0.25)
    assert gap.p99 == pytest.approx(0.495)
    assert gap.max == pytest.approx(0.5)
