"""What must never crash the learner, move its weights, or vanish without a word."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from envs.errors import ConfigError, LearnerError, MissingError, NonFiniteError
from learner.backends.skipped_steps import SkippedSteps
from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.limits import ModelLimits, read_limits
from learner.objective import advantages, selection
from learner.objective.selection import select
from learner.outputs.checkpoint import CheckpointRecord, load_checkpoint, save_checkpoint
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from rollout.episode import Episode, Outcome
from rollout.store.ledger_state import DropReason

BACKEND = "learner.backends.deepspeed_backend:DeepSpeedBackend"
"""Imported late: importing DeepSpeed takes many seconds, and most of these tests run without."""

NAN, INF = float("nan"), float("inf")
Make = Any


def with_logprobs(episode: Episode, *values: float) -> Episode:
    """Put `values` in place of the first behaviour logprobs."""
    sampled = [i for i, kept in enumerate(episode.loss_mask_T) if kept]
    logprobs = list(episode.logprobs_T)
    for index, value in zip(sampled, values, strict=False):
        logprobs[index] = value
    return replace(episode, logprobs_T=tuple(logprobs))


def teacher(episode: Episode) -> Episode:
    """The episode as a teacher plays it: nothing was sampled."""
    return replace(episode, logprobs_T=(NAN,) * len(episode.token_ids_T), source="expert")


BAD = {
    "bad_logprobs": [
        lambda make: with_logprobs(make(2, reward=1.0), -INF),
        lambda make: with_logprobs(make(2, reward=1.0), INF),
        lambda make: with_logprobs(make(2, reward=1.0), 0.5),
    ],
    "no_logprobs": [lambda make: teacher(make(2, reward=1.0))],
    "overlong": [lambda make: make(2, reward=1.0, length=44)],
    "no_reward": [lambda make: make(2, reward=None, outcome=Outcome.INFRA_FAILED)],
}


@pytest.mark.parametrize(
    ("reason", "spoil"), [(reason, spoil) for reason, made in BAD.items() for spoil in made]
)
@pytest.mark.parametrize("advantage", ["grpo", "rloo", "grpo_batch_std", "reinforce_pp"])
@pytest.mark.parametrize("credit", ["episode", "phase"])
def test_a_bad_episode_is_dropped_by_name_and_changes_no_other(
    make_episode: Make, make_table: Make, reason: str, spoil: Any, advantage: str, credit: str
) -> None:
    config = LearnerConfig.model_validate({"advantage": advantage, "credit": credit})
    good = [make_episode(0, reward=1.0), make_episode(1, reward=0.0), make_episode(3, reward=0.5)]
    alone = select(read_episodes(make_table(good)), config, 40)
    both = select(read_episodes(make_table([*good, spoil(make_episode)])), config, 40)
    assert both.kept == alone.kept == (0, 1, 2)
    assert both.reasons_B[3] == DropReason(reason)
    np.testing.assert_array_equal(both.advantages_B[:3], alone.advantages_B)
    tokens = len(alone.advantages_N)
    np.testing.assert_array_equal(both.advantages_N[:tokens], alone.advantages_N)


def test_every_reason_of_the_learner_has_a_place_in_the_ledger() -> None:
    reasons = {
        value
        for module in (advantages, selection)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    assert len(reasons) >= 10
    assert reasons <= {reason.value for reason in DropReason}


def test_an_empty_table_is_refused(make_episode: Make, make_table: Make) -> None:
    with pytest.raises(LearnerError, match="empty table"):
        read_episodes(make_table([make_episode(0)]).slice(0, 0))


def test_episodes_of_another_tokenizer_are_refused(make_episode: Make, make_table: Make) -> None:
    batch = read_episodes(make_table([make_episode(0)]))
    ModelLimits(64, 100).check(batch)
    with pytest.raises(LearnerError, match="another tokenizer"):
        ModelLimits(32, 100).check(batch)


def test_nothing_but_overlong_episodes_is_refused_by_sft(
    make_episode: Make, make_table: Make
) -> None:
    batch = read_episodes(make_table([make_episode(0, length=24), make_episode(1, length=40)]))
    assert ModelLimits(64, 30).fitting(batch) == [0]
    with pytest.raises(LearnerError, match="max_model_len"):
        ModelLimits(64, 20).fitting(batch)


def test_a_length_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    config = {"vocab_size": 64, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_limits(tmp_path, 128) == ModelLimits(64, 128)
    with pytest.raises(ConfigError, match="at most 128"):
        read_limits(tmp_path, 129)
    scaled = config | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(scaled))
    assert read_limits(tmp_path, 512).max_tokens == 512


class Folder:
    """A backend that keeps one file; enough for the marks around a checkpoint."""

    rank = 0
    loaded = False

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def save_state(self, path: Path) -> None:
        (path / "state").write_text("1")

    def load_state(self, path: Path) -> None:
        self.loaded = True


MINE = CheckpointRecord(4, 4, "mine", 1, 1, "adamw")


@pytest.mark.parametrize(
    "other",
    [
        replace(MINE, fingerprint="another model"),
        replace(MINE, optimizer="muon"),
        replace(MINE, zero_stage=3),
        replace(MINE, world_size=2),
    ],
)
def test_another_models_checkpoint_is_refused_before_anything_is_loaded(
    tmp_path: Path, other: CheckpointRecord
) -> None:
    backend: Any = Folder()
    save_checkpoint(backend, tmp_path / "4", MINE)
    with pytest.raises(ConfigError, match="expected a checkpoint with"):
        load_checkpoint(backend, tmp_path / "4", other)
    assert not backend.loaded
    with pytest.raises(MissingError):
        load_checkpoint(backend, tmp_path / "5", MINE)


def test_steps_are_counted_and_not_their_updates() -> None:
    """Two skipped steps in a row are borne; what some update was made of begins anew."""
    skips, error = SkippedSteps(2), NonFiniteError("infinite")
    for updates in (0, 0, 1, 0, 0):
        skips.end_step(updates, error)
    skips.end_step(0)
    with pytest.raises(NonFiniteError, match="infinite"):
        skips.end_step(0, error)


# With a real engine


@pytest.fixture(scope="module")
def trainer(llama_folder: Path) -> Iterator[Any]:
    """One rank of a real learner, which gives up at the third bad step in a row, of two updates."""
    before = dict(os.environ)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = Trainer(
        TrainerSetup(
            rank=0,
            world_size=1,
            master_addr="127.0.0.1",
            master_port=port,
            model_path=str(llama_folder),
            model=ModelConfig(path=str(llama_folder), max_model_len=40),
            learner=LearnerConfig(zero_stage=0, lr=1e-3, max_skipped_steps=2, minibatches=2),
        ),
        resolve_name(BACKEND),
    )
    yield one
    one.close()
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.named_weights()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def group(make: Make, make_table: Make, *extra: Episode) -> pa.Table:
    return make_table([make(0, reward=1.0), make(1, reward=0.0), *extra])


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("reason", sorted(BAD))
def test_a_bad_episode_changes_no_step(
    trainer: Any, make_episode: Make, make_table: Make, reason: str
) -> None:
    """The same step with and without it ends in the same weights, bit for bit."""
    start = weights(trainer)
    alone = trainer.rl_step(group(make_episode, make_table))
    moved = weights(trainer)
    assert not same(start, moved)
    set_weights(trainer, start)
    reset_optimizer(trainer)
    both = trainer.rl_step(group(make_episode, make_table, BAD[reason][0](make_episode)))
    assert both.dropped == [("e2", reason)]
    assert both.metrics["loss"] == alone.metrics["loss"]
    assert both.metrics[f"dropped_{reason}"] == 1
    again = weights(trainer)
    set_weights(trainer, start)
    reset_optimizer(trainer)
    assert trainer.rl_step(group(make_episode, make_table)).metrics["loss"] == alone.metrics["loss"]
    assert same(again, weights(trainer))


@pytest.mark.real
@pytest.mark.parametrize(
    ("rewards", "groups", "reason"),
    [
        ([1.0, 1.0], ["a", "a"], "zero_variance"),
        ([1.0, 0.0], ["a", "b"], "group_of_one"),
        ([None, None], ["a", "a"], "no_reward"),
    ],
)
def test_a_step_that_teaches_nothing_moves_nothing(
    trainer: Any, make_episode: Make, make_table: Make, rewards: Any, groups: Any, reason: str
) -> None:
    start = weights(trainer)
    episodes = [
        make_episode(
            i,
            reward=reward,
            group=name,
            outcome=Outcome.ANSWERED if reward is not None else Outcome.INFRA_FAILED,
        )
        for i, (reward, name) in enumerate(zip(rewards, groups, strict=True))
    ]
    report = trainer.rl_step(make_table(episodes))
    assert report.dropped == [("e0", reason), ("e1", reason)]
    assert report.metrics["optimizer_steps"] == 0
    assert same(start, weights(trainer))


@pytest.mark.real
def test_a_poisoned_model_drops_its_steps_by_name_and_then_gives_up(
    trainer: Any, make_episode: Make, make_table: Make
) -> None:
    start = weights(trainer)
    table = group(make_episode, make_table)
    set_weights(trainer, start | {"model.norm.weight": start["model.norm.weight"] * NAN})
    poisoned = weights(trainer)
    for _ in range(2):
        report = trainer.rl_step(table)
        assert report.dropped == [("e0", "non_finite"), ("e1", "non_finite")]
        assert report.metrics["optimizer_steps"] == 0
        assert report.annotations.column("dropped").to_pylist() == ["non_finite"] * 2
    with pytest.raises(NonFiniteError, match="weights are as before"):
        trainer.rl_step(table)
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(tensor, poisoned[name], rtol=0, atol=0, equal_nan=True)
    set_weights(trainer, start)
    assert trainer.rl_step(table).dropped == []


@pytest.mark.real
def test_another_tokenizers_episodes_reach_no_embedding(
    trainer: Any, make_episode: Make, make_table: Make
) -> None:
    episode = make_episode(0, reward=1.0)
    foreign = replace(episode, token_ids_T=(64, *episode.token_ids_T[1:]))
    start = weights(trainer)
    with pytest.raises(LearnerError, match="another tokenizer"):
        trainer.rl_step(make_table([foreign, make_episode(1)]))
    assert same(start, weights(trainer))


def set_weights(trainer: Any, wanted: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in trainer.named_weights():
            tensor.copy_(wanted[name])


def reset_optimizer(trainer: Any) -> None:
    trainer._backend._engine.optimizer.state.clear()
