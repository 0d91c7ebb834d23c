"""What environments may ask of the world outside of their files."""

from collections.abc import Callable
from dataclasses import dataclass, field

from envs.config import JudgeConfig, SimulatedUserConfig
from envs.endpoints import Endpoint, OpenEnvEndpoint
from envs.errors import ConfigError
from envs.tools import ToolSet

ListTools = Callable[[Endpoint], ToolSet]
"""Returns a server's tools. Raises ToolServerError, DeadlineError, ConfigError."""


def _asks_nobody(endpoint: OpenEnvEndpoint) -> str:
    raise ConfigError(f"expected a way to ask {endpoint.place} for an observation, found none")


FirstObservation = Callable[[OpenEnvEndpoint], str]
"""Returns the observation of a reset, as text. Raises as ListTools does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Servers that list tools, and the models of judges and simulated users."""

    list_tools: ListTools
    first_observation: FirstObservation = _asks_nobody
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    simulated_user: SimulatedUserConfig = field(default_factory=SimulatedUserConfig)
    is_record: bool = False
    """Whether `list_tools` answers from the record of a run, which has only the tools that its
    tasks wanted.
    """
