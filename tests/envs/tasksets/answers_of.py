"""Scores of plain answers, for tasks that look at nothing else."""

from envs.tasks import EpisodeScorer, Task


def score_of(task: Task, answer: str) -> float:
    """Return the reward of `answer`."""
    assert not isinstance(task.scorer, EpisodeScorer)
    return task.scorer.score(answer).reward
