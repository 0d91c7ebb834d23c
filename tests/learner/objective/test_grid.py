"""Every combination of the objective's options, against formulas of our own for one token a time.

The formulas are those of docs/algorithms.md, in float64, with loops in place of segments and
nothing imported but the function under test. What the configuration refuses is listed here too.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.objective.losses import aggregation_weights
from learner.objective.objective import PackLoss, Prediction, Targets, pack_loss
from learner.packed.packing import Pack, pack

LENGTHS = (8, 12, 16)
CLIPPED = {"clip_low": 0.1, "clip_high": 0.15}
NARROW = {"clip_low": 0.02, "clip_high": 0.02}
"""For means over a sequence."""
LOSSES: dict[str, dict[str, Any]] = {
    "token": CLIPPED,
    "token, dual": CLIPPED | {"dual_clip": 1.2},
    "gspo": NARROW,
    "gspo, dual": NARROW | {"dual_clip": 1.05},
    "gspo_token": NARROW,
    "gspo_token, dual": NARROW | {"dual_clip": 1.05},
    "cispo": CLIPPED,
    "sapo": {"sapo_tau_positive": 0.7, "sapo_tau_negative": 1.3},
    "reinforce": {},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "behaviour": {},
    **{
        mode: {"ratio_reference": "proximal", "tis_mode": mode, "tis_cap": 1.2, "tis_floor": 0.9}
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}
PENALTIES: list[dict[str, Any]] = [
    {},
    *({"kl_coef": 0.3, "kl_estimator": name} for name in ("k1", "k2", "k3")),
    *({"kl_coef": 0.3, "kl_estimator": name, "kl_unbiased": True} for name in ("k1", "k2", "k3")),
]
MASKS: list[dict[str, Any]] = [
    {},
    {"max_sequence_dlogp": 0.16},
    {"max_negative_kl": 0.01},
    {"max_sequence_dlogp": 0.16, "max_negative_kl": 0.01},
]
AGGREGATIONS: list[dict[str, Any]] = [
    {"aggregation": "token_mean"},
    {"aggregation": "sequence_mean"},
    {"aggregation": "constant", "constant_length": 5},
]
GRID = list(product(LOSSES, CORRECTIONS, PENALTIES, MASKS, AGGREGATIONS, (0.0, 0.2)))
STRIDE = 23
"""Of the 7,560 combinations every 23rd is computed: all pairs of values are among them."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Random values of the P tokens, by episode; `weights_P` are those of phases."""

    pack: Pack
    tokens: int
    logprobs_P: np.ndarray
    behaviour_P: np.ndarray
    proximal_P: np.ndarray
    reference_P: np.ndarray
    advantages_P: np.ndarray
    phase_weights_P: np.ndarray

    def episodes(self) -> list[list[int]]:
        owner_P = self.pack.segments_P.tolist()
        return [
            [index for index, owner in enumerate(owner_P) if owner == number]
            for number in range(len(LENGTHS))
        ]


@pytest.fixture(scope="module")
def drawn(make_episode: Any, make_table: Any) -> Drawn:
    episodes = [make_episode(i, length=length) for i, length in enumerate(LENGTHS)]
    batch = read_episodes(make_table(episodes))
    packed = pack(batch, range(len(LENGTHS)), batch.loss_mask_N)
    generator = np.random.default_rng(3)
    count = len(packed.sources_P)
    behaviour_P = generator.normal(-1.5, 0.4, count)
    owner_P = packed.segments_P.numpy()
    apart = np.array([0.05, 0.3, 0.2])  # of proximal and behaviour, by episode
    proximal_P = behaviour_P + apart[owner_P] * generator.normal(0, 1, count)
    drift = np.array([0.15, 0.1, -0.1])  # of the mean of each episode
    return Drawn(
        pack=packed,
        tokens=len(batch.token_ids_N),
        logprobs_P=proximal_P + drift[owner_P] + generator.normal(0, 0.1, count),
        behaviour_P=behaviour_P,
        proximal_P=proximal_P,
        reference_P=behaviour_P + generator.normal(0, 0.3, count),
        advantages_P=np.array([1.3, -0.8, -0.4])[owner_P],
        phase_weights_P=generator.choice([0.5, 1.0], count),
    )


