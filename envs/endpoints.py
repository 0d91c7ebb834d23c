"""Tools that live outside of the sandbox: where they are, and how they are reached.

A worker reaches them with its own rights, so they come from the user's configuration and never over
the wire: a tool server refuses tool sets that have an endpoint.
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
    """Where each argument goes; those that are not named here are fields of a JSON body, and one in
    `body` is the whole of it.
    """
    wire_names: dict[str, str] = {}
    """The API's own names of arguments that have another name here, since the API uses it twice."""


class HttpEndpoint(_Endpoint):
    """A real HTTP API; `operations[i]` serves the tool set's `tools[i]`."""

    kind: Literal["http"] = "http"
    base_url: str
    operations: tuple[HttpOperation, ...]
    allowed_hosts: tuple[str, ...]
    """Who may be spoken to, redirects included: `host:port`, or `host` for ports 80 and 443. A name
    that leads to a private address needs that address listed beside it.
    """
    token_variable: str = ""
    """Environment variable with a token; empty for none."""
    token_location: Literal["bearer", "header", "query"] = "bearer"
    """How the token is sent: as a bearer token, or as the header or query key `token_name`."""
    token_name: str = ""

    @property
    def place(self) -> str:
        """Where it is, for messages and records."""
        return self.base_url


class McpStdioEndpoint(_Endpoint):
    """An MCP server started as a process, one per session."""

    kind: Literal["mcp-stdio"] = "mcp-stdio"
    command: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}
    """Its whole environment, beside PATH and HOME."""
    folder: str = ""
    """Working directory; empty for that of the worker."""

    @property
    def place(self) -> str:
        """What is run, for messages and records."""
        return " ".join(self.command)


class McpHttpEndpoint(_Endpoint):
    """An MCP server behind streamable HTTP; one MCP session per tool session."""

    kind: Literal["mcp-http"] = "mcp-http"
    url: str
    token_variable: str = ""
    """Environment variable with a bearer token; empty for none."""

    @property
    def place(self) -> str:
        """Where it is, for messages and records."""
        return self.url


class OpenEnvEndpoint(_Endpoint):
    """An OpenEnv environment behind its WebSocket; one environment session per tool session."""

    kind: Literal["openenv"] = "openenv"
    url: str
    """`http://host:port`; the route `/ws` is below it."""

    @property
    def place(self) -> str:
        """Where it is, for messages and records."""
        return self.url


Endpoint = Annotated[
    HttpEndpoint | McpStdioEndpoint | McpHttpEndpoint | OpenEnvEndpoint,
    Field(discriminator="kind"),
]
