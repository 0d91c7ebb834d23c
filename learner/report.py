"""Report of an RL step: metrics, and annotations with the learner's values per episode."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from learner.batch import EpisodeBatch
from learner.objective.corrections import mismatch
from learner.objective.objective import PackLoss
from learner.objective.selection import Selection
from learner.packed.packing import Pack

ANNOTATION_SCHEMA = pa.schema(
    {
        "episode": pa.string(),
        "advantage": pa.float32(),
        "trial_advantage": pa.float32(),
        "dropped": pa.string(),
        "loss_positions": pa.list_(pa.int32()),
        "trainer_logprobs": pa.list_(pa.float32()),
        "entropies": pa.list_(pa.float32()),
    }
)
"""`dropped` is empty for a trained episode; its lists have one entry per token under the loss.

`trial_advantage` is null unless `credit = "phase"`; `advantage` is then that of the execution.
"""


@dataclass(slots=True, kw_only=True)
class Scores:
    """What a rank measures during a step over its N tokens; NaN where it scored nothing.

    `logprobs_N` are those of the weights at the start of the step, at the sampling temperature. The
    rest is summed over the updates that were made: `loss`; `seen`, their tokens, a token counted
    once per update; how many of these were `clipped`, `masked` and `corrected`; and the sum `kl`
    over the `kl_seen` tokens that a reference scored.
    """

    logprobs_N: NDArray[np.float32]
    entropies_N: NDArray[np.float32]
    loss: float = 0.0
    kl: float = 0.0
    kl_seen: int = 0
    seen: int = 0
    clipped: int = 0
    masked: int = 0
    corrected: int = 0
    grad_norms: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, tokens: int) -> "Scores":
        """Return scores without any measurement."""
        return cls(
            logprobs_N=np.full(tokens, np.nan, np.float32),
            entropies_N=np.full(tokens, np.nan, np.float32),
        )

    def add(self, share: PackLoss, tokens: int) -> None:
        """Add the loss and counts of one pack with `tokens` tokens under the loss."""
        self.loss += float(share.loss.detach())
        self.seen += tokens
        if share.kl is not None:
            self.kl += share.kl
            self.kl_seen += tokens
        self.clipped += share.clipped
        self.masked += share.masked
        self.corrected += share.corrected

    def record(self, packed: Pack, logprobs_P: Tensor, entropies_P: Tensor) -> None:
        """Store logprobs and entropies of the predicted tokens of a pack."""
        self.logprobs_N[packed.sources_P] = logprobs_P.detach().cpu().numpy()
        self.entropies_N[packed.sources_P] = entropies_P.detach().cpu().numpy()

    @classmethod
    def merge(cls, ranks: "Sequence[Scores]") -> "Scores":
        """Combine the scores of all ranks; each token was scored by one of them."""
        merged = cls.empty(len(ranks[0].logprobs_N))
        for scores in ranks:
            scored_N = ~np.isnan(scores.logprobs_N)
            merged.logprobs_N[scored_N] = scores.logprobs_N[scored_N]
            merged.entropies_N[scored_N] = scores.entropies_N[scored_N]
            merged.loss += scores.loss
            merged.kl += scores.kl
            merged.kl_seen += scores.kl_seen
            merged.seen += scores.seen
            merged.clipped += scores.clipped
            merged.masked += scores.masked
            merged.corrected += scores.corrected
        merged.grad_norms = ranks[0].grad_norms
        return merged


@dataclass(frozen=True, slots=True)
class StepReport:
    """`annotations` (ANNOTATION_SCHEMA, one row per episode) exist on rank 0 only; `dropped` are
    (episode, reason) of all excluded episodes."""

    metrics: dict[str, float]
    annotations: pa.Table | None
    dropped: list[tuple[str, str]]


def step_metrics(
    batch: EpisodeBatch, selection: Selection, scores: Scores, seconds: float
) -> dict[str, float]:
    """Return the metrics of a step, the same on every rank.

    A number of which nothing was measured is NaN, never 0: in a step without any update the loss,
    the gradient and what is counted per update; without any trained episode their rewards.
    `cluster/metrics.py` says over what each of them is taken.
    """
    kept = list(selection.kept)
    updates = len(scores.grad_norms)
    sequence_tokens = int(batch.lengths_B[kept].sum())
    metrics = {
        "loss": _ratio(scores.loss, updates),
        "grad_norm": _mean(np.array(scores.grad_norms)),
        "trained_reward": _mean(batch.rewards_B[kept]),
        "trained_success": _mean(batch.credit.answers_B[kept]),
        "episodes": float(len(batch)),
        "trained_episodes": float(len(kept)),
        "loss_tokens": float(_loss_tokens(batch, selection)),
        "sequence_tokens": float(sequence_tokens),
        "clip_fraction": _ratio(scores.clipped, scores.seen),
        "masked_fraction": _ratio(scores.masked, scores.seen),
        "corrected_fraction": _ratio(scores.corrected, scores.seen),
        "unscored_tokens": float(selection.unscored),
        "reference_kl": _ratio(scores.kl, scores.kl_seen),
        "optimizer_steps": float(updates),
        "seconds": seconds,
        "sequence_tokens_per_s": sequence_tokens / seconds if kept else math.nan,
    }
    metrics |= start_metrics(batch, scores) | credit_metrics(selection)
    reasons = Counter(reason for reason in selection.reasons_B if reason)
    metrics["dropped"] = float(reasons.total())
    return metrics | {f"dropped_{reason}": float(count) for reason, count in reasons.items()}


def start_metrics(batch: EpisodeBatch, scores: Scores) -> dict[str, float]:
    """Return what the weights at the start of the step make of the tokens that they scored."""
    scored_N = ~np.isnan(scores.logprobs_N)
    gap = mismatch(scores.logprobs_N[scored_N], batch.logprobs_N[scored_N])
    return {
        "start_entropy": _mean(scores.entropies_N[scored_N]),
        "mismatch": gap.kl,
        "abs_dlogp_mean": gap.mean,
        "abs_dlogp_p99": gap.p99,
        "abs_dlogp_max": gap.max,
    }


def credit_metrics(selection: Selection) -> dict[str, float]:
    """Return the costs of trials over episodes with a reward to compare, and what the advantages
    became.
    """
    compared_B = np.isfinite(selection.rewards.episode_B)
    costs_B = selection.rewards.costs_B[compared_B]
    return {
        "trial_cost_charged": _mean(costs_B),
        "trial_cost_payers": _mean(costs_B > 0),
        "trial_advantage_size": _mean_size(selection.trial_advantages_B),
        "advantage_size": _mean_size(selection.advantages_B),
    }


def _loss_tokens(batch: EpisodeBatch, selection: Selection) -> int:
    """Return how many tokens of trained episodes are under the loss."""
    kept_B = np.zeros(len(batch), bool)
    kept_B[list(selection.kept)] = True
    return int((np.repeat(kept_B, batch.lengths_B) & (selection.weights_N > 0)).sum())


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _mean_size(advantages_B: NDArray[np.float32]) -> float:
    return _mean(np.abs(advantages_B[~np.isnan(advantages_B)]))


def annotate(batch: EpisodeBatch, selection: Selection, scores: Scores) -> pa.Table:
    """Return one row per episode of `batch`, in its order."""
    trained_N = ~np.isnan(scores.logprobs_N)
    counts_N1 = np.concatenate([[0], np.cumsum(trained_N)])
    offsets = pa.array(counts_N1[batch.offsets], pa.int32())
    positions_N = np.arange(len(trained_N)) - np.repeat(batch.offsets[:-1], batch.lengths_B)
    return pa.table(
        [
            pa.array(batch.episodes_B),
            *(
                pa.array(advantages_B, pa.float32(), mask=np.isnan(advantages_B))
                for advantages_B in (selection.advantages_B, selection.trial_advantages_B)
            ),
            pa.array(selection.reasons_B, pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(positions_N[trained_N], pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(scores.logprobs_N[trained_N], pa.float32())),
            pa.ListArray.from_arrays(
                offsets, pa.array(scores.entropies_N[trained_N], pa.float32())
            ),
        ],
        schema=ANNOTATION_SCHEMA,
    )
