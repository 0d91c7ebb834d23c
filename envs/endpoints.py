"""Endpoints: the addresses of tools outside of the sandbox.

A worker contacts them with its own rights. So they come only from the user's configuration, never
over the wire: a tool server refuses tool sets that have an endpoint.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_READING = frozenset({"get", "head", "options"})


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

    @property
    def isolation(self) -> str:
        """`read-only` or `shared`: who sees what a session changes."""
        reads = all(operation.method in _READING for operation in self.operations)
        return "read-only" if reads else "shared"


Keeps = Literal["session"] | None
"""What the user says of a server: that its state is that of its session alone."""
SCRATCH = "{scratch}"
"""In a command: the folder that every session gets for itself, and that is deleted at its end."""


class McpStdioEndpoint(_Endpoint):
    """An MCP server started as a process, one per session.

    `{scratch}` in `command`, `start` and the values of `environment` is a new empty folder of the
    session.
    """

    kind: Literal["mcp-stdio"] = "mcp-stdio"
    command: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}
    """Its complete environment, in addition to PATH, HOME and `variables`."""
    variables: tuple[str, ...] = ()
    """Environment variables of the worker that it gets as well, for example those of tokens."""
    folder: str = ""
    """Working directory; empty for the worker's."""
    start: tuple[str, ...] = ()
    """Command that prepares a session, run before the server; empty for none."""
    state: Keeps = None
    """`session`: the user says that the server keeps no state outside of its process."""

    @property
    def place(self) -> str:
        """Command line for messages and records."""
        return " ".join(self.command)

    @property
    def isolation(self) -> str:
        """`scratch`, `session` or `shared`: who sees what a session changes."""
        has_folder = any(SCRATCH in text for text in (*self.command, *self.environment.values()))
        return "scratch" if has_folder else self.state or "shared"


class McpHttpEndpoint(_Endpoint):
    """An MCP server behind HTTP; one MCP session per tool session."""

    kind: Literal["mcp-http"] = "mcp-http"
    url: str
    token_variable: str = ""
    """Environment variable with a bearer token; empty for none."""
    transport: Literal["http", "sse"] | None = None
    """`http` is streamable HTTP, `sse` the older transport; None tries to find out."""
    state: Keeps = None
    """`session`: the user says that the server keeps no state outside of an MCP session."""

    @property
    def place(self) -> str:
        """Address for messages and records."""
        return self.url

    @property
    def isolation(self) -> str:
        """`session` or `shared`: who sees what a session changes."""
        return self.state or "shared"


class OpenEnvEndpoint(_Endpoint):
    """An OpenEnv environment behind its WebSocket; one environment session per tool session."""

    kind: Literal["openenv"] = "openenv"
    url: str
    """`http://host:port`; the route `/ws` is appended."""

    @property
    def place(self) -> str:
        """Address for messages and records."""
        return self.url

    @property
    def isolation(self) -> str:
        """`session`: a connection has an environment of its own."""
        return "session"


class ChatEndpoint(_Endpoint):
    """A model behind an OpenAI-compatible API, for judges and simulated users.

    Its one tool takes `messages` and answers with the text of the reply.
    """

    kind: Literal["chat"] = "chat"
    base_url: str
    """Address without `/chat/completions`."""
    model: str
    key_variable: str = ""
    """Environment variable with the API key; empty for none."""
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout_s: float = 60.0
    """Seconds for one attempt."""
    attempts: int = 4
    extra: dict[str, JsonValue] = {}
    """Additional fields of every request."""

    @property
    def place(self) -> str:
        """Address for messages and records."""
        return f"{self.model} at {self.base_url}"

    @property
    def isolation(self) -> str:
        """`session`: a reply depends on the request alone."""
        return "session"


Endpoint = Annotated[
    HttpEndpoint | McpStdioEndpoint | McpHttpEndpoint | OpenEnvEndpoint | ChatEndpoint,
    Field(discriminator="kind"),
]
