"""The guard of a server: one check of every request and WebSocket, before all routes.

A page in the user's browser can reach a server on loopback: under a name of its own that resolves
to 127.0.0.1 (DNS rebinding), or with a request that it cannot read the answer of. So the Host
header must be a name of this server, an Origin must be its own, and a body must be of a type that
no page can send without asking first. Then the token is checked, and the body is read, within
limits of size and time that hold for all protocols.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import math
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envs.server.connection_limits import CLIENT, HEAD_BYTES, ClientConnection
from envs.server.wire import JSON, MSGPACK, STATUS_OF_ERROR, ErrorResponse, WireError, encode

BODY_LIMIT_BYTES = 8 * 2**20
_BODY_S = 60.0
_LINGER_BYTES, _LINGER_S = 256 * 2**20, 30.0
_UNKNOWN_LINGER_BYTES, _UNKNOWN_LINGER_S = 16 * 2**20, 5.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d{1,5})?")
_OWN_SITE = frozenset({"same-origin", "none"})


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which a server answers."""

    names: frozenset[str] = frozenset()
    """In lower case, without ports: a forwarded port is another one."""
    addresses: bool = False
    """Whether every IP address is a name: a page can have a name of its own, but no address."""
    every: bool = False

    def know(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        if self.every:
            return True
        name = _without_port(host.strip().lower()).removesuffix(".")
        return name in self.names or (self.addresses and _is_address(name))


EVERY_HOST = Hosts(every=True)
"""For UNIX sockets, which no browser can reach."""


def hosts_of(listener: socket.socket, allowed: Sequence[str] = ()) -> Hosts:
    """Return the names of a server that listens on `listener`; the user adds those in `allowed`.

    A server that other machines can reach has the name of its machine as well, and one on all
    addresses answers under each address.
    """
    if listener.family == socket.AF_UNIX:
        return EVERY_HOST
    address = ipaddress.ip_address(listener.getsockname()[0])
    names = {*_LOOPBACK, str(address), *(_without_port(name.strip().lower()) for name in allowed)}
    if not address.is_loopback:
        names.add(socket.gethostname().lower())
    return Hosts(frozenset(names), addresses=address.is_unspecified)


class RequestGuard:
    """ASGI middleware: refuses what does not come from a client of this server."""

    def __init__(self, app: ASGIApp, token: str, hosts: Hosts) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client: ClientConnection | None = scope.get("state", {}).get(CLIENT)
        refused = self._refusal(scope, headers)
        if refused is None and client is not None and not client.admit():
            message = "all connections that this server may have are in use; close some or wait"
            refused = WireError(kind="full", message=message, retry_after_s=1.0)
        if refused is not None:
            await final_refusal(refused)(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] in _WITH_BODY:
            body = await _body(headers, receive)
            if body is None:
                return
            if isinstance(body, WireError):
                await error_response(body)(scope, receive, send)
                return
            receive = replayed(body, receive)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> WireError | None:
        found = _too_long(scope) or self._wrong_host(headers) or _wrong_origin(headers)
        if found is None and scope["type"] == "http" and scope["method"] in _WITH_BODY:
            found = _wrong_type(headers)
        if found is None and self._token and not self._has_token(headers):
            message = "expected the header Authorization: Bearer TOKEN"
            found = WireError(kind="unauthorized", message=message)
        return found

    def _wrong_host(self, headers: Headers) -> WireError | None:
        given = headers.getlist("host")
        if self._hosts.every or (len(given) == 1 and self._hosts.know(given[0])):
            return None
        message = (
            f"the host {', '.join(given)[:80]!r} is no name of this server: use its address, or "
            "start it with --allow-host NAME"
        )
        return WireError(kind="wrong_host", message=message)

    def _has_token(self, headers: Headers) -> bool:
        """Return whether the one Authorization header has the token, as Bearer or as password."""
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, secret = given[0].partition(" ")
        found = secret.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":  # what clients send for http://user:TOKEN@host
            try:
                found = base64.b64decode(found, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(found, self._token)


def _too_long(scope: Scope) -> WireError | None:
    length = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    length += sum(len(name) + len(value) for name, value in scope["headers"])
    if length <= HEAD_BYTES:
        return None
    message = f"expected a request line and headers of at most {HEAD_BYTES} bytes, found {length}"
    return WireError(kind="head_too_large", message=message)


def _wrong_origin(headers: Headers) -> WireError | None:
    host = headers.get("host", "").lower()
    foreign = [each for each in headers.getlist("origin") if _place_of(each) != host]
    site = headers.get("sec-fetch-site", "none").lower()
    if not foreign and site in _OWN_SITE:
        return None
    found = repr(foreign[0][:80]) if foreign else f"a request from a {site[:20]!r} page"
    message = f"expected no foreign Origin, found {found}: pages of other sites are not served"
    return WireError(kind="wrong_origin", message=message)


def _place_of(origin: str) -> str:
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return ""
    return parts.netloc if parts.scheme in ("http", "https") else ""


def _wrong_type(headers: Headers) -> WireError | None:
    """Refuse the types that a page of another site can send without asking first."""
    given = headers.getlist("content-type")
    empty = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
    if empty and not given:
        return None
    types = [each.partition(";")[0].strip().lower() for each in given]
    if len(types) != 1 or types[0] not in (JSON, MSGPACK):
        found = repr(", ".join(types)[:80]) if types else "none"
        message = f"expected content-type {JSON} or {MSGPACK}, found {found}"
        return WireError(kind="unsupported_type", message=message)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"expected a body without compression, found content-encoding {encoding[:40]!r}"
        return WireError(kind="unsupported_type", message=message)
    return None


async def _body(headers: Headers, receive: Receive) -> bytes | WireError | None:
    """Return the whole body, an error if it is too long or takes too long, None if it breaks."""
    too_large = WireError(
        kind="too_large",
        message=f"expected a body of at most {BODY_LIMIT_BYTES} bytes: split the request, or send "
        "large tool sets over /stream",
    )
    stated = headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > BODY_LIMIT_BYTES:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message.get("body", b"")
                if len(body) > BODY_LIMIT_BYTES:
                    return too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        return WireError(kind="too_slow", message=f"expected a whole body within {_BODY_S:g} s")


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def error_response(error: WireError) -> Response:
    """Return the HTTP response for `error`."""
    if error.kind in ("too_large", "too_slow"):
        return _Farewell(error, _LINGER_BYTES, _LINGER_S)
    return Response(_text(error), STATUS_OF_ERROR[error.kind], _headers(error), media_type=JSON)


def final_refusal(error: WireError) -> Response:
    """Return the HTTP response for `error`, after which the connection ends."""
    return _Farewell(error, _UNKNOWN_LINGER_BYTES, _UNKNOWN_LINGER_S)


def _text(error: WireError) -> bytes:
    return encode(ErrorResponse(error=error), as_json=True)


def _headers(error: WireError) -> dict[str, str]:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.kind == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    return headers


class _Farewell(Response):
    """Answers at once, then discards what the client still sends, within limits, and disconnects.

    Otherwise a client that writes its complete body before it reads would see a connection reset
    instead of the answer.
    """

    def __init__(self, error: WireError, linger_bytes: int, linger_s: float) -> None:
        status = STATUS_OF_ERROR[error.kind]
        super().__init__(_text(error), status, _headers(error), media_type=JSON)
        self._left = linger_bytes
        self._linger_s = linger_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await super().__call__(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"connection", b"close")]
        start = {"type": "http.response.start", "status": self.status_code, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                while self._left > 0:
                    message = await receive()
                    self._left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b""})


def _without_port(host: str) -> str:
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]) if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
