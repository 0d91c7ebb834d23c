"""Endpoints: the addresses of tools outside of the sandbox.

A worker contacts them with its own rights. So they come only from the user's configuration, never
over the wire: a tool server refuses tool sets that have an endpoint.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Endpoint(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HttpOperation(_Endpoint):
    """How the call of one tool becomes an HTTP request (OpenAPI's terms)."""

    method: Literal["get", "put", "post", "delete", "patch", "head", "options"]
    path: str
    """Path template below the base URL, for example `/movie/{movie_id}`."""
    locations: dict[str, Literal["path", "query", "header", "cookie", "body"]] = {}
    """Part of the request that each argument goes to. Arguments that are not named here are fields
    of a JSON body; an argument in `body` is the complete body.
    """
    wire_names: dict[str, str] = {}
    """The API's names of arguments that are renamed here because the API uses one name twice."""


class HttpEndpoint(_Endpoint):
    """A real HTTP API; `operations[i]` serves the tool set's `tools[i]`."""

    kind: Literal["http"] = "http"
    base_url: str
    operations: tuple[HttpOperation, ...]
    allowed_hosts: tuple[str, ...]
    """Hosts that may be contacted, also by redirects: `host:port`, or `host` for ports 80 and 443.
    If a name resolves to a private address, that address must be listed too.
    """
    token_variable: str = ""
    """Environment variable with a token; empty for none."""
    token_location: Literal["bearer", "header", "query"] = "bearer"
    """How the token is sent: as a bearer token, or as the header or query key `token_name`."""
    token_name: str = ""

    @property
    def place(self) -> str:
        """Address for messages and records."""
        return self.base_url


class McpStdioEndpoint(_Endpoint):
    """An MCP server started as a process, one per session."""

    kind: Literal["mcp-stdio"] = "mcp-stdio"
    command: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}
    """Its complete environment, in addition to PATH and HOME."""
    folder: str = ""
    """Working directory; empty for the worker's."""

    @property
    def place(self) -> str:
        """Command line for messages and records."""
        return " ".join(self.command)


class McpHttpEndpoint(_Endpoint):
    """An MCP server behind streamable HTTP; one MCP session per tool session."""

    kind: Literal["mcp-http"] = "mcp-http"
    url: str
    token_variable: str = ""
    """Environment variable with a bearer token; empty for none."""

    @property
    def place(self) -> str:
        """Address for messages and records."""
        return self.url


class OpenEnvEndpoint(_Endpoint):
    """An OpenEnv environment behind its WebSocket; one environment session per tool session."""

    kind: Literal["openenv"] = "openenv"
    url: str
    """`http://host:port`; the route `/ws` is appended."""

    @property
    def place(self) -> str:
        """Address for messages and records."""
        return self.url


Endpoint = Annotated[
    HttpEndpoint | McpStdioEndpoint | McpHttpEndpoint | OpenEnvEndpoint,
    Field(discriminator="kind"),
]
