"""What environments ask of the world, answered from the record of a run: no server is contacted."""

from cluster.config.run_config import RunConfig
from envs.endpoints import Endpoint
from envs.errors import MissingError
from envs.server.traffic import TrafficReader
from envs.tasks import Score
from envs.tasksets.outside import Outside
from envs.tools import ToolSet
from rollout.episode import ANSWER_PART, Episode

_OF_RUNNER = ("malformed", "trial_cost")
"""Parts of a reward that no scorer gives."""


def recorded_world(record: TrafficReader, config: RunConfig) -> Outside:
    """Return what lists the tools that servers had when the episodes of `record` were played.

    Questions get no first observation: an episode has the whole question.
    """

    def list_tools(endpoint: Endpoint) -> ToolSet:
        found = record.tools_of(endpoint)
        if found is None:
            raise MissingError(
                f"expected the tools of {endpoint.place} in the record of the run, found none: no "
                "episode with them was recorded, or by a version that did not record them; a "
                "replay asks no server"
            )
        return found  # perhaps of another server: then no episode of the task was played

    return Outside(
        list_tools=list_tools,
        first_observation=lambda _: "",
        judge=config.judge,
        simulated_user=config.simulated_user,
        is_record=True,
    )


class RecordedScore:
    """Scorer that says again what the scorer of an episode said."""

    def __init__(self, episode: Episode) -> None:
        parts = dict(episode.reward_parts)
        reward = parts.pop(ANSWER_PART, 0.0)
        own = {name: value for name, value in parts.items() if name not in _OF_RUNNER}
        self._score = Score(reward, own, episode.score_notes)

    def score(self, answer: str) -> Score:
        """Return the recorded score, whatever the answer."""
        del answer
        return self._score
