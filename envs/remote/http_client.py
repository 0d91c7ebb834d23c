"""Tools behind a real HTTP API: calls become requests to hosts on an allow-list, and to no others.

Status 2xx gives a value. Others are tool errors with the response's body, because the arguments may
have caused them; also 401, where the operation needs no credentials. The statuses that the endpoint
lists (429, 502, 503 and 504, unless the user says otherwise), refused credentials and lost
connections are infrastructure failures. A trial session may only read, because changes to a real
API could not be undone; operations that the user names are safe too. Within the call's deadline, a
request is retried if it was not started (no connection); otherwise only GET, HEAD, OPTIONS, PUT and
those safe ones are retried, after the time that `Retry-After` asks for where the deadline allows
it.
"""

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from envs.config import ToolServerConfig
from envs.endpoints import HttpEndpoint, HttpOperation
from envs.errors import ConfigError, InfraError
from envs.remote.endpoint_session import BackendReply, EndpointSession, Limits
from envs.remote.http_credentials import ClientTokens, Secrets
from envs.remote.http_hosts import HostGuard, RefusedHost
from envs.remote.http_reply import read_reply, retry_after_s
from envs.remote.http_request import RequestParts
from envs.seeds import stable_hash
from envs.tools import AnswerStatus, JsonObject, SessionPurpose, ToolSet, ToolSpec
from envs.whole_numbers import as_integers

