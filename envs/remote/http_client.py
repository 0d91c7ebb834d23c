"""Tools behind a real HTTP API: calls become requests to hosts on an allow-list, and to no others.

Status 2xx gives a value. 4xx is a tool error with the response's body; so is 500, because the
arguments may have caused it. 401, 407, 429, 502, 503, 504 and lost connections are infrastructure
failures. A trial session may only read, because changes to a real API could not be undone. Within
the call's deadline, a request is retried if it was not started (no connection); otherwise only GET,
HEAD, OPTIONS and PUT are retried.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from envs.config import ToolServerConfig
from envs.endpoints import HttpEndpoint, HttpOperation
from envs.errors import ConfigError, InfraError
from envs.remote.endpoint_session import BackendReply, EndpointSession, Limits
from envs.remote.http_hosts import HostGuard, RefusedHost
from envs.remote.tokens import endpoint_token
from envs.seeds import stable_hash
from envs.tools import AnswerStatus, JsonObject, SessionPurpose, ToolSet

_READING = frozenset({"get", "head", "options"})
_REPEATABLE = _READING | {"put"}
_INFRA_STATUS = frozenset({401, 407, 429, 502, 503, 504})
_RETRIED_STATUS = frozenset({429, 502, 503, 504})
_PAUSES_S = (0.1, 0.4)
"""Seconds to wait before the second and before the third attempt."""
_MAX_REDIRECTS = 5


class HttpTools:
    """ToolService for tool sets whose endpoint is an HTTP API.

    `variables` are environment variables, for tokens. Every session has its own connections and
    cookies; nothing else is kept between calls.
    """

    def __init__(self, config: ToolServerConfig, variables: Mapping[str, str]) -> None:
        self._limits = Limits.of(config)
        self._variables = variables
        self._certificates = ssl.create_default_context()
        self._opened = 0

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> EndpointSession:
        """Open a session; sends no request. Raises ConfigError if the endpoint is not usable."""
        endpoint = tool_set.endpoint
        if not isinstance(endpoint, HttpEndpoint):
            raise ConfigError(f"expected a tool set with an HTTP endpoint, found {endpoint!r}")
        if len(endpoint.operations) != len(tool_set.tools):
            raise ConfigError(
                f"expected one operation per tool, found {len(endpoint.operations)} operations "
                f"and {len(tool_set.tools)} tools"
            )
        backend = HttpBackend(
            endpoint,
            HostGuard(endpoint.allowed_hosts),
            endpoint_token(endpoint.token_variable, endpoint.place, self._variables),
            httpx.AsyncHTTPTransport(verify=self._certificates),
            Terms(self._limits.reply_bytes, may_write=purpose != "trial"),
        )
        self._opened += 1
        session_id = f"http-{stable_hash(seed, purpose, self._opened):016x}"
        return EndpointSession(session_id, tool_set, backend, self._limits)

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session may do: the size of a reply in bytes, and whether it may write."""

    reply_bytes: int
    may_write: bool


