"""Report of an RL step: metrics, and annotations with the learner's values per episode."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from learner.batch import EpisodeBatch
from learner.objective.corrections import mismatch
from learner.objective.credit import TrialYield, trial_yield
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


@dataclass(slots=True)
class Scores:
    """What a rank measures during a step over its N tokens; NaN where it scored nothing.

    `logprobs_N` are those of the weights at the start of the step, at the sampling temperature.
    """

    logprobs_N: NDArray[np.float32]
    entropies_N: NDArray[np.float32]
    loss: float = 0.0
    kl: float = 0.0
    clipped: int = 0
    masked: int = 0
    corrected: int = 0
    grad_norms: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, tokens: int) -> "Scores":
        """Return scores without any measurement."""
        return cls(np.full(tokens, np.nan, np.float32), np.full(tokens, np.nan, np.float32))

    def add(self, share: PackLoss) -> None:
        """Add the loss and counts of one pack."""
        self.loss += float(share.loss.detach())
        self.kl += share.kl
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
    """Return the metrics of a step, the same on every rank; means are per token under loss.

    A step without any trained episode reports zeros, but still its `reward_mean`.
    """
    trained_N = ~np.isnan(scores.logprobs_N)
    tokens = int(trained_N.sum())
    updates = max(len(scores.grad_norms), 1)
    gap = mismatch(scores.logprobs_N[trained_N], batch.logprobs_N[trained_N])
    compared_B = np.isfinite(selection.rewards.episode_B)
    rewards = batch.rewards_B[np.isfinite(batch.rewards_B) & compared_B]
    sequence_tokens = int(batch.lengths_B[list(selection.kept)].sum())
    metrics = {
        "loss": scores.loss / updates,
        "grad_norm": float(np.mean(scores.grad_norms)) if scores.grad_norms else 0.0,
        "reward_mean": float(rewards.mean()) if len(rewards) else math.nan,
        "episodes": float(len(batch)),
        "trained_episodes": float(len(selection.kept)),
        "tokens": float(tokens),
        "sequence_tokens": float(sequence_tokens),
        "entropy": float(scores.entropies_N[trained_N].mean()) if tokens else 0.0,
        "clip_fraction": scores.clipped / (updates * tokens) if tokens else 0.0,
        "masked_fraction": scores.masked / (updates * tokens) if tokens else 0.0,
        "corrected_fraction": scores.corrected / (updates * tokens) if tokens else 0.0,
        "unscored_tokens": float(selection.unscored),
        "reference_kl": scores.kl / updates,
        "mismatch_kl": gap.kl,
        "dlogp_mean": gap.mean,
        "dlogp_p99": gap.p99,
        "dlogp_max": gap.max,
        "optimizer_steps": float(len(scores.grad_norms)),
        "seconds": seconds,
        "tokens_per_s": sequence_tokens / seconds,
    }
    metrics |= credit_metrics(batch, selection)
    reasons = Counter(reason for reason in selection.reasons_B if reason)
    metrics["dropped"] = float(reasons.total())
    return metrics | {f"dropped_{reason}": float(count) for reason, count in reasons.items()}


def credit_metrics(batch: EpisodeBatch, selection: Selection) -> dict[str, float]:
    """Return cost and benefit of trials over episodes with a reward; NaN without information.

    `trial_yield` is the gain in the chance of a correct answer per informative trial call,
    `trial_yield_any` that of any such call against none (estimated by `credit.trial_yield`).
    """
    valid_B = np.isfinite(selection.rewards.episode_B)
    answers_B = np.where(valid_B, batch.credit.answers_B, np.nan)
    doses_B = batch.credit.informative_B.astype(np.float64)
    per_call = trial_yield(answers_B, doses_B, batch.groups_B)
    any_call = trial_yield(answers_B, (doses_B > 0).astype(np.float64), batch.groups_B)
    costs_B = selection.rewards.costs_B[valid_B]
    return {
        **_yield_metrics("trial_yield", per_call),
        **_yield_metrics("trial_yield_any", any_call),
        "informative_trials": float(doses_B[valid_B].mean()) if valid_B.any() else math.nan,
        "trial_cost_charged": float(costs_B.mean()) if valid_B.any() else 0.0,
        "trial_cost_payers": float((costs_B > 0).mean()) if valid_B.any() else 0.0,
        "trial_advantage_size": _mean_size(selection.trial_advantages_B),
        "advantage_size": _mean_size(selection.advantages_B),
    }


def _yield_metrics(name: str, found: TrialYield) -> dict[str, float]:
    return {
        name: found.value,
        f"{name}_se": found.standard_error,
        f"{name}_groups": float(found.groups),
    }


def _mean_size(advantages_B: NDArray[np.float32]) -> float:
    known = advantages_B[~np.isnan(advantages_B)]
    return float(np.abs(known).mean()) if len(known) else 0.0


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
