"""The learner's metrics against numbers worked out from the trainer's own arrays, by other code."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.errors import NonFiniteError
from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.objective.selection import select
from learner.report import Scores, step_metrics
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from tests.learner.bigram_backend import VOCABULARY, BigramBackend

Make = Any
MakeTrainer = Callable[..., Trainer]
PER_UPDATE = ("clip_fraction", "masked_fraction", "corrected_fraction", "reference_kl")


class FailsAt(BigramBackend):
    """A backend whose update number `fails` (from 1) finds a number that is not finite."""

    fails = 0

    def __init__(self, setup: TrainerSetup) -> None:
        super().__init__(setup)
        self.updates = 0

    def step(self, lr_scale: float) -> float:
        self.updates += 1
        if self.updates == self.fails:
            self._logits_VV.grad = None
            raise NonFiniteError("found NaN or infinity: the weights are as before")
        return super().step(lr_scale)


class SecondFails(FailsAt):
    fails = 2


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Make a trainer whose weights hardly move, with the options of `[learner]`."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))

    def make(backend: type[BigramBackend] = BigramBackend, **options: Any) -> Trainer:
        setup = TrainerSetup(
            rank=0,
            world_size=1,
            master_addr="",
            master_port=0,
            model_path=str(tmp_path),
            model=ModelConfig(path=str(tmp_path), max_model_len=40),
            learner=LearnerConfig.model_validate({"lr": 1e-9, **options}),
        )
        return Trainer(setup, backend)

    return make


@pytest.fixture
def table(make_episode: Make, make_table: Make) -> Any:
    """Eight episodes of equal length in two groups."""
    return make_table([make_episode(i, reward=float(i % 2), group=f"g{i // 4}") for i in range(8)])


def ratios_and_advantages(trainer: Trainer, table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return exp(learner - sampler) and the advantage of every token under the loss."""
    batch = read_episodes(table)
    rewards = np.array(table["reward"].to_pylist())
    ratios, advantages = [], []
    for index, logprobs_T in enumerate(trainer.logprobs(table)):
        group = [i for i, name in enumerate(batch.groups_B) if name == batch.groups_B[index]]
        scored = ~np.isnan(logprobs_T)
        ratios.append(np.exp(logprobs_T - batch.logprobs_N[batch.rows(index)])[scored])
        advantages.append(np.full(scored.sum(), rewards[index] - rewards[group].mean()))
    return np.concatenate(ratios), np.concatenate(advantages)


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (4, 1), (1, 3), (2, 2)])
def test_a_fraction_is_of_the_tokens_that_updates_saw(
    make_trainer: MakeTrainer, table: Any, minibatches: int, epochs: int
) -> None:
    """The weights do not move, so every update clips and masks the same tokens."""
    options: Any = {"minibatches": minibatches, "ppo_epochs": epochs}
    trainer = make_trainer(**options)
    ratios, advantages = ratios_and_advantages(trainer, table)
    clipped = ((advantages > 0) & (ratios > 1.25)) | ((advantages < 0) & (ratios < 0.8))
    assert 0.1 < clipped.mean() < 0.9
    metrics = trainer.rl_step(table).metrics
    assert metrics["optimizer_steps"] == minibatches * epochs
    assert metrics["clip_fraction"] == pytest.approx(clipped.mean())
    assert metrics["loss_tokens"] == len(ratios)
    everything = make_trainer(max_sequence_dlogp=1e-6, **options).rl_step(table).metrics
    assert everything["masked_fraction"] == 1


def test_a_bounded_weight_is_one_of_the_tokens_that_updates_saw(
    make_trainer: MakeTrainer, table: Any
) -> None:
    options: Any = {"ratio_reference": "proximal", "tis_cap": 1.5, "minibatches": 4}
    trainer = make_trainer(**options)
    ratios, _ = ratios_and_advantages(trainer, table)
    expected = (ratios > 1.5).mean()
    assert 0 < expected < 1
    assert trainer.rl_step(table).metrics["corrected_fraction"] == pytest.approx(expected)


def test_tokens_of_a_failed_update_were_not_seen(make_trainer: MakeTrainer, table: Any) -> None:
    everything: Any = {"minibatches": 4, "max_sequence_dlogp": 1e-6, "kl_coef": 0.1}
    whole = make_trainer(**everything).rl_step(table).metrics
    metrics = make_trainer(SecondFails, **everything).rl_step(table).metrics
    assert metrics["optimizer_steps"] == 3
    assert metrics["masked_fraction"] == 1
    assert metrics["dropped_non_finite"] == 2
    assert metrics["loss_tokens"] == whole["loss_tokens"] * 3 / 4


