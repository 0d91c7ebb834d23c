"""Several scorers as one: each is a named part of the reward, which is their weighted mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.errors import InfraError, ScoringError
from envs.evidence import Evidence
from envs.tasks import EpisodeScorer, Score, Scorer, reads_state, score_episode


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedScorer:
    """A scorer, the name of its part, and its weight; one of weight 0 is only recorded."""

    name: str
    scorer: Scorer | EpisodeScorer
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class WeightedScorers:
    """EpisodeScorer of one or more others, run in order.

    The reward is the sum of weight times score, over the sum of the weights. So it stays within
    [0, 1] where every scorer does. Parts of a scorer's own are named `SCORER.PART`.
    """

    scorers: Sequence[NamedScorer]

    @property
    def reads_state(self) -> bool:
        return any(reads_state(each.scorer) for each in self.scorers)

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return the weighted mean. Raises ScoringError, which names the scorer that failed."""
        total, parts, notes = 0.0, {}, {}
        for each in self.scorers:
            try:
                score = await score_episode(each.scorer, evidence)
            except InfraError as error:
                raise ScoringError(f"scorer {each.name}: {error}") from error
            checked(score, each.name)
            total += each.weight * score.reward
            parts[each.name] = score.reward
            parts |= _below(each.name, {k: v for k, v in score.parts.items() if k != "answer"})
            notes |= {each.name if not k else f"{each.name}.{k}": v for k, v in score.notes.items()}
        return Score(total / sum(each.weight for each in self.scorers), parts, notes)


def checked(score: Score, name: str) -> Score:
    """Return `score`. Raises ScoringError if a number of it is not finite."""
    for part, value in {name: score.reward, **_below(name, score.parts)}.items():
        if not math.isfinite(value):
            raise ScoringError(f"scorer {name}: expected finite numbers, found {part} = {value}")
    return score


def _below(name: str, parts: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}.{part}": value for part, value in parts.items()}
