"""What the loop measures of a step beside the learner: the groups played, and their staleness."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.scheduling.played import PlayedGroup
from learner.objective.corrections import mismatch_kl
from learner.objective.credit import TrialYield, trial_yield
from rollout.episode import is_correct
from rollout.episode_schema import ragged
from rollout.store.ledger_state import DropReason


def played_metrics(groups: Sequence[PlayedGroup]) -> dict[str, float]:
    """Return what the groups that were played for a step say about the policy, those included that
    the step did not take: without them a good policy looks worse, and a bad one better.

    A mean over no episode is NaN.
    """
    groups = [group for group in groups if len(group.rewards_G)]
    correct = [is_correct(group.answers_G) for group in groups]
    reasons = [group.reason for group in groups]
    return {
        "success": _mean_over([group.answers_G for group in groups]),
        "reward": _mean_over([group.rewards_G for group in groups]),
        "played_groups": float(len(groups)),
        "played_episodes": float(sum(len(group.rewards_G) for group in groups)),
        "replaced_groups": float(reasons.count(DropReason.ZERO_VARIANCE)),
        "stale_groups": float(reasons.count(DropReason.STALE)),
        "zero_variance": _share([not np.ptp(group.rewards_G) for group in groups]),
        "truncated": _mean_over([group.truncated_G for group in groups]),
        "all_right_groups": float(sum(bool(right_G.all()) for right_G in correct)),
        "all_wrong_groups": float(sum(not right_G.any() for right_G in correct)),
        "trial_calls": _mean_over([group.trial_calls_G for group in groups]),
        "distinct_trials": _mean_over([group.distinct_G for group in groups]),
        "sampled_tokens": float(sum(group.sampled_tokens for group in groups)),
        **yield_metrics(groups),
    }


def yield_metrics(groups: Sequence[PlayedGroup]) -> dict[str, float]:
    """Return the gain in the chance of a correct answer per distinct trial call, and that of any
    such call against none, as `credit.trial_yield` estimates them.

    Over all groups played, because a group of equal answers has a slope of 0 and a weight: a mean
    over the groups that vary would take the slope of a few for that of all.
    """
    answers_B = np.concatenate([group.answers_G for group in groups] or [np.empty(0)])
    doses_B = np.concatenate([group.distinct_G for group in groups] or [np.empty(0)])
    doses_B = doses_B.astype(np.float64)
    groups_B = [group.name for group in groups for _ in group.answers_G]
    return {
        **_yield("trial_yield", trial_yield(answers_B, doses_B, groups_B)),
        **_yield(
            "trial_yield_any", trial_yield(answers_B, (doses_B > 0).astype(np.float64), groups_B)
        ),
    }


def staleness_metrics(step: int, table: pa.Table) -> dict[str, float]:
    """Return by how many versions the oldest token of the episodes of `table` lags behind the
    weights at the start of `step`; NaN if nothing was sampled.
    """
    oldest_B = table["oldest_version"].to_numpy()
    lag_B = np.maximum(step - 1 - oldest_B[oldest_B >= 0], 0)
    return {
        "staleness_mean": float(lag_B.mean()) if len(lag_B) else math.nan,
        "staleness_max": float(lag_B.max()) if len(lag_B) else math.nan,
    }


def mismatch_by_staleness(
    step: int, table: pa.Table, annotations: pa.Table | None
) -> dict[str, float]:
    """Return the mismatch of tokens that were sampled with the weights at the start of `step`,
    which is the engine's alone, and of older tokens, which has the policy's own steps in it.

    `annotations` are the learner's, one row per episode of `table`; without them both are NaN.
    """
    sums, counts = np.zeros(2), np.zeros(2)
    for trainer_N, sampler_N, version_N in _scored(table, annotations):
        stale_N = version_N < step - 1
        for stale in range(2):
            chosen_N = stale_N == stale
            if count := np.count_nonzero(chosen_N):
                sums[stale] += count * mismatch_kl(trainer_N[chosen_N], sampler_N[chosen_N])
                counts[stale] += count
    fresh, stale = np.divide(sums, counts, out=np.full(2, math.nan), where=counts > 0)
    return {"mismatch_fresh": float(fresh), "mismatch_stale": float(stale)}


def _scored(
    table: pa.Table, annotations: pa.Table | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]]:
    """Yield per scored token of a few episodes the logprobs of learner and sampler, and the
    sampler's version. A few at a time, because arrays over all tokens of a step are slow to make.
    """
    if annotations is None:
        return
    if len(annotations) != len(table):
        raise ValueError(f"expected one annotation per episode, found {len(annotations)}")
    row = 0
    for batch in table.to_batches():
        notes = _one_batch(annotations.slice(row, len(batch)))
        row += len(batch)
        logprobs, positions = ragged(batch, "logprobs"), ragged(notes, "loss_positions")
        if len(positions.values) == 0:
            continue
        # Positions in the tokens of all episodes of the batch, which lie one after the other.
        first_N = np.repeat(logprobs.offsets[:-1], np.diff(positions.offsets))
        token_N = positions.values + first_N
        versions_N = _versions(batch, logprobs.offsets)[token_N]
        yield ragged(notes, "trainer_logprobs").values, logprobs.values[token_N], versions_N


def _versions(batch: pa.RecordBatch, offsets_B: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the version that sampled each token of all episodes, of which b starts at
    `offsets_B[b]`; tokens before the first sampled one have that of the episode before, or -1.
    """
    lists: Any = batch.column("spans")
    spans = lists.flatten()
    starts_S = spans.field("start").to_numpy() + offsets_B[lists.value_parent_indices().to_numpy()]
    versions_S = spans.field("version").to_numpy().astype(np.int64)
    lengths = np.diff(np.concatenate([[0], starts_S, [offsets_B[-1]]]))
    return np.repeat(np.concatenate([[-1], versions_S]), lengths)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def _share(holds: Sequence[bool]) -> float:
    return sum(holds) / len(holds) if holds else math.nan


def _mean_over(columns: Sequence[NDArray[Any]]) -> float:
    return float(np.concatenate(columns).mean()) if columns else math.nan


def _yield(name: str, found: TrialYield) -> dict[str, float]:
    return {
        name: found.value,
        f"{name}_se": found.standard_error,
        f"{name}_groups": float(found.groups),
    }