OPTIONS: list[dict[str, Any]] = [
    {},
    {"aggregation": "constant", "constant_length": 1},
    {"aggregation": "sequence_mean"},
    {"kl_unbiased": True},
    {"max_sequence_dlogp": 1e-6},
    {"minibatches": 4},
    {"phase_weights": {"trial": 0.25}},
]


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        (estimator, options)
        for estimator in ("k1", "k2", "k3")
        for options in OPTIONS
        if (estimator, options) != ("k2", {"kl_unbiased": True})  # no unbiased estimator
    ],
    ids=str,
)
def test_the_divergence_from_the_reference_is_a_mean_per_token(
    make_trainer: MakeTrainer, table: Any, estimator: str, options: dict[str, Any]
) -> None:
    trainer = make_trainer(kl_coef=0.1, kl_estimator=estimator, **options)
    reference = trainer.logprobs(table)
    for _, logits in trainer.named_weights():
        logits.copy_(logits + torch.randn(logits.shape, generator=torch.manual_seed(3)) / 2)
    here = trainer.logprobs(table)
    values = []
    for mine, theirs in zip(here, reference, strict=True):
        for delta in (mine - theirs)[~np.isnan(mine)].tolist():
            values.append(
                {"k1": delta, "k2": delta**2 / 2, "k3": math.exp(-delta) - 1 + delta}[estimator]
            )
    metrics = trainer.rl_step(table).metrics
    assert metrics["reference_kl"] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-6)


def test_without_a_reference_there_is_no_divergence(make_trainer: MakeTrainer, table: Any) -> None:
    assert math.isnan(make_trainer().rl_step(table).metrics["reference_kl"])


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_step_that_trains_on_nothing_measures_nothing(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make, minibatches: int
) -> None:
    trainer = make_trainer(minibatches=minibatches, kl_coef=0.1)
    table = make_table([make_episode(i, reward=1.0) for i in range(4)])
    metrics = trainer.rl_step(table).metrics
    measured = {name for name, value in metrics.items() if not math.isnan(value)}
    counts = {
        *("episodes", "trained_episodes", "loss_tokens", "sequence_tokens", "unscored_tokens"),
        *("optimizer_steps", "dropped", "dropped_zero_variance"),
    }
    assert measured == counts | {"seconds", "trial_cost_charged", "trial_cost_payers"}
    assert metrics["dropped_zero_variance"] == 4


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_step_whose_updates_all_fail_has_no_loss(
    make_trainer: MakeTrainer, table: Any, minibatches: int
) -> None:
    """The start of the step was scored where it had to be, and that stays a measurement."""

    class AllFail(BigramBackend):
        def step(self, lr_scale: float) -> float:
            self._logits_VV.grad = None
            raise NonFiniteError("found NaN or infinity: the weights are as before")

    metrics = make_trainer(AllFail, minibatches=minibatches).rl_step(table).metrics
    for name in ("loss", "grad_norm", "lr", "trained_reward", "trained_success", *PER_UPDATE):
        assert math.isnan(metrics[name]), name
    assert (metrics["optimizer_steps"], metrics["loss_tokens"]) == (0, 0)
    assert math.isnan(metrics["start_entropy"]) == (minibatches == 1)


def test_nothing_scored_has_no_mismatch(make_episode: Make, make_table: Make) -> None:
    batch = read_episodes(make_table([make_episode(0, reward=1.0), make_episode(1, reward=0.0)]))
    scores = Scores.empty(len(batch.token_ids_N))
    metrics = step_metrics(batch, select(batch, LearnerConfig()), scores, 1.0)
    for name in ("mismatch", "abs_dlogp_mean", "abs_dlogp_p99", "abs_dlogp_max", "start_entropy"):
        assert math.isnan(metrics[name]), name


def test_ranks_add_up_to_the_same_fractions(make_episode: Make, make_table: Make) -> None:
    batch = read_episodes(make_table([make_episode(0, reward=1.0), make_episode(1, reward=0.0)]))
    ranks = [Scores.empty(len(batch.token_ids_N)) for _ in range(2)]
    for scores, seen, clipped in zip(ranks, (30, 10), (3, 5), strict=True):
        scores.seen, scores.clipped, scores.grad_norms = seen, clipped, [1.0]
        scores.kl, scores.kl_seen = seen * 0.1, seen
    metrics = step_metrics(batch, select(batch, LearnerConfig()), Scores.merge(ranks), 1.0)
    assert metrics["clip_fraction"] == 8 / 40
    assert metrics["reference_kl"] == pytest.approx(0.1)
