"""Reward parts and trial calls of episodes, read from Arrow for credit by phase."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rollout.episode import Phase

_TRIAL_PHASES = (int(Phase.TRIAL), int(Phase.EXPERIENCE))


@dataclass(frozen=True, slots=True)
class CreditColumns:
    """Per episode: reward parts, and counts from its turns.

    `answers_B` is the reward part of the answer (the total reward if there is no such part, NaN
    without a reward); `malformed_B` and `trial_cost_B` are parts of the reward, at most 0.
    `distinct_B` counts trial calls whose name and arguments are new in the episode: only they
    can have shown anything new.
    """

    answers_B: NDArray[np.float64]
    malformed_B: NDArray[np.float64]
    trial_cost_B: NDArray[np.float64]
    trial_calls_B: NDArray[np.int64]
    distinct_B: NDArray[np.int64]
    trial_faults_B: NDArray[np.bool_]
    execution_faults_B: NDArray[np.bool_]


def read_credit_columns(batch: pa.RecordBatch) -> CreditColumns:
    """Read the reward parts and the turns of every episode."""
    rewards_B = batch.column("reward").to_numpy(zero_copy_only=False).astype(np.float64)
    parts = [dict(row) for row in batch.column("reward_parts").to_pylist()]
    answers_B = np.array([row.get("answer", np.nan) for row in parts])
    turns_B: Any = batch.column("turns")
    turns = turns_B.flatten()
    episode_of_turn = turns_B.value_parent_indices().to_numpy()
    in_trial = np.isin(turns.field("phase").to_numpy(), _TRIAL_PHASES)
    faulty = np.array([bool(error) for error in turns.field("policy_error").to_pylist()], bool)
    count = batch.num_rows
    trial_calls_B, distinct_B = _trial_calls(turns, episode_of_turn, count)
    return CreditColumns(
        answers_B=np.where(np.isfinite(answers_B), answers_B, rewards_B),
        malformed_B=np.array([row.get("malformed", 0.0) for row in parts]),
        trial_cost_B=np.array([row.get("trial_cost", 0.0) for row in parts]),
        trial_calls_B=trial_calls_B,
        distinct_B=distinct_B,
        trial_faults_B=np.bincount(episode_of_turn, faulty & in_trial, count) > 0,
        execution_faults_B=np.bincount(episode_of_turn, faulty & ~in_trial, count) > 0,
    )


def _trial_calls(
    turns: Any, episode_of_turn: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return per episode the number of trial calls, and of different ones."""
    lists = turns.field("calls")
    calls = lists.flatten()
    episodes = episode_of_turn[lists.value_parent_indices().to_numpy()]
    columns = (calls.field(name).to_pylist() for name in ("name", "arguments", "purpose"))
    made = [
        (episode, name, arguments)
        for episode, name, arguments, purpose in zip(episodes.tolist(), *columns, strict=True)
        if purpose == "trial"
    ]
    return _per_episode(made, count), _per_episode(list(dict.fromkeys(made)), count)


def _per_episode(calls: list[tuple[int, str, str]], count: int) -> NDArray[np.int64]:
    return np.bincount(np.array([call[0] for call in calls], dtype=np.int64), minlength=count)
