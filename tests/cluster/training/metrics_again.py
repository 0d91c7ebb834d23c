"""The metrics of a step from what the run directory holds, by plain Python of its own."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.metrics import METRICS
from rollout.episode import Episode, Outcome, Phase
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_reader import RunReader

OF_THE_LEARNER = {
    *("loss", "grad_norm", "lr", "optimizer_steps", "reference_kl", "masked_fraction"),
    *("corrected_fraction", "trial_cost_charged", "trial_cost_payers", "unscored_tokens"),
    *("seconds", "sequence_tokens_per_s", "trial_advantage_size"),
}
"""Not in the stored episodes; tests/learner/test_report.py works them out."""
OF_THE_LOOP = {
    *("collect_s", "learn_s", "push_s", "step_s", "sampled_tokens_per_s"),
    *("loop_lag_p50_s", "loop_lag_p99_s", "loop_lag_max_s", "stalled_s"),
    *("workers", "worker_losses", "pushed_weights_digest", "weights_digest"),
    *("step", "steps", "skipped"),
}
"""Times, counters and hashes."""


@dataclass
class Stored:
    """An episode of the store, and what the ledger says about it."""

    episode: Episode
    step: int | None
    collected_for: int | None
    state: State
    reason: DropReason | None

    @property
    def calls(self) -> list[str]:
        return [call.arguments for turn in self.episode.turns for call in turn.calls]

    @property
    def sampled(self) -> int:
        return sum(phase != Phase.PROMPT for phase in self.episode.phases_T)

    @property
    def answer(self) -> float:
        return self.episode.reward_parts["answer"]


def stored_of(path: Path) -> list[Stored]:
    reader = RunReader(path)
    found = []
    for row in reader.last_attempts():
        entry = reader.ledger().entries[row.episode]
        episode = reader.episode(row.episode)
        found.append(Stored(episode, entry.step, entry.collected_for, entry.state, entry.reason))
    return found


def by_group(episodes: list[Stored]) -> list[list[Stored]]:
    names = dict.fromkeys(stored.episode.lease.group for stored in episodes)
    return [[s for s in episodes if s.episode.lease.group == name] for name in names]


def slope_within(groups: list[list[Stored]], dose_of: Callable[[Stored], float]) -> Any:
    """Return the fixed-effects slope of answers over doses, by sums over pairs of episodes."""
    top = bottom = 0.0
    varying = 0
    for group in groups:
        pairs = [(a, b) for i, a in enumerate(group) for b in group[:i]]
        weights = [(dose_of(a) - dose_of(b)) ** 2 / len(group) for a, b in pairs]
        varying += sum(weights) > 0
        bottom += sum(weights)
        top += sum((dose_of(a) - dose_of(b)) * (a.answer - b.answer) / len(group) for a, b in pairs)
    return (top / bottom if bottom else math.nan), varying


def again_over_played(episodes: list[Stored], step: int) -> dict[str, float]:
    played = [s for s in episodes if step in (s.step, s.collected_for)]
    groups = by_group(played)
    reasons = [group[0].reason for group in groups if group[0].collected_for == step]
    found: dict[str, float] = {
        "success": statistics.fmean(s.answer for s in played),
        "reward": statistics.fmean(s.episode.reward or 0.0 for s in played),
        "played_groups": len(groups),
        "played_episodes": len(played),
        "replaced_groups": reasons.count(DropReason.ZERO_VARIANCE),
        "stale_groups": reasons.count(DropReason.STALE),
        "zero_variance": mean(len({s.episode.reward for s in group}) == 1 for group in groups),
        "truncated": mean(s.episode.outcome is Outcome.TRUNCATED for s in played),
        "all_right_groups": sum(all(s.answer == 1 for s in group) for group in groups),
        "all_wrong_groups": sum(all(s.answer == 0 for s in group) for group in groups),
        "trial_calls": statistics.fmean(len(s.calls) for s in played),
        "distinct_trials": statistics.fmean(len(set(s.calls)) for s in played),
        "sampled_tokens": sum(s.sampled for s in played),
    }
    doses: dict[str, Callable[[Stored], float]] = {
        "trial_yield": lambda s: float(len(set(s.calls))),
        "trial_yield_any": lambda s: float(bool(s.calls)),
    }
    for name, dose_of in doses.items():
        found[name], found[f"{name}_groups"] = slope_within(groups, dose_of)
    return found


def again_over_given(episodes: list[Stored], step: int) -> dict[str, float]:
    given = [s for s in episodes if s.step == step]
    trained = [s for s in given if s.state is State.TRAINED]
    left_out = [s.reason for s in given if s.state is State.DROPPED]
    lags = [step - 1 - min(span.version for span in s.episode.spans) for s in given]
    found: dict[str, float] = {
        "episodes": len(given),
        "trained_episodes": len(trained),
        "dropped": len(left_out),
        "trained_success": mean(s.answer for s in trained),
        "trained_reward": mean(s.episode.reward or 0.0 for s in trained),
        "sequence_tokens": sum(len(s.episode.token_ids_T) for s in trained),
        "loss_tokens": sum(s.sampled for s in trained),
        "staleness_mean": mean(lags),
        "staleness_max": max(lags),
    }
    return found | {
        f"dropped_{reason}": float(left_out.count(reason)) for reason in set(left_out) if reason
    }


def mean(values: Any) -> float:
    listed = list(values)
    return statistics.fmean(listed) if listed else math.nan


def again_over_tokens(path: Path, episodes: list[Stored], step: int) -> dict[str, float]:
    """One update a step, so each token was seen once, with the weights of the start."""
    by_name = {s.episode.lease.episode: s.episode for s in episodes}
    entropies, k3, sizes, clipped = [], {True: [], False: []}, [], []
    advantages = []
    for row in RunReader(path).annotations(step).to_pylist():
        episode = by_name[row["episode"]]
        if row["advantage"] is not None:
            advantages.append(abs(row["advantage"]))
        entropies += row["entropies"]
        for at, logprob in zip(row["loss_positions"], row["trainer_logprobs"], strict=True):
            version = [span.version for span in episode.spans if span.start <= at][-1]
            delta = logprob - episode.logprobs_T[at]
            ratio = math.exp(delta)
            k3[version == step - 1].append(ratio - 1 - delta)
            sizes.append(abs(delta))
            gain = row["advantage"] > 0
            clipped.append(ratio > 1.25 if gain else ratio < 0.8)
    return {
        "start_entropy": mean(entropies),
        "mismatch": mean(k3[True] + k3[False]),
        "mismatch_fresh": mean(k3[True]),
        "mismatch_stale": mean(k3[False]),
        "abs_dlogp_mean": mean(sizes),
        "abs_dlogp_p99": float(np.percentile(sizes, 99)) if sizes else math.nan,
        "abs_dlogp_max": max(sizes, default=math.nan),
        "clip_fraction": mean(clipped),
        "advantage_size": mean(advantages),
    }


def check_every_step(path: Path, steps: range) -> list[dict[str, float]]:
    """Compare the recorded rows of `steps` with what the directory says; return them."""
    episodes = stored_of(path)
    rows = {row.step: row.values for row in RunReader(path).metrics()}
    compared: set[str] = set()
    for step in steps:
        again = {
            **again_over_played(episodes, step),
            **again_over_given(episodes, step),
            **again_over_tokens(path, episodes, step),
        }
        compared |= again.keys()
        for name, value in again.items():
            found = rows[step].get(name, math.nan)
            assert found == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (step, name)
    errors = {f"{name}_se" for name in ("trial_yield", "trial_yield_any")}
    reasons = {name for name in METRICS if name.startswith("dropped_")}
    assert METRICS.keys() - compared - OF_THE_LEARNER - OF_THE_LOOP - errors - reasons == set()
    return [rows[step] for step in steps]
