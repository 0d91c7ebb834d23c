"""Episodes for the learner: flat token arrays and row offsets over Arrow buffers."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.errors import LearnerError
from learner.credit_columns import CreditColumns, read_credit_columns
from learner.credit_config import PhaseWeights
from rollout.episode import Phase
from rollout.episode_schema import ragged


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """B episodes over N tokens; b has `offsets[b]:offsets[b + 1]`. A missing reward is NaN."""

    episodes_B: tuple[str, ...]
    groups_B: tuple[str, ...]
    outcomes_B: tuple[str, ...]
    rewards_B: NDArray[np.float32]
    temperatures_B: NDArray[np.float32]
    offsets: NDArray[np.int32]
    token_ids_N: NDArray[np.int32]
    phases_N: NDArray[np.int8]
    loss_mask_N: NDArray[np.bool_]
    logprobs_N: NDArray[np.float32]
    sources_B: tuple[str, ...]
    credit: CreditColumns

    def __len__(self) -> int:
        return len(self.episodes_B)

    @property
    def lengths_B(self) -> NDArray[np.int32]:
        """Tokens per episode."""
        return np.diff(self.offsets)

    def rows(self, index: int) -> slice:
        """Return the tokens of one episode."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def sequences(self, index: int) -> list[slice]:
        """Return the parts of an episode that the policy saw apart from each other, in order.

        An episode that forks (its context was written again, as without earlier thoughts) has a
        new prompt in its middle, from which on the policy saw nothing of what came before.
        """
        row = self.rows(index)
        prompt_T = self.phases_N[row] == Phase.PROMPT
        forks = np.flatnonzero(prompt_T[1:] & ~prompt_T[:-1]) + 1
        edges = [row.start, *(row.start + forks).tolist(), row.stop]
        return [slice(start, stop) for start, stop in pairwise(edges)]

    def longest(self, index: int) -> int:
        """Return the length of the longest sequence of an episode, in tokens."""
        return max(part.stop - part.start for part in self.sequences(index))


def read_episodes(table: pa.Table) -> EpisodeBatch:
    """Read the columns the learner needs; one chunk is read without a copy.

    Raises LearnerError for token columns of different lengths.
    """
    if table.num_rows == 0:
        raise LearnerError("expected at least one episode, found an empty table")
    batch = table.combine_chunks().to_batches()[0]
    tokens = {
        name: ragged(batch, name) for name in ("token_ids", "phases", "loss_mask", "logprobs")
    }
    offsets = tokens["token_ids"].offsets
    for name, column in tokens.items():
        if not np.array_equal(column.offsets, offsets):
            raise LearnerError(
                f"expected {name} as long as token_ids in every episode, found another length"
            )
    return EpisodeBatch(
        episodes_B=tuple(batch.column("episode").to_pylist()),
        groups_B=tuple(batch.column("group").to_pylist()),
        outcomes_B=tuple(batch.column("outcome").to_pylist()),
        rewards_B=batch.column("reward").to_numpy(zero_copy_only=False).astype(np.float32),
        temperatures_B=batch.column("temperature")
        .to_numpy(zero_copy_only=False)
        .astype(np.float32),
        offsets=offsets,
        token_ids_N=tokens["token_ids"].values,
        phases_N=tokens["phases"].values,
        loss_mask_N=tokens["loss_mask"].values,
        logprobs_N=tokens["logprobs"].values,
        sources_B=tuple(batch.column("source").to_pylist()),
        credit=read_credit_columns(batch),
    )


def predictable(batch: EpisodeBatch) -> NDArray[np.bool_]:
    """Return the loss mask without first tokens, which nothing precedes to predict them from."""
    mask_N = batch.loss_mask_N.copy()
    mask_N[batch.offsets[:-1][batch.lengths_B > 0]] = False
    return mask_N


def sampled_counts(batch: EpisodeBatch) -> NDArray[np.int64]:
    """Return per episode how many tokens the policy sampled."""
    before = np.concatenate([[0], np.cumsum(batch.loss_mask_N)])
    return np.diff(before[batch.offsets])


def phase_weights(batch: EpisodeBatch, weights: PhaseWeights) -> NDArray[np.float32]:
    """Return the loss weight of every token: that of its phase where it is predicted, else 0."""
    by_phase = np.zeros(len(Phase), dtype=np.float32)
    by_phase[[Phase.TRIAL, Phase.EXPERIENCE, Phase.EXECUTION]] = (
        weights.trial,
        weights.experience,
        weights.execution,
    )
    return by_phase[batch.phases_N] * predictable(batch)
