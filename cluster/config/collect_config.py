"""The config section of collecting episodes to imitate."""

from typing import Literal

from pydantic import Field

from envs.config import Section
from rollout.engines.openai_config import EndpointConfig
from rollout.evaluation.teacher_filter import FilterConfig

CollectSource = Literal["scripted", "endpoint", "policy"]


class CollectSection(Section):
    """`[collect]`: who plays, how often, and what is kept."""

    source: CollectSource = "scripted"
    """`scripted`: the environment's own teacher; `endpoint`: a model behind an OpenAI-compatible
    API; `policy`: the recipe's model on the rollout workers (rejection sampling, best-of-n).
    """
    tasks: int = Field(default=200, ge=1)
    """Training tasks to play; of a file of tasks, at most all."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature, in place of the episode's."""
    concurrency: int = Field(default=16, ge=1)
    """Episodes played at once."""
    endpoint: EndpointConfig = EndpointConfig()
    """The endpoint of source `endpoint`."""
    filter: FilterConfig = FilterConfig()
    """Which episodes are kept."""
