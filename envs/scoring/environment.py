"""The reward that an environment itself gives, such as that of an OpenEnv server."""

import json
from dataclasses import dataclass
from typing import Literal

from envs.errors import ScoringError
from envs.evidence import Evidence
from envs.tasks import Score
from envs.tools import REWARD_CALL, AnswerStatus, ToolCall

Total = Literal["sum", "last", "max"]


@dataclass(frozen=True, slots=True)
class EnvironmentReward:
    """EpisodeScorer that adds up the rewards of the steps of the execution phase, or takes the last
    or the highest one. Without any step it is 0.
    """

    total: Total = "sum"

    @property
    def reads_state(self) -> bool:
        return False

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return the reward, whatever its range. Raises ScoringError if no step had one."""
        [answer] = await evidence.execution.call([ToolCall(name=REWARD_CALL, arguments={})])
        if answer.status is not AnswerStatus.OK:
            raise ScoringError(answer.text)
        told = json.loads(answer.text)
        rewards: list[float] = told["rewards"]
        if told["steps"] and not rewards:
            raise ScoringError("the environment gave no reward for any step: use another scorer")
        match self.total:
            case "sum":
                value = sum(rewards)
            case "last":
                value = rewards[-1] if rewards else 0.0
            case "max":
                value = max(rewards, default=0.0)
        return Score(value)