_READING = frozenset({"get", "head", "options"})
_REPEATABLE = _READING | {"put"}
_REFUSED_STATUSES = (401, 407)
"""Statuses that sending again cannot change."""
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
        self._tokens = ClientTokens()
        # The HTTP client logs the address of each request, in which a key may stand.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._opened = 0

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> EndpointSession:
        """Open a session; sends no request. Raises ConfigError if the endpoint is not usable."""
        endpoint = tool_set.endpoint
        if not isinstance(endpoint, HttpEndpoint):
            raise ConfigError(
                f"expected a tool set with an HTTP endpoint, found {type(endpoint).__name__}"
            )
        if len(endpoint.operations) != len(tool_set.tools):
            raise ConfigError(
                f"expected one operation per tool, found {len(endpoint.operations)} operations "
                f"and {len(tool_set.tools)} tools"
            )
        backend = HttpBackend(
            endpoint,
            tool_set.tools,
            HostGuard(endpoint.allowed_hosts),
            Secrets(endpoint, self._variables, self._tokens),
            httpx.AsyncHTTPTransport(verify=self._certificates),
            Terms(self._limits, may_write=purpose != "trial"),
        )
        self._opened += 1
        session_id = f"http-{stable_hash(seed, purpose, self._opened):016x}"
        return EndpointSession(session_id, tool_set, backend, self._limits)

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session may do: time and size limits, and whether it may write."""

    limits: Limits
    may_write: bool


class HttpBackend:
    """EndpointBackend of one session on an HTTP API."""

    def __init__(
        self,
        endpoint: HttpEndpoint,
        tools: Sequence[ToolSpec],
        guard: HostGuard,
        secrets: Secrets,
        transport: httpx.AsyncBaseTransport,
        terms: Terms,
    ) -> None:
        self._endpoint = endpoint
        self._tools = tools
        self._guard = guard
        self._secrets = secrets
        self._terms = terms
        self._http = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Send the request of tool `index`, and retry it if that is safe. Raises InfraError."""
        operation = self._endpoint.operations[index]
        if not (operation.method in _READING or operation.tried or self._terms.may_write):
            text = f"trials may only read: {operation.method.upper()} would change the real API"
            return BackendReply(AnswerStatus.TOOL_ERROR, text)
        schema = self._tools[index].parameters
        whole = as_integers(schema, arguments)
        assert isinstance(whole, dict), "an object stays one"
        try:
            parts = RequestParts(operation, whole)
            return await self._attempts(operation, parts)
        except ValueError as error:
            return BackendReply(AnswerStatus.TOOL_ERROR, str(error))
        except RefusedHost as refusal:
            return BackendReply(AnswerStatus.TOOL_ERROR, f"refused: {refusal}")
        except httpx.HTTPError as error:
            raise InfraError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._http.aclose()

    async def _attempts(self, operation: HttpOperation, parts: RequestParts) -> BackendReply:
        """Send a request up to three times. Raises InfraError, and what `_exchange` raises."""
        repeatable = operation.method in _REPEATABLE or operation.tried
        pauses, renewed = iter(_PAUSES_S), False
        ends_at = time.monotonic() + self._terms.limits.call_s
        while True:
            signature = await self._secrets.signature(operation.credentials, self._send)
            request = parts.request(self._http, self._endpoint.base_url, signature)
            pause_s = next(pauses, None)
            try:
                reply, status, wait_s = await self._exchange(request, operation)
            except httpx.TransportError as error:
                started = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if pause_s is None or (started and not repeatable):
                    raise
            else:
                if status == 401 and not renewed and self._secrets.renew(operation.credentials):
                    renewed = True  # an expired token: what it was sent with had no effect
                    continue
                if pause_s is None or not repeatable or not self._may_pass(status):
                    return reply
                pause_s = max(pause_s, wait_s)
                if time.monotonic() + pause_s >= ends_at:
                    return reply  # a time-out would be the policy's business, and this is not
            await asyncio.sleep(pause_s)

    def _may_pass(self, status: int) -> bool:
        """Whether a failure of the infrastructure may be over when the request is sent again."""
        return status in self._endpoint.infra_statuses and status not in _REFUSED_STATUSES

    def _infra_statuses(self, operation: HttpOperation) -> tuple[int, ...]:
        """Return the statuses that are no fault of the policy: also a refusal of credentials that
        it neither has nor chooses.
        """
        refused = operation.needs_credentials or operation.credentials
        return (*self._endpoint.infra_statuses, 407, *((401,) if refused else ()))

    async def _exchange(
        self, request: httpx.Request, operation: HttpOperation
    ) -> tuple[BackendReply, int, float]:
        """Send `request` and follow redirects; each one is checked against the allow-list.

        Return the reply, its status, and the seconds that it asks to wait.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._send(request)
            try:
                following = self._redirected(request, response)
                if following is None:
                    reply = await self._reply(response, operation)
                    wait_s = retry_after_s(response, math.inf) or 0.0
                    return reply, response.status_code, wait_s
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
            content=request.read(),
            extensions={"sni_hostname": host},
        )
        return await self._http.send(pinned, stream=True, follow_redirects=False)

    def _redirected(self, request: httpx.Request, response: httpx.Response) -> httpx.Request | None:
        if response.status_code not in (301, 302, 303, 307, 308):
            return None
        location = response.headers.get("location")
        if not location:
            return None
        try:
            url = request.url.join(location)
        except httpx.InvalidURL as error:
            raise RefusedHost("a redirect to an address that is no URL") from error
        if request.url.scheme == "https" and url.scheme != "https":
            raise RefusedHost(f"a redirect from https to {url.scheme}")
        headers = dict(request.headers)
        if (url.scheme, url.netloc) != (request.url.scheme, request.url.netloc):
            for name in self._secrets.header_names:
                headers.pop(name, None)
        headers.pop("host", None)
        keeps = response.status_code in (307, 308) or request.method in ("GET", "HEAD")
        if not keeps:
            headers = {k: v for k, v in headers.items() if not k.startswith("content-")}
        method = request.method if keeps else "GET"
        content = request.content if keeps else None
        return self._http.build_request(method, url, headers=headers, content=content)

    async def _reply(self, response: httpx.Response, operation: HttpOperation) -> BackendReply:
        note = ""
        if response.status_code == 401 and not operation.credentials:
            note = " (the document requires credentials here, and the task names none)"
        infra = self._infra_statuses(operation)
        return await read_reply(response, self._terms.limits.reply_bytes, infra, note)
