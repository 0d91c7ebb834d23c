"""One rank of the learner: RL steps, SFT, logprobs, checkpoints and export, without Ray."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.errors import ConfigError, LearnerError, NonFiniteError
from envs.seeds import stable_hash
from learner.backends.backend import MakeBackend
from learner.backends.schedule import rl_scale, sft_scale
from learner.backends.skipped_steps import SkippedSteps
from learner.batch import EpisodeBatch, phase_weights, predictable, read_episodes
from learner.config import LearnerConfig, SftConfig, check_adapters
from learner.limits import read_limits
from learner.objective.custom import CustomFunctions, load_custom_functions
from learner.objective.losses import Aggregation, aggregation_weights
from learner.objective.objective import PackLoss, Prediction, Targets, pack_loss
from learner.objective.selection import NON_FINITE, Selection, select
from learner.outputs.checkpoint import CheckpointRecord, load_checkpoint, save_checkpoint
from learner.outputs.export import export_model
from learner.packed.packing import Pack, pack, share_of_rank
from learner.report import Scores, StepReport, annotate, step_metrics
from learner.trainer_setup import TrainerSetup

_SEED_BITS = 2**63 - 1
"""Largest seed that `torch.manual_seed` accepts."""


class Trainer:
    """One rank. Every rank calls the same methods with the same arguments, in the same order."""

    def __init__(self, setup: TrainerSetup, make_backend: MakeBackend) -> None:
        self.setup = setup
        self._config = setup.learner
        self._optimizer = setup.sft or setup.learner
        check_adapters(setup.model.lora, self._optimizer)
        self._limits = read_limits(Path(setup.model_path), setup.model.max_model_len)
        # Before the backend, which takes minutes to load a large model.
        self._custom = CustomFunctions() if setup.sft else load_custom_functions(setup.learner)
        self._backend = make_backend(setup)
        self._optimizer_steps = 0
        self._skips = SkippedSteps(self._optimizer.max_skipped_steps)

    def rl_step(self, table: pa.Table) -> StepReport:
        """Train on the episodes of `table` (EPISODE_SCHEMA); each rank trains on its share.

        An update in which anything is not finite changes no weight, and its episodes are dropped.
        Raises NonFiniteError after more than `max_skipped_steps` consecutive steps without any
        valid update.
        """
        if self.setup.sft is not None:
            raise ConfigError(
                "expected a trainer without an [sft] section for rl_step, found one with it"
            )
        started = time.perf_counter()
        batch = self._read(table)
        selection = select(batch, self._config, self._limits.max_tokens)
        scores = Scores.empty(len(batch.token_ids_N))
        parts = _minibatches(batch, selection.kept, self._config.minibatches)
        proximal_N = None
        if len(parts) * self._config.ppo_epochs > 1:
            scores = self._score(batch, selection.kept, selection.weights_N > 0)
            proximal_N = scores.logprobs_N.copy()
        trained: set[int] = set()
        failed: NonFiniteError | None = None
        for part in parts * self._config.ppo_epochs:
            try:
                self._update(batch, selection, part, scores, proximal_N)
                trained.update(part)
            except NonFiniteError as error:
                failed = error
        self._skips.end_step(len(scores.grad_norms), failed)
        selection = selection.without(set(selection.kept) - trained, NON_FINITE)
        merged = Scores.merge(self._backend.gather(scores))
        metrics = step_metrics(batch, selection, merged, time.perf_counter() - started)
        metrics["lr"] = self._last_rate() if merged.grad_norms else math.nan
        return StepReport(
            metrics=metrics,
            annotations=annotate(batch, selection, merged) if self._backend.rank == 0 else None,
            dropped=[
                (episode, reason)
                for episode, reason in zip(batch.episodes_B, selection.reasons_B, strict=True)
                if reason
            ],
        )

    def sft(
        self, table: pa.Table, seed: int = 0, steps_done: int = 0
    ) -> Iterator[dict[str, float]]:
        """Train on `table` for the configured epochs; yield the metrics of each optimizer step.

        Steps count from 1. The first `steps_done` are skipped: a loaded checkpoint contains them.
        A step in which anything is not finite changes no weight and yields nothing; the metric
        `skipped` counts these steps. Raises NonFiniteError after more than `max_skipped_steps` of
        them in a row, and if every step was one.
        """
        config = self._sft_config()
        batch = self._read(table)
        fitting = self._limits.fitting(batch)
        weights_N = phase_weights(batch, config.phase_weights)
        if not any(weights_N[batch.rows(index)].any() for index in fitting):
            raise ConfigError(
                "expected sft.phase_weights above 0 for a phase of the demonstrations, found none: "
                "no token would be trained on; set sft.phase_weights.execution to 1"
            )
        steps = [
            indices
            for epoch in range(config.epochs)
            for indices in _sft_batches(
                batch, fitting, config.batch_tokens, stable_hash(seed, "sft", epoch)
            )
        ]
        skipped = steps_done - self._optimizer_steps if steps_done else 0
        for step, indices in enumerate(steps[steps_done:], start=steps_done + 1):
            torch.manual_seed(stable_hash(seed, "dropout", step, self.setup.rank) & _SEED_BITS)
            scale = sft_scale(config, step - 1, len(steps))
            try:
                metrics = self._sft_update(batch, indices, weights_N, scale)
            except NonFiniteError as error:
                skipped += 1
                self._skips.end_step(0, error)
                if skipped == len(steps):
                    raise
                continue
            self._skips.end_step(1)
            yield metrics | {
                "step": float(step),
                "steps": float(len(steps)),
                "skipped": float(skipped),
                "dropped_overlong": float(len(batch) - len(fitting)),
            }

    def logprobs(self, table: pa.Table) -> list[NDArray[np.float32]]:
        """Return per episode the logprob of each token under the loss mask, NaN elsewhere.

        At the episode's sampling temperature, or 1 for greedy episodes. Every rank returns the
        same.
        """
        batch = self._read(table)
        scores = self._score(batch, range(len(batch)), predictable(batch))
        return [scores.logprobs_N[batch.rows(index)] for index in range(len(batch))]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (checkpoint's name, full tensor), valid until the next; every rank exhausts it."""
        return self._backend.named_weights()

    def pushed_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Like `named_weights`, for a push; with LoRA, only the adapters."""
        return self._backend.pushed_weights()

    def save_checkpoint(self, path: str | Path, step: int) -> None:
        """Write a checkpoint from which training resumes bit for bit; replaces an older one."""
        save_checkpoint(self._backend, Path(path), self._record(step), self.setup.signing)

    def load_checkpoint(self, path: str | Path) -> int:
        """Load a checkpoint and return the step it was saved at.

        Raises MissingError, LearnerError (incomplete, damaged, or of somebody else) or ConfigError
        (different model, number of ranks, optimizer or ZeRO stage).
        """
        record = load_checkpoint(self._backend, Path(path), self._record(0), self.setup.signing)
        self._optimizer_steps = record.optimizer_steps
        return record.step

    def export_model(self, path: str | Path) -> None:
        """Write a Hugging Face folder: safetensors, configuration, tokenizer.

        With LoRA the weights are merged, and the subfolder `adapter` holds them in PEFT's format.
        """
        export_model(self._backend, Path(self.setup.model_path), Path(path), self.setup.model)

    def close(self) -> None:
        """Free the backend; the process group lives until the process ends."""
        self._backend.close()

    def _read(self, table: pa.Table) -> EpisodeBatch:
        """Read and check the table. Ranks with different tables would deadlock, so compare them."""
        batch = read_episodes(table)
        self._limits.check(batch)
        key = stable_hash(len(batch.token_ids_N), *batch.episodes_B)
        if len(set(self._backend.gather(key))) > 1:
            raise LearnerError(
                "expected the same episodes on every rank, found different tables: pass "
                "the complete table to all of them"
            )
        return batch

    def _update(
        self,
        batch: EpisodeBatch,
        selection: Selection,
        part: Sequence[int],
        scores: Scores,
        proximal_N: NDArray[np.float32] | None,
    ) -> None:
        """Make one optimizer step on the episodes of `part`; adds its measurements to `scores`.

        Raises NonFiniteError, with scores and weights unchanged, where something was not finite.
        """
        targets = _targets(batch, selection, part, proximal_N, self._config)
        packs = self._packs(batch, part, selection.weights_N > 0)
        seen: list[tuple[Pack, PackLoss, Tensor, Tensor]] = []
        for index, packed in enumerate(packs):
            logprobs_P, entropies_P = self._backend.forward(packed)
            prediction = Prediction(logprobs_P, entropies_P, self._reference(packed))
            share = pack_loss(packed, prediction, targets, self._config, self._custom)
            self._backend.backward(share.loss, last=index == len(packs) - 1)
            seen.append((packed, share.detached(), logprobs_P.detach(), entropies_P.detach()))
        scores.grad_norms.append(self._step(rl_scale(self._config, self._optimizer_steps)))
        for packed, share, logprobs_P, entropies_P in seen:
            scores.add(share, len(packed.sources_P))
            if proximal_N is None:
                scores.record(packed, logprobs_P, entropies_P)

    def _sft_update(
        self,
        batch: EpisodeBatch,
        indices: Sequence[int],
        weights_N: NDArray[np.float32],
        scale: float,
    ) -> dict[str, float]:
        started = time.perf_counter()
        loss_N = _aggregate(batch, indices, weights_N, "token_mean", 1)
        packs = self._packs(batch, indices, loss_N > 0)
        loss = 0.0
        for index, packed in enumerate(packs):
            logprobs_P, _ = self._backend.forward(packed)
            weights_P = torch.from_numpy(loss_N[packed.sources_P]).to(logprobs_P.device)
            share = -(weights_P * logprobs_P).sum()
            self._backend.backward(share, last=index == len(packs) - 1)
            loss += float(share.detach())
        norm = self._step(scale)
        seconds = time.perf_counter() - started
        tokens = int(batch.lengths_B[list(indices)].sum())
        return {
            "loss": sum(self._backend.gather(loss)),
            "grad_norm": norm,
            "lr": self._optimizer.lr * scale,
            "loss_tokens": float((loss_N > 0).sum()),
            "sequence_tokens": float(tokens),
            "seconds": seconds,
            "sequence_tokens_per_s": tokens / seconds,
        }

    def _score(
        self, batch: EpisodeBatch, indices: Sequence[int], loss_N: NDArray[np.bool_]
    ) -> Scores:
        """Return logprobs and entropies of the current weights over all ranks' episodes."""
        scores = Scores.empty(len(batch.token_ids_N))
        for packed in self._packs(batch, indices, loss_N):
            scores.record(packed, *self._backend.score(packed))
        return Scores.merge(self._backend.gather(scores))

    def _reference(self, packed: Pack) -> Tensor | None:
        return self._backend.score(packed, reference=True)[0] if self._config.kl_coef else None

    def _packs(
        self, batch: EpisodeBatch, indices: Sequence[int], loss_N: NDArray[np.bool_]
    ) -> list[Pack]:
        # With no room for a second one, every episode gets a pack of its own.
        limit = self._optimizer.micro_batch_tokens if self._backend.packs else 0
        share = share_of_rank(batch, indices, self._backend.world_size, self._backend.rank, limit)
        return [pack(batch, episodes, loss_N) for episodes in share]

    def _last_rate(self) -> float:
        """Return the learning rate of the last update of RL."""
        return self._config.lr * rl_scale(self._config, max(self._optimizer_steps - 1, 0))

    def _step(self, lr_scale: float) -> float:
        norm = self._backend.step(lr_scale)
        self._optimizer_steps += 1
        return norm

    def _sft_config(self) -> SftConfig:
        if self.setup.sft is None:
            raise ConfigError(
                "expected a trainer with an [sft] section for SFT, found one without it"
            )
        return self.setup.sft

    def _record(self, step: int) -> CheckpointRecord:
        return CheckpointRecord(
            step=step,
            optimizer_steps=self._optimizer_steps,
            fingerprint=self._backend.fingerprint,
            world_size=self._backend.world_size,
            zero_stage=self._optimizer.zero_stage,
            optimizer=self._optimizer.optimizer,
        )