def config_of(case: tuple[Any, ...]) -> LearnerConfig:
    loss, correction, penalty, mask, aggregation, entropy = case
    return LearnerConfig.model_validate(
        {
            "loss": loss.partition(",")[0],
            **LOSSES[loss],
            **CORRECTIONS[correction],
            **penalty,
            **mask,
            **aggregation,
            "entropy_coef": entropy,
        }
    )


def refused(case: tuple[Any, ...]) -> bool:
    return case[2].get("kl_estimator") == "k2" and case[2].get("kl_unbiased", False)


def found(drawn: Drawn, config: LearnerConfig) -> tuple[PackLoss, Tensor]:
    def over_tokens(values_P: np.ndarray) -> np.ndarray:
        filled_N = np.full(drawn.tokens, np.nan)
        filled_N[drawn.pack.sources_P] = values_P
        return filled_N

    weights_P = np.empty(len(drawn.logprobs_P))
    members = drawn.episodes()
    shares = aggregation_weights(
        [drawn.phase_weights_P[episode].astype(np.float32) for episode in members],
        config.aggregation,
        config.constant_length,
    )
    for episode, share in zip(members, shares, strict=True):
        weights_P[episode] = share
    logprobs_P = torch.tensor(drawn.logprobs_P, requires_grad=True)
    targets: Any = Targets(
        advantages_N=over_tokens(drawn.advantages_P),
        weights_N=over_tokens(weights_P),
        behaviour_N=over_tokens(drawn.behaviour_P),
        proximal_N=over_tokens(drawn.proximal_P),
    )
    reference_P = torch.from_numpy(drawn.reference_P) if config.kl_coef else None
    # an entropy with a known slope: the square of the logprob
    prediction = Prediction(logprobs_P, logprobs_P.square(), reference_P)
    share = pack_loss(drawn.pack, prediction, targets, config)
    share.loss.backward()
    assert logprobs_P.grad is not None
    return share, logprobs_P.grad


def expected(drawn: Drawn, config: LearnerConfig) -> tuple[float, Tensor]:
    """The sum of docs/algorithms.md, token by token."""
    at = [
        torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for value in drawn.logprobs_P.tolist()
    ]
    total = torch.zeros((), dtype=torch.float64)
    everything = float(drawn.phase_weights_P.sum())
    for episode in drawn.episodes():
        own = float(drawn.phase_weights_P[episode].sum())
        divisor = {
            "token_mean": everything,
            "sequence_mean": own * len(LENGTHS),
            "constant": float(config.constant_length * len(LENGTHS)),
        }[config.aggregation]
        for t in episode:
            term = masked(drawn, config, at, episode, t) * corrected(drawn, config, episode, t)
            loss_t = term * policy_term(drawn, config, at, episode, t)
            loss_t = loss_t + config.kl_coef * penalty_term(drawn, config, at[t], t)
            loss_t = loss_t - config.entropy_coef * at[t] ** 2
            total = total + float(drawn.phase_weights_P[t]) / divisor * loss_t
    total.backward()
    slopes = [torch.zeros((), dtype=torch.float64) if x.grad is None else x.grad for x in at]
    return float(total.detach()), torch.stack(slopes)


