"""The record of an episode that has ended."""

from dataclasses import dataclass

from envs.tasks import Score, Task
from envs.tools import AnswerStatus
from rollout.config import EpisodeConfig
from rollout.episode import ANSWER_PART, Episode, Lease, Outcome, Sampling, Timings
from rollout.identity import Identity
from rollout.kept_turns import Standing
from rollout.observation import Cutter
from rollout.phase_tools import PhaseTools
from rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An episode at its end; times in seconds, `started_at` of the wall clock."""

    lease: Lease
    task: Task
    config: EpisodeConfig
    identity: Identity
    outcome: Outcome
    error: str
    started_at: float
    wall_s: float
    trajectory: Trajectory
    at: Standing
    tools: PhaseTools
    cutter: Cutter
    score: Score
    """Zero where no scorer was asked: there was no answer."""
    kept_turns: int | None
    """Turns that an earlier attempt made; None if it started anew."""


def record_of(ended: Ended) -> Episode:
    """Return the episode. Raises EpisodeError if it contradicts itself."""
    task, config, trajectory = ended.task, ended.config, ended.trajectory
    reward, parts = _reward(ended)
    return Episode(
        lease=ended.lease,
        environment=task.environment,
        split=task.split,
        mode=config.mode,
        outcome=ended.outcome,
        error=ended.error,
        reward=reward,
        reward_parts=parts,
        score_notes=ended.score.notes if ended.outcome.counts else {},
        answer=ended.at.answers[-1] if ended.at.answers else "",
        question=task.question,
        tags=task.tags,
        token_ids_T=tuple(trajectory.token_ids_T),
        phases_T=tuple(trajectory.phases_T),
        logprobs_T=tuple(trajectory.logprobs_T),
        spans=tuple(trajectory.spans),
        turns=tuple(trajectory.turns),
        messages=tuple(trajectory.messages),
        sampling=Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=ended.lease.seed,
        ),
        timings=Timings(
            started_at=ended.started_at,
            wall_s=ended.wall_s,
            queue_s=trajectory.queue_s,
            generate_s=trajectory.generate_s,
            tool_s=trajectory.tool_s,
        ),
        source=ended.identity.source,
        worker=ended.identity.worker,
        tool_server=ended.tools.servers,
        isolation=ended.tools.isolation,
        extra={key: float(value) for key, value in _counts(ended).items()},
    )


def _reward(ended: Ended) -> tuple[float | None, dict[str, float]]:
    if not ended.outcome.counts:
        return None, {}
    config, at = ended.config, ended.at
    malformed = -config.malformed_penalty if at.faults else 0.0
    trial_cost = -config.trial_call_cost * at.used["trial"]
    parts = {
        **ended.score.parts,
        ANSWER_PART: ended.score.reward,
        "malformed": malformed,
        "trial_cost": trial_cost,
    }
    return ended.score.reward + malformed + trial_cost, parts


def _counts(ended: Ended) -> dict[str, int]:
    calls = [call for turn in ended.trajectory.turns for call in turn.calls]
    return {
        "trial_calls": ended.at.used["trial"],
        "execution_calls": ended.at.used["execution"],
        "tool_errors": sum(call.status is not AnswerStatus.OK for call in calls),
        "policy_errors": ended.at.faults,
        "replayed_calls": ended.tools.replayed_calls,
        "replay_differences": ended.tools.replay_differences,
        **ended.cutter.counts,
        **({"user_messages": len(ended.at.said)} if ended.at.said else {}),
        **({"kept_turns": ended.kept_turns} if ended.kept_turns is not None else {}),
    }