def _targets(
    batch: EpisodeBatch,
    selection: Selection,
    part: Sequence[int],
    proximal_N: NDArray[np.float32] | None,
    config: LearnerConfig,
) -> Targets:
    return Targets(
        advantages_N=selection.advantages_N,
        weights_N=_aggregate(
            batch, part, selection.weights_N, config.aggregation, config.constant_length
        ),
        behaviour_N=batch.logprobs_N,
        proximal_N=proximal_N,
    )


def _aggregate(
    batch: EpisodeBatch,
    indices: Sequence[int],
    weights_N: NDArray[np.float32],
    aggregation: Aggregation,
    constant_length: int,
) -> NDArray[np.float32]:
    """Return aggregated weights over the batch's tokens, 0 for episodes outside `indices`."""
    rows = [batch.rows(index) for index in indices]
    shares = aggregation_weights([weights_N[row] for row in rows], aggregation, constant_length)
    aggregated_N = np.zeros_like(weights_N)
    for row, share in zip(rows, shares, strict=True):
        aggregated_N[row] = share
    return aggregated_N


def _minibatches(batch: EpisodeBatch, kept: Sequence[int], count: int) -> list[list[int]]:
    """Split episodes into at most `count` parts of similar length, independent of the ranks."""
    by_length = sorted(kept, key=lambda index: (-int(batch.lengths_B[index]), index))
    return [part for part in (by_length[start::count] for start in range(count)) if part]


def _sft_batches(
    batch: EpisodeBatch, indices: Sequence[int], limit: int, seed: int
) -> list[list[int]]:
    """Split shuffled episodes into steps of at most `limit` tokens, or one longer episode."""
    steps: list[list[int]] = []
    space = 0
    for index in np.random.default_rng(seed).permutation(np.array(indices)).tolist():
        length = int(batch.lengths_B[index])
        if length > space:
            steps.append([])
            space = limit
        steps[-1].append(index)
        space -= length
    return steps
