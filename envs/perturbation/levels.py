"""The perturbation levels: what each of them changes."""

from collections.abc import Mapping
from dataclasses import dataclass

from envs.config import PerturbationLevel
from envs.perturbation.docs import DocNoise
from envs.perturbation.names import NameNoise


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a level; shares are probabilities per tool or per parameter."""

    names: tuple[NameNoise, ...]
    """One of these is sampled for each name; repeated entries have more weight."""
    documents: tuple[DocNoise, ...]
    """One of these is sampled for the documentation of each tool."""
    exchange: bool = False
    """Whether tools exchange their names, and the parameters of a tool exchange theirs."""
    added_share: float = 0.0
    """Chance that a tool gets one more required parameter, which has no effect."""
    drift_share: float = 0.0
    """Chance that a parameter changes its type, if its type can change without loss."""
    distractors: int = 0
    """Number of tools that are added and useless."""
    fault_rate: float = 0.0
    """Chance that a call fails with a tool fault."""
    slow_rate: float = 0.0
    """Chance that a call is delayed."""
    latency_s: float = 0.0
    """Seconds by which a slow call is delayed."""


LEVELS: Mapping[PerturbationLevel, Recipe] = {
    "slight": Recipe(names=("typo", "typo", "keep"), documents=("keep", "paraphrase")),
    "medium": Recipe(
        names=("reverse", "nonsense", "keep"),
        documents=("paraphrase", "shorten"),
        drift_share=0.5,
        distractors=1,
    ),
    "heavy": Recipe(
        names=("keep",),
        documents=("keep", "paraphrase"),
        exchange=True,
        added_share=0.5,
        drift_share=0.5,
        distractors=2,
        fault_rate=0.05,
        slow_rate=0.05,
        latency_s=0.1,
    ),
    "union": Recipe(
        names=("typo", "reverse", "nonsense", "keep"),
        documents=("keep", "paraphrase", "shorten", "strip"),
        exchange=True,
        added_share=0.5,
        drift_share=0.5,
        distractors=2,
        fault_rate=0.1,
        slow_rate=0.1,
        latency_s=0.1,
    ),
}
