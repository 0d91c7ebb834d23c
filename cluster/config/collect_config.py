"""The config section of collecting demonstrations for SFT."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section
from rollout.engines.openai_config import EndpointConfig
from rollout.evaluation.teacher_filter import FilterConfig

CollectSource = Literal["scripted", "endpoint", "policy", "turns"]


class CollectSection(Section):
    """`[collect]`: source, number and selection of demonstrations."""

    source: CollectSource = "scripted"
    """`scripted`: the environment's own teacher; `endpoint`: a model behind an OpenAI-compatible
    API; `policy`: the recipe's model on the rollout workers (rejection sampling, best-of-n);
    `turns`: what you wrote in `turns`.
    """
    turns: str = ""
    """JSON file of source `turns`, as `trialrun check --play` takes it: a task with a list of its
    turns, each a text or a call. Only the training tasks in it are collected.
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

    @model_validator(mode="after")
    def _names_its_turns(self) -> Self:
        if (self.source == "turns") != bool(self.turns):
            found = f"source {self.source!r} and turns {self.turns!r}"
            raise ValueError(
                "expected collect.turns (--turns), a JSON file, with collect.source = 'turns' and "
                f"with no other, found {found}"
            )
        return self
