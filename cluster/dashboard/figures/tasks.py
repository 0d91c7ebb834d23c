"""Scores of tasks, each with its best and its worst episode."""

from dataclasses import dataclass

from cluster.dashboard.index.run_index import RunIndex

_SCORES = """
WITH last AS (
    SELECT arg_max(uid, (attempt, uid)) AS uid FROM episodes GROUP BY episode
), scored AS (
    SELECT e.task AS task, d.question AS question, e.episode AS episode,
           coalesce(p.value, 0) AS score
    FROM last JOIN episodes e USING (uid) JOIN details d USING (uid)
    LEFT JOIN (SELECT * FROM parts WHERE name = 'answer') p USING (uid)
    WHERE e.reward IS NOT NULL AND isfinite(coalesce(p.value, 0))
)
SELECT task, question, avg(score), arg_max(episode, score), arg_min(episode, score)
FROM scored GROUP BY task, question
"""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Mean score of a task's episodes that count."""

    task: str
    question: str
    score: float
    best: str
    worst: str


def task_scores(index: RunIndex) -> dict[tuple[str, str], TaskScore]:
    """Return the scores by task and question; the same id with another question is another task."""
    return {(row[0], row[1]): TaskScore(*row) for row in index.rows(_SCORES)}
