"""Endpoints: the addresses of tools outside of the sandbox.

A worker contacts them with its own rights. So they come only from the user's configuration, never
over the wire: a tool server refuses tool sets that have an endpoint.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

_READING = frozenset({"get", "head", "options"})


_LATER_KEYS = frozenset({"world", "reset"})
UNSENT_HEADERS = frozenset(
    {
        *("connection", "content-encoding", "content-length", "expect", "host", "keep-alive"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("x-http-method", "x-http-method-override", "x-method-override"),
    }
)
"""Headers that no argument sets, whatever a document says: those of the connection itself, and
those that would make another method of a request, so that a trial could write.
"""


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address, without user, password, path and query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that is no URL"
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{port}"


def without_address(text: str, url: str) -> str:
    """Return `text` with `origin_of(url)` in the place of `url`, which may hold keys."""
    bare = url.rstrip("/")
    socket = f"ws{bare.removeprefix('http')}"
    for address in filter(None, (bare, socket)):
        text = text.replace(address, origin_of(url))
    return text


class _Endpoint(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WireArgument(_Endpoint):
    """Where the value of one argument goes in an HTTP request, and how it is written there."""

    place: Literal["path", "query", "header", "cookie", "field", "body"]
    """`field` is a field of the body, `body` all of it."""
    name: str
    """The API's name."""
    style: Literal[
        "simple", "label", "matrix", "form", "spaceDelimited", "pipeDelimited", "deepObject", ""
    ] = ""
    """OpenAPI's word for how lists and objects are written; empty for the default of the place."""
    explode: bool | None = None
    """Whether every item is written by itself; None for the default of the style."""
    allow_reserved: bool = False
    """Whether reserved characters (`/?#[]@!$&'()*+,;=:`) stay as they are in a query."""
    media_type: str = ""
    """Written as text of this type instead of in a style: JSON if its name says so."""


class HttpBody(_Endpoint):
    """How the body of a request is written."""

    media_type: str
    """Sent as `Content-Type`."""
    form: Literal["json", "urlencoded", "multipart", "text"] = "json"
    required: bool = False
    """Whether a body without any field is sent too."""


class HttpOperation(_Endpoint):
    """How the call of one tool becomes an HTTP request (OpenAPI's terms)."""

    method: Literal["get", "put", "post", "delete", "patch", "head", "options"]
    path: str
    """Path template below the base URL, for example `/movie/{movie_id}`."""
    arguments: dict[str, WireArgument] = {}
    """Those that are not named here are fields of the body, under their own name."""
    defaults: dict[str, JsonValue] = {}
    """Values of required arguments that the policy may leave out; they are sent then."""
    body: HttpBody | None = None
    accept: str = "application/json"
    """Media types that the API answers with, sent as `Accept`."""
    base_url: str = ""
    """The operation's own server; empty for that of the API."""
    credentials: tuple[str, ...] = ()
    """Names of the endpoint's credentials that are sent, all of them."""
    needs_credentials: bool = False
    """Whether the API answers only who has credentials: a refusal is then not the policy's fault.
    """
    tried: bool = False
    """Whether trials may call it although its method could change something."""


class TokenCredential(_Endpoint):
    """A token or key that is sent as it is."""

    kind: Literal["token"] = "token"
    variable: str
    """Environment variable that holds it."""
    place: Literal["header", "query", "cookie"] = "header"
    name: str = "Authorization"
    """Of the header, of the query parameter or of the cookie."""
    prefix: str = "Bearer "
    """Written before it."""


class BasicCredential(_Endpoint):
    """A user's name and password (HTTP Basic)."""

    kind: Literal["basic"] = "basic"
    variable: str = ""
    """Environment variable that holds both, as `user:password`; or empty."""
    user_variable: str = ""
    password_variable: str = ""


class ClientCredential(_Endpoint):
    """A client of an OAuth 2 server, which gives it tokens (client credentials, RFC 6749, 4.4)."""

    kind: Literal["client"] = "client"
    id_variable: str
    """Environment variable that holds the client's id."""
    secret_variable: str
    token_url: str
    scopes: tuple[str, ...] = ()
    in_body: bool = False
    """Whether id and secret are sent in the form, not as HTTP Basic."""


Credential = Annotated[
    TokenCredential | BasicCredential | ClientCredential, Field(discriminator="kind")
]
INFRA_STATUSES = (429, 502, 503, 504)
"""Statuses of which a policy can seldom be the cause."""


