"""The config section of collecting demonstrations for SFT."""

from typing import Literal

from pydantic import Field

from envs.config import Section
from rollout.engines.openai_config import EndpointConfig
from rollout.evaluation.teacher_filter import FilterConfig

CollectSource = Literal["scripted", "endpoint", "policy"]


class CollectSection(Section):
    """`[collect]`: source, number and selection of demonstrations."""

    source: CollectSource = "scripted"
    """`scripted`: the environment's own teacher; `endpoint`: a model behind an OpenAI-compatible
    API; `policy`: the recipe's model on the rollout workers (rejection sampling, best-of-n).
    """
    tasks: int = Field(default=200, ge=1)
    """Number of training tasks; a file of tasks gives at most all of its tasks."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature; replaces `episode.temperature`."""
    concurrency: int = Field(default=16, ge=1)
    """Episodes that run concurrently."""
    endpoint: EndpointConfig = EndpointConfig()
    """The endpoint of source `endpoint`."""
    filter: FilterConfig = FilterConfig()
    """Which episodes are selected."""
