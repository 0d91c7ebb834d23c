"""What environments may ask of the world outside of their files."""

from collections.abc import Callable
from dataclasses import dataclass, field

from envs.config import JudgeConfig, SimulatedUserConfig
from envs.endpoints import Endpoint
from envs.tools import ToolSet

ListTools = Callable[[Endpoint], ToolSet]
"""Returns a server's tools. Raises ToolServerError, DeadlineError, ConfigError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Servers that list tools, and the models of judges and simulated users."""

    list_tools: ListTools
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    simulated_user: SimulatedUserConfig = field(default_factory=SimulatedUserConfig)
