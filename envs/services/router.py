"""The router of tool sets: the one service that opens sessions on tool sets of every kind."""

from collections.abc import Mapping

from envs.config import ToolServerConfig
from envs.endpoints import ChatEndpoint, Endpoint, HttpEndpoint, OpenEnvEndpoint
from envs.errors import ConfigError
from envs.remote.chat_client import ChatTools
from envs.remote.http_client import HttpTools
from envs.remote.mcp_client import McpTools, tool_set_of_mcp
from envs.remote.openenv_client import OpenEnvTools, tool_set_of_openenv
from envs.services.adapted import AdaptedTools
from envs.services.composite import CompositeTools
from envs.services.recorded import RecordingTools
from envs.tools import SessionPurpose, ToolService, ToolSession, ToolSet


class ToolRouter:
    """ToolService that passes each tool set to the service for its kind.

    Python code goes to `sandboxed` (a tool server's client, or a replay), and an endpoint to the
    service for its kind. Calls of an adaptation are translated, and its base is routed in the same
    way, as are the parts of a set that has several. `variables` are environment variables: they
    give tokens, and PATH and HOME of processes.
    """

    def __init__(
        self, sandboxed: ToolService, config: ToolServerConfig, variables: Mapping[str, str]
    ) -> None:
        self._sandboxed = sandboxed
        self._adapted = AdaptedTools(self)
        self._composite = CompositeTools(self)
        self._http = RecordingTools(HttpTools(config, variables), config)
        self._mcp = RecordingTools(McpTools(config, variables), config)
        self._openenv = RecordingTools(OpenEnvTools(config), config)
        self._chat = RecordingTools(ChatTools(config, variables), config)

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session in its initial state. Raises ToolServerError or DeadlineError."""
        return await self._service_of(tool_set).open_session(tool_set, seed, purpose, episode)

    async def close(self) -> None:
        """Close every service, including `sandboxed`."""
        for service in (self._http, self._mcp, self._openenv, self._chat, self._sandboxed):
            await service.close()

    def _service_of(self, tool_set: ToolSet) -> ToolService:
        if tool_set.sandboxed:
            return self._sandboxed
        if tool_set.parts:
            return self._composite
        if tool_set.endpoint is None:
            return self._adapted
        if isinstance(tool_set.endpoint, HttpEndpoint):
            return self._http
        if isinstance(tool_set.endpoint, ChatEndpoint):
            return self._chat
        return self._openenv if isinstance(tool_set.endpoint, OpenEnvEndpoint) else self._mcp


async def listed_tools(
    endpoint: Endpoint, config: ToolServerConfig, variables: Mapping[str, str]
) -> ToolSet:
    """Ask a server for its tools and return them as a tool set.

    Raises ToolServerError, DeadlineError, and ConfigError for an HTTP API, which cannot list tools.
    """
    if isinstance(endpoint, HttpEndpoint | ChatEndpoint):
        raise ConfigError(
            f"expected a server that lists its tools, found the HTTP API {endpoint.place}: "
            "give its OpenAPI document instead"
        )
    if isinstance(endpoint, OpenEnvEndpoint):
        return await tool_set_of_openenv(endpoint, config)
    return await tool_set_of_mcp(endpoint, config, variables)
