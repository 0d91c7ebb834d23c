"""The trainer's own work on a small torch backend: updates, SFT, checkpoints, custom functions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.errors import ConfigError, LearnerError, NonFiniteError
from learner.config import LearnerConfig, SftConfig
from learner.objective.losses import LossInputs, token_loss
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from rollout.episode import Episode
from tests.learner.bigram_backend import VOCABULARY, BigramBackend

Make = Any
MakeTrainer = Callable[..., Trainer]
HERE = __name__


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Make a trainer with the options of `[learner]`, or with `sft` of that section."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))

    def make(sft: dict[str, Any] | None = None, **options: Any) -> Trainer:
        setup = TrainerSetup(
            rank=0,
            world_size=1,
            master_addr="",
            master_port=0,
            model_path=str(tmp_path),
            model=ModelConfig(path=str(tmp_path), max_model_len=40),
            learner=LearnerConfig.model_validate({"lr": 0.5, **options}),
            sft=None if sft is None else SftConfig.model_validate({"lr": 0.5, **sft}),
        )
        return Trainer(setup, BigramBackend)

    return make


def weights(trainer: Trainer) -> torch.Tensor:
    return next(tensor.clone() for _, tensor in trainer.named_weights())


def chance(trainer: Trainer, episode: Episode, make_table: Make) -> float:
    return float(np.nansum(trainer.logprobs(make_table([episode]))[0]))


def test_a_step_raises_what_was_rewarded_and_lowers_what_was_not(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    trainer = make_trainer()
    good, bad = make_episode(0, reward=1.0), make_episode(1, reward=0.0)
    before = [chance(trainer, episode, make_table) for episode in (good, bad)]
    report = trainer.rl_step(make_table([good, bad]))
    after = [chance(trainer, episode, make_table) for episode in (good, bad)]
    assert after[0] > before[0] and after[1] < before[1]
    assert report.dropped == []
    assert report.annotations is not None
    assert report.annotations["advantage"].to_pylist()[0] > 0


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_minibatch_makes_an_update_each_and_scores_the_start_of_the_step(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make, minibatches: int
) -> None:
    trainer = make_trainer(minibatches=minibatches, max_grad_norm=100.0)
    table = make_table([make_episode(i, reward=float(i % 2)) for i in range(4)])
    expected = trainer.logprobs(table)
    report = trainer.rl_step(table)
    assert report.metrics["optimizer_steps"] == minibatches
    assert report.annotations is not None
    for scored, at_start in zip(
        report.annotations["trainer_logprobs"].to_pylist(), expected, strict=True
    ):
        np.testing.assert_allclose(scored, at_start[~np.isnan(at_start)], rtol=1e-6)


def test_the_penalty_to_the_reference_starts_at_zero_and_grows(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    trainer = make_trainer(kl_coef=0.1)
    table = make_table([make_episode(i, reward=float(i % 2)) for i in range(4)])
    reports = [trainer.rl_step(table) for _ in range(3)]
    assert reports[0].metrics["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert reports[2].metrics["reference_kl"] > reports[0].metrics["reference_kl"] + 1e-4


def test_training_resumes_from_a_checkpoint_bit_for_bit(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make, tmp_path: Path
) -> None:
    """The learning rate too: it depends on the optimizer steps that the checkpoint counts."""
    first, second = make_trainer(decay_steps=5), make_trainer(decay_steps=5)
    table = make_table([make_episode(i, reward=float(i % 2)) for i in range(4)])
    first.rl_step(table)
    first.save_checkpoint(tmp_path / "000001", step=1)
    rates = [first.rl_step(table).metrics["lr"]]
    assert second.load_checkpoint(tmp_path / "000001") == 1
    rates.append(second.rl_step(table).metrics["lr"])
    assert torch.equal(weights(first), weights(second))
    assert rates[0] == rates[1] < 0.5


def test_sft_resumes_within_an_epoch_bit_for_bit(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make, tmp_path: Path
) -> None:
    section = {"batch_tokens": 48, "epochs": 2}
    table = make_table([make_episode(i) for i in range(6)])
    first, second = make_trainer(section), make_trainer(section)
    rows = []
    for row in first.sft(table, seed=7):
        rows.append(row)
        if row["step"] == 2:
            first.save_checkpoint(tmp_path / "000002", step=2)
    done = second.load_checkpoint(tmp_path / "000002")
    again = list(second.sft(table, seed=7, steps_done=done))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows[2:]]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert torch.equal(weights(first), weights(second))


def test_sft_without_any_valid_step_raises(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    trainer = make_trainer({"batch_tokens": 48, "lr": 1e-3})
    poisoned = weights(trainer) * float("nan")
    for _, tensor in trainer.named_weights():
        tensor.copy_(poisoned)
    with pytest.raises(NonFiniteError):
        list(trainer.sft(make_table([make_episode(i) for i in range(6)]), seed=7))


def test_sft_refuses_weights_that_leave_no_token(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    """The demonstrations have trials and executions; only notes have a weight."""
    table = make_table([make_episode(i) for i in range(2)])
    only_notes = {"phase_weights": {"trial": 0.0, "execution": 0.0}}
    with pytest.raises(ConfigError, match=r"set sft\.phase_weights\.execution to 1"):
        next(make_trainer(only_notes).sft(table))
    assert next(make_trainer({"phase_weights": {"trial": 0.0}}).sft(table))["loss"] > 0


def test_rl_and_sft_need_a_trainer_of_their_own(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    table = make_table([make_episode(0)])
    with pytest.raises(ConfigError, match=r"with an \[sft\] section"):
        next(make_trainer().sft(table))
    with pytest.raises(ConfigError, match=r"without an \[sft\] section"):
        make_trainer({}).rl_step(table)


def test_tokens_of_another_tokenizer_change_no_weight(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    trainer = make_trainer()
    start, episode = weights(trainer), make_episode(0, reward=1.0)
    foreign = replace(episode, token_ids_T=(VOCABULARY, *episode.token_ids_T[1:]))
    with pytest.raises(LearnerError, match="another tokenizer"):
        trainer.rl_step(make_table([foreign, make_episode(1)]))
    assert torch.equal(start, weights(trainer))


# Custom functions


def ppo_again(inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The built-in `token` loss."""
    return token_loss(inputs.log_ratio_P, inputs.advantages_P, inputs.clip)


def reversed_ppo(inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
    loss_P, cut_P = ppo_again(inputs)
    return -loss_P, cut_P


def test_a_custom_loss_trains_like_the_same_built_in_one(
    make_trainer: MakeTrainer, make_episode: Make, make_table: Make
) -> None:
    table = make_table([make_episode(i, reward=float(i % 2)) for i in range(4)])
    ends = []
    for loss in ("token", f"{HERE}:ppo_again", f"{HERE}:reversed_ppo"):
        trainer = make_trainer(loss=loss, clip_high=0.3)
        trainer.rl_step(table)
        ends.append(weights(trainer))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_custom_loss_that_cannot_be_imported_is_refused_before_the_backend_starts(
    make_trainer: MakeTrainer,
) -> None:
    with pytest.raises(ConfigError, match=r"learner\.loss = 'nowhere:loss'.*importable"):
        make_trainer(loss="nowhere:loss")
    make_trainer({}, loss="nowhere:loss")  # SFT has no such loss