class HttpBackend:
    """EndpointBackend of one session on an HTTP API."""

    def __init__(
        self,
        endpoint: HttpEndpoint,
        guard: HostGuard,
        token: str,
        transport: httpx.AsyncBaseTransport,
        terms: Terms,
    ) -> None:
        self._endpoint = endpoint
        self._guard = guard
        self._token = token
        self._terms = terms
        self._http = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Send the request of tool `index`, and retry it if that is safe. Raises InfraError."""
        operation = self._endpoint.operations[index]
        if operation.method not in _READING and not self._terms.may_write:
            text = f"trials may only read: {operation.method.upper()} would change the real API"
            return BackendReply(AnswerStatus.TOOL_ERROR, text)
        try:
            request = self._request(operation, arguments)
        except ValueError as error:
            return BackendReply(AnswerStatus.TOOL_ERROR, str(error))
        for pause_s in (*_PAUSES_S, None):
            try:
                reply, status = await self._exchange(request)
                if pause_s is None or status not in _RETRIED_STATUS:
                    return reply
                if operation.method not in _REPEATABLE:
                    return reply
            except RefusedHost as refusal:
                return BackendReply(AnswerStatus.TOOL_ERROR, f"refused: {refusal}")
            except httpx.TransportError as error:
                started = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if pause_s is None or (started and operation.method not in _REPEATABLE):
                    raise InfraError(f"{type(error).__name__}: {error}") from error
            except httpx.HTTPError as error:
                raise InfraError(f"{type(error).__name__}: {error}") from error
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        await self._http.aclose()

    def _request(self, operation: HttpOperation, arguments: JsonObject) -> httpx.Request:
        """Build the request. Raises ValueError if the arguments do not fit into one."""
        parts = _Parts(operation, arguments)
        headers = {"accept": "application/json", "accept-encoding": "identity", **parts.headers}
        query = list(parts.query)
        if self._token:
            match self._endpoint.token_location:
                case "bearer":
                    headers["authorization"] = f"Bearer {self._token}"
                case "header":
                    headers[self._endpoint.token_name] = self._token
                case "query":
                    query.append((self._endpoint.token_name, self._token))
        try:
            return self._http.build_request(
                operation.method.upper(),
                httpx.URL(self._endpoint.base_url.rstrip("/") + parts.path, params=query),
                headers=headers,
                cookies=parts.cookies,
                json=parts.body if parts.has_body else None,
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"an argument does not fit into an HTTP request: {error}") from error

    async def _exchange(self, request: httpx.Request) -> tuple[BackendReply, int]:
        """Send `request` and follow redirects; each one is checked against the allow-list."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._send(request)
            try:
                following = self._redirected(request, response)
                if following is None:
                    return await self._reply(response), response.status_code
            finally:
                await response.aclose()
            request = following
        raise RefusedHost(f"more than {_MAX_REDIRECTS} redirects")

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send to the checked IP address, with the original name in the Host header and in TLS.

        A second name look-up could give another address, which the allow-list does not allow.
        """
        address = await self._guard.address(request.url)
        host = request.url.host
        pinned = self._http.build_request(
            request.method,
            request.url.copy_with(host=address),
            headers={**request.headers, "host": request.url.netloc.decode()},
            content=request.content,
            extensions={"sni_hostname": host},
        )
        return await self._http.send(pinned, stream=True, follow_redirects=False)

    def _redirected(self, request: httpx.Request, response: httpx.Response) -> httpx.Request | None:
        if response.status_code not in (301, 302, 303, 307, 308):
            return None
        location = response.headers.get("location")
        if not location:
            return None
        url = request.url.join(location)
        if request.url.scheme == "https" and url.scheme != "https":
            raise RefusedHost(f"a redirect from https to {url.scheme}")
        headers = dict(request.headers)
        if (url.scheme, url.netloc) != (request.url.scheme, request.url.netloc):
            for name in ("authorization", "cookie", self._endpoint.token_name.lower()):
                headers.pop(name, None)
        headers.pop("host", None)
        keeps = response.status_code in (307, 308) or request.method in ("GET", "HEAD")
        if not keeps:
            headers = {k: v for k, v in headers.items() if not k.startswith("content-")}
        method = request.method if keeps else "GET"
        content = request.content if keeps else None
        return self._http.build_request(method, url, headers=headers, content=content)

    async def _reply(self, response: httpx.Response) -> BackendReply:
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            # decompressing could exceed the reply limit by far
            raise InfraError(f"expected a reply without compression, found encoding {encoding}")
        limit = self._terms.reply_bytes
        received = bytearray()
        async for part in response.aiter_raw():
            received += part
            if len(received) > limit:
                break
        truncated = len(received) > limit
        body = bytes(received[:limit]).decode(response.charset_encoding or "utf-8", "replace")
        line = f"{response.status_code} {response.reason_phrase}".strip()
        if response.is_success:
            return BackendReply(
                AnswerStatus.OK, body or f'{{"status": {response.status_code}}}', truncated
            )
        text = f"{line}: {body}" if body else line
        if response.status_code in _INFRA_STATUS:
            return BackendReply(AnswerStatus.INFRA_ERROR, text, truncated)
        return BackendReply(AnswerStatus.TOOL_ERROR, text, truncated)


class _Parts:
    """Arguments of one call, grouped by the part of the request that they go to."""

    def __init__(self, operation: HttpOperation, arguments: JsonObject) -> None:
        self.path = operation.path
        self.query: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.cookies: dict[str, str] = {}
        fields: JsonObject = {}
        self.body: JsonValue = fields
        self.has_body = False
        for argument, value in arguments.items():
            name = operation.wire_names.get(argument, argument)
            match operation.locations.get(argument):
                case "path":
                    text = quote(_text(value), safe="")
                    if text in ("", ".", ".."):
                        raise ValueError(
                            f"argument {argument!r}: expected one part of a path, found {value!r}"
                        )
                    self.path = self.path.replace(f"{{{name}}}", text)
                case "query":
                    values = value if isinstance(value, list) else [value]
                    self.query += [(name, _text(item)) for item in values]
                case "header":
                    self.headers[name] = _header_text(argument, value)
                case "cookie":
                    self.cookies[name] = _header_text(argument, value)
                case "body":
                    self.body, self.has_body = value, True
                case _:
                    fields[name] = value
                    self.has_body = True
        if "{" in self.path:
            missing = self.path.partition("{")[2].partition("}")[0]
            raise ValueError(f"missing required argument {missing!r}")


def _text(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ",".join(f"{key},{_text(item)}" for key, item in value.items())
    return str(value)


def _header_text(argument: str, value: JsonValue) -> str:
    text = _text(value)
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"argument {argument!r}: expected printable ASCII, found {text!r}")
    return text
