"""The KL penalty's gradient in expectation, exact, against formulas that use none of our code.

Two tokens are sampled from a small tree of categorical distributions. Its probabilities are parts
of 16, so 16 episodes are the sampler's distribution without error. Everything is in float64.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import EpisodeBatch, read_episodes
from learner.config import LearnerConfig
from learner.objective.losses import aggregation_weights
from learner.objective.objective import Prediction, Targets, pack_loss
from learner.packed.packing import Pack, pack

SAMPLER = np.array(
    [
        [1 / 2, 1 / 4, 1 / 4],  # the first token
        [1 / 2, 1 / 4, 1 / 4],  # the second, after a first of 0, 1, 2
        [1 / 4, 1 / 2, 1 / 4],
        [1 / 4, 1 / 4, 1 / 2],
    ]
)
"""mu by state and token."""
LOGITS = np.array([[0.9, -0.4, 0.1], [-0.2, 0.7, 0.3], [0.5, 0.5, -1.1], [0.0, -0.6, 0.8]])
"""Of pi by state and token."""
PROXIMAL = np.array([[0.6, 0.1, 0.3], [0.3, 0.3, 0.4], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
REFERENCE = np.array([[0.2, 0.5, 0.3], [0.4, 0.1, 0.5], [0.1, 0.3, 0.6], [0.6, 0.3, 0.1]])
LENGTH = 2
UNBIASED = ("k1", "k3")
AGGREGATIONS = {
    "token_mean": {"aggregation": "token_mean"},
    "sequence_mean": {"aggregation": "sequence_mean"},
    "constant": {"aggregation": "constant", "constant_length": 8},
}
PER_TOKEN = {"token_mean": 1 / LENGTH, "sequence_mean": 1 / LENGTH, "constant": 1 / 8}
"""What the token of an episode weighs in the mean over episodes."""
LOSSES = ("token", "gspo", "gspo_token", "cispo", "sapo", "reinforce")
MASKS = {"max_negative_kl": 1e-9, "max_sequence_dlogp": 1e-9}
CORRECTIONS = [
    {},
    {"tis_mode": "token_mask", "tis_cap": 1.1, "tis_floor": 0.9},
    {"tis_mode": "sequence_truncate", "tis_cap": 1.1},
]


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True)


POLICY = softmax(LOGITS)


@dataclass(frozen=True)
class World:
    """16 episodes of prompt, prompt, token, token, as often as the sampler draws each."""

    batch: EpisodeBatch
    pack: Pack
    states_P: np.ndarray
    tokens_P: np.ndarray
    mu: np.ndarray = field(default_factory=lambda: SAMPLER)


@pytest.fixture(scope="module")
def world(make_episode: Any, make_table: Any) -> World:
    return drawn(make_episode, make_table, SAMPLER)


def drawn(make_episode: Any, make_table: Any, mu: np.ndarray) -> World:
    pairs = [
        pair
        for pair in product(range(3), repeat=2)
        for _ in range(round(16 * mu[0, pair[0]] * mu[1 + pair[0], pair[1]]))
    ]
    assert len(pairs) == 16
    batch = read_episodes(make_table([make_episode(i, length=4) for i in range(16)]))
    packed = pack(batch, range(16), np.array([0, 0, 1, 1] * 16, bool))
    episodes_P, second_P = packed.sources_P // 4, packed.sources_P % 4 == 3
    first_P, last_P = np.array(pairs)[episodes_P].T
    return World(
        batch=batch,
        pack=packed,
        states_P=np.where(second_P, 1 + first_P, 0),
        tokens_P=np.where(second_P, last_P, first_P),
        mu=mu,
    )


def gradient_of(
    world: World, options: dict[str, Any], advantages: Any = 0.0, *, logits: np.ndarray = LOGITS
) -> np.ndarray:
    """Return the gradient of the loss over all episodes, by state and logit."""
    config = LearnerConfig.model_validate(options)
    total = len(world.batch.token_ids_N)

    def over_tokens(values_P: Any) -> np.ndarray:
        filled_N = np.zeros(total)
        filled_N[world.pack.sources_P] = values_P
        return filled_N

    def chosen(probabilities: np.ndarray) -> np.ndarray:
        return np.log(probabilities[world.states_P, world.tokens_P])

    weights = aggregation_weights(
        [np.ones(LENGTH, np.float32)] * 16, config.aggregation, config.constant_length
    )
    at = torch.tensor(logits, requires_grad=True)
    logprobs_P = at.log_softmax(-1)[world.states_P, world.tokens_P]
    targets: Any = Targets(
        advantages_N=over_tokens(advantages),
        weights_N=over_tokens(weights[0][0].astype(np.float64)),
        behaviour_N=over_tokens(chosen(world.mu)),
        proximal_N=over_tokens(chosen(PROXIMAL)),
    )
    reference_P = torch.from_numpy(chosen(REFERENCE)) if config.kl_coef else None
    prediction = Prediction(logprobs_P, logprobs_P * 0, reference_P)
    pack_loss(world.pack, prediction, targets, config).loss.backward()
    assert at.grad is not None
    return at.grad.numpy()


def visits(mu: np.ndarray) -> np.ndarray:
    """How often an episode of the sampler is in each state."""
    return np.concatenate([[1.0], mu[0]])[:, None]


def gradient_of_kl(policy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """d/dz of sum pi log(pi / ref), by state: pi (delta - KL)."""
    delta = np.log(policy / reference)
    return policy * (delta - (policy * delta).sum(-1, keepdims=True))


def scored(slopes: np.ndarray, mu: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """E_mu of slope * d log pi / dz, by state."""
    return mu * slopes - policy * (mu * slopes).sum(-1, keepdims=True)


def with_kl(estimator: str, reference: str, aggregation: str, **more: Any) -> dict[str, Any]:
    return {
        "kl_coef": 1.0,
        "kl_estimator": estimator,
        "ratio_reference": reference,
        **AGGREGATIONS[aggregation],
        **more,
    }


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("reference", ["behaviour", "proximal"])
@pytest.mark.parametrize("estimator", UNBIASED)
def test_unbiased_is_the_gradient_of_the_kl(
    world: World, estimator: str, reference: str, aggregation: str
) -> None:
    """In every state that the sampler visits, weighted by how often it does."""
    found = gradient_of(world, with_kl(estimator, reference, aggregation, kl_unbiased=True))
    expected = PER_TOKEN[aggregation] * visits(SAMPLER) * gradient_of_kl(POLICY, REFERENCE)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reference", ["behaviour", "proximal"])
def test_unbiased_does_not_depend_on_the_loss(world: World, loss: str, reference: str) -> None:
    found = gradient_of(world, with_kl("k3", reference, "token_mean", kl_unbiased=True, loss=loss))
    expected = visits(SAMPLER) / LENGTH * gradient_of_kl(POLICY, REFERENCE)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_bounds_of_the_correction_bring_no_bias_back(
    world: World, correction: dict[str, Any]
) -> None:
    options = with_kl("k3", "proximal", "token_mean", kl_unbiased=True, **correction)
    expected = visits(SAMPLER) / LENGTH * gradient_of_kl(POLICY, REFERENCE)
    np.testing.assert_allclose(gradient_of(world, options), expected, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("reference", ["behaviour", "proximal"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_plain_estimators_have_the_gradient_that_is_documented(
    world: World, estimator: str, reference: str, aggregation: str
) -> None:
    """Plain means without a ratio: samples of mu count as they come, whatever the reference."""
    delta = np.log(POLICY / REFERENCE)
    slopes = {"k1": np.ones_like(delta), "k2": delta, "k3": 1 - np.exp(-delta)}[estimator]
    found = gradient_of(world, with_kl(estimator, reference, aggregation))
    expected = PER_TOKEN[aggregation] * visits(SAMPLER) * scored(slopes, SAMPLER, POLICY)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_what_plain_estimators_follow_on_policy(
    make_episode: Any, make_table: Any, estimator: str
) -> None:
    """k1 nothing, k2 KL(pi || ref), k3 the reverse divergence KL(ref || pi)."""
    world = drawn(make_episode, make_table, SAMPLER)
    found = gradient_of(
        world, with_kl(estimator, "behaviour", "token_mean"), logits=np.log(SAMPLER)
    )
    reverse = SAMPLER - REFERENCE  # d/dz of sum ref log(ref / pi)
    followed = {
        "k1": np.zeros_like(SAMPLER),
        "k2": gradient_of_kl(SAMPLER, REFERENCE),
        "k3": reverse,
    }[estimator]
    np.testing.assert_allclose(found, visits(SAMPLER) / LENGTH * followed, atol=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("reference", ["behaviour", "proximal"])
@pytest.mark.parametrize("mask", MASKS)
def test_off_policy_masks_leave_the_penalty_on(
    world: World, mask: str, reference: str, unbiased: bool
) -> None:
    """Tokens that have drifted furthest are the ones to be held."""
    off = {"ratio_reference": reference}
    penalised = with_kl("k3", reference, "token_mean", kl_unbiased=unbiased)
    masked = {mask: MASKS[mask]}
    plain = gradient_of(world, penalised, -1.0) - gradient_of(world, off, -1.0)
    found = gradient_of(world, penalised | masked, -1.0) - gradient_of(world, off | masked, -1.0)
    np.testing.assert_allclose(found, plain, atol=1e-12)
    assert np.abs(gradient_of(world, off, -1.0) - gradient_of(world, off | masked, -1.0)).max() > 0