class HttpEndpoint(_Endpoint):
    """A real HTTP API; `operations[i]` serves the tool set's `tools[i]`."""

    kind: Literal["http"] = "http"
    base_url: str
    operations: tuple[HttpOperation, ...]
    allowed_hosts: tuple[str, ...]
    """Hosts that may be contacted, also by redirects: `host:port`, or `host` for ports 80 and 443.
    If a name resolves to a private address, that address must be listed too.
    """
    credentials: dict[str, Credential] = {}
    """By the names that operations use."""
    infra_statuses: tuple[int, ...] = INFRA_STATUSES
    """Statuses that are failures of the infrastructure; requests that change nothing are sent again
    then.
    """

    @property
    def place(self) -> str:
        """Host for messages and records; the rest of an address may hold keys."""
        return origin_of(self.base_url)

    @property
    def isolation(self) -> str:
        """`read-only` or `shared`: who sees what a session changes."""
        reads = all(one.method in _READING or one.tried for one in self.operations)
        return "read-only" if reads else "shared"


Keeps = Literal["session"] | None
"""What the user says of a server: that its state is that of its session alone."""
SCRATCH = "{scratch}"
"""In a command: the folder that every session gets for itself, and that is deleted at its end."""


class _McpEndpoint(_Endpoint):
    """What every MCP server has."""

    state: Keeps = None
    """`session`: the user says that the server keeps no state outside of its process, or of its MCP
    session.
    """
    include: tuple[str, ...] | None = None
    """Names of the only tools that the user wants, with `*` for any text; also of later ones."""
    exclude: tuple[str, ...] = ()
    """Names of tools that the user does not want, with `*` for any text; also of later ones."""

    def wants(self, name: str) -> bool:
        """Whether the user wants a tool of this name."""
        wanted = self.include is None or any(fnmatchcase(name, each) for each in self.include)
        return wanted and not any(fnmatchcase(name, each) for each in self.exclude)


class McpStdioEndpoint(_McpEndpoint):
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

    @property
    def place(self) -> str:
        """Name of the program for messages and records; its arguments may hold keys."""
        more = len(self.command) - 1
        program = self.command[0].rpartition("/")[2] or self.command[0]
        return f"{program} (+{more} arguments)" if more else program

    @property
    def isolation(self) -> str:
        """`scratch`, `session` or `shared`: who sees what a session changes."""
        has_folder = any(SCRATCH in text for text in (*self.command, *self.environment.values()))
        return "scratch" if has_folder else self.state or "shared"


class McpHttpEndpoint(_McpEndpoint):
    """An MCP server behind HTTP; one MCP session per tool session."""

    kind: Literal["mcp-http"] = "mcp-http"
    url: str
    token_variable: str = ""
    """Environment variable with a bearer token; empty for none."""
    transport: Literal["http", "sse"] | None = None
    """`http` is streamable HTTP, `sse` the older transport; None tries to find out."""

    @property
    def place(self) -> str:
        """Host for messages and records; the rest of an address may hold keys."""
        return origin_of(self.url)

    @property
    def isolation(self) -> str:
        """`session` or `shared`: who sees what a session changes."""
        return self.state or "shared"


class OpenEnvEndpoint(_Endpoint):
    """An OpenEnv environment behind its WebSocket; one environment session per tool session."""

    kind: Literal["openenv"] = "openenv"
    url: str
    """`http://host:port`; the route `/ws` is appended."""
    world: bool = False
    """Whether it is the whole world of a task: its rewards are hidden from the policy, and `done`
    ends the episode.
    """
    reset: dict[str, JsonValue] = {}
    """Arguments of `reset`: the task. A `seed` here takes the place of the session's."""

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> Mapping[str, object]:
        # Endpoints that do not use a key keep the digest that they had before it existed.
        found: dict[str, object] = dump(self)
        return {key: value for key, value in found.items() if value or key not in _LATER_KEYS}

    @property
    def place(self) -> str:
        """Host for messages and records; the rest of an address may hold keys."""
        return origin_of(self.url)

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
        """Model and host for messages and records."""
        return f"{self.model} at {origin_of(self.base_url)}"

    @property
    def isolation(self) -> str:
        """`session`: a reply depends on the request alone."""
        return "session"


Endpoint = Annotated[
    HttpEndpoint | McpStdioEndpoint | McpHttpEndpoint | OpenEnvEndpoint | ChatEndpoint,
    Field(discriminator="kind"),
]
