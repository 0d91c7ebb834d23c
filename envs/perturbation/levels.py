"""Definition of each perturbation level."""

from collections.abc import Mapping
from dataclasses import dataclass

from envs.config import PerturbationLevel
from envs.perturbation.docs import DocNoise
from envs.perturbation.names import NameNoise


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a level; shares are probabilities per tool or per parameter."""

    names: tuple[NameNoise, ...]
    """Each name gets one of these, sampled uniformly."""
    documents: tuple[DocNoise, ...]
    """Each tool gets one of these, sampled uniformly."""
    exchange: bool = False
    """Whether tools exchange names with each other, and the parameters of a tool too."""
    added_share: float = 0.0
    """Share of tools with an additional required parameter that does nothing."""
    drift_share: float = 0.0
    """Share of parameters whose type changes, among those where no value is lost."""
    distractors: int = 0
    fault_rate: float = 0.0
    slow_rate: float = 0.0
    latency_s: float = 0.0


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