def fixed(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def policy_term(
    drawn: Drawn, config: LearnerConfig, at: list[Tensor], episode: list[int], t: int
) -> Tensor:
    old = drawn.proximal_P if config.ratio_reference == "proximal" else drawn.behaviour_P
    a = float(drawn.advantages_P[t])
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if config.loss == "reinforce":
        return -a * at[t]
    mean = torch.stack([at[u] - float(old[u]) for u in episode]).mean()
    if config.loss == "gspo":
        r = mean.exp()
    elif config.loss == "gspo_token":
        r = mean.detach().exp() * (at[t] - at[t].detach()).exp()
    else:
        r = (at[t] - float(old[t])).exp()
    if config.loss == "cispo":
        return -min(max(float(r.detach()), low), high) * a * at[t]
    if config.loss == "sapo":
        tau = config.sapo_tau_positive if a > 0 else config.sapo_tau_negative
        return -4 / tau / (1 + torch.exp(-tau * (r - 1))) * a
    inside = min(max(float(r.detach()), low), high)
    gain = r * a if float(r.detach()) * a <= inside * a else fixed(inside * a)
    if config.dual_clip and a < 0 and float(gain.detach()) < config.dual_clip * a:
        gain = fixed(config.dual_clip * a)
    return -gain


def penalty_term(drawn: Drawn, config: LearnerConfig, logprob: Tensor, t: int) -> Tensor:
    delta = logprob - float(drawn.reference_P[t])
    value = {"k1": delta, "k2": delta**2 / 2, "k3": torch.exp(-delta) - 1 + delta}
    ratio = torch.exp(logprob - float(drawn.behaviour_P[t])) if config.kl_unbiased else 1.0
    return value[config.kl_estimator] * ratio


def masked(
    drawn: Drawn, config: LearnerConfig, at: list[Tensor], episode: list[int], t: int
) -> float:
    apart = [abs(float(drawn.proximal_P[u] - drawn.behaviour_P[u])) for u in episode]
    drift = [float(drawn.behaviour_P[u]) - float(at[u].detach()) for u in episode]
    far = 0 < config.max_sequence_dlogp < sum(apart) / len(apart)
    worse = 0 < config.max_negative_kl < sum(drift) / len(drift)
    return 0.0 if far or (worse and drawn.advantages_P[t] < 0) else 1.0


def corrected(drawn: Drawn, config: LearnerConfig, episode: list[int], t: int) -> float:
    if config.ratio_reference == "behaviour":
        return 1.0
    over = episode if config.tis_mode.startswith("sequence") else [t]
    rho = math.exp(sum(float(drawn.proximal_P[u] - drawn.behaviour_P[u]) for u in over))
    if config.tis_floor <= rho <= config.tis_cap:
        return rho
    return 0.0 if config.tis_mode.endswith("mask") else min(max(rho, config.tis_floor), 1.2)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_combination_is_its_formula(drawn: Drawn, loss: str) -> None:
    seen = 0
    for case in GRID[::STRIDE]:
        if case[0] != loss or refused(case):
            continue
        config = config_of(case)
        share, slopes_P = found(drawn, config)
        value, expected_P = expected(drawn, config)
        # weights are float32
        assert float(share.loss.detach()) == pytest.approx(value, abs=1e-6), case
        assert float((slopes_P - expected_P).abs().max()) < 1e-6, case
        seen += 1
    assert seen > 25


def test_the_random_values_reach_every_branch(drawn: Drawn) -> None:
    """Something is clipped, masked and corrected, and never everything."""
    for loss in ("token", "token, dual", "gspo", "gspo_token", "cispo"):
        share, _ = found(drawn, config_of((loss, "behaviour", {}, {}, AGGREGATIONS[0], 0.0)))
        assert 0 < share.clipped < len(drawn.logprobs_P), loss
    for mask in MASKS[1:]:
        share, _ = found(drawn, config_of(("token", "behaviour", {}, mask, AGGREGATIONS[0], 0.0)))
        assert 0 < share.masked < len(drawn.logprobs_P), mask
    for correction in list(CORRECTIONS)[1:]:
        share, _ = found(drawn, config_of(("token", correction, {}, {}, AGGREGATIONS[0], 0.0)))
        assert 0 < share.corrected < len(drawn.logprobs_P), correction


def test_every_pair_of_values_is_computed() -> None:
    chosen = [tuple(map(str, case)) for case in GRID[::STRIDE]]
    for first in range(6):
        for second in range(first):
            pairs = {(case[first], case[second]) for case in chosen}
            counts = [len({case[place] for case in chosen}) for place in (first, second)]
            assert len(pairs) == counts[0] * counts[1]
    assert [len({case[place] for case in chosen}) for place in range(6)] == [9, 5, 7, 4, 3, 2]


def test_what_is_refused_is_only_what_is_listed() -> None:
    for case in GRID:
        if not refused(case):
            config_of(case)
            continue
        with pytest.raises(ValidationError, match="found 'k2'"):
            config_of(case)
