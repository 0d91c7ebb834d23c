"""The guard in front of the app: host, origin, role and the headers of every answer.

It is plain ASGI, so that streams pass through it without being collected.
"""

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.dashboard.problems import ApiError, problem_response
from cluster.dashboard.security.tokens import COOKIE, Gate
from cluster.dashboard.settings import Role, Settings

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""For pages: scripts and styles are files of ours, and no text can become markup."""
_API_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""For answers of the API, which are never pages."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SAFE = frozenset({"GET", "HEAD"})
_OPEN_PATHS = frozenset({"/api/v1/session"})
"""Paths of the API that need no role: they give one, or say that there is none."""


class Guard:
    """Refuses what does not come from an allowed host, origin and role."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings
        self._gate = Gate(settings.tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_api = _is_api(scope["path"])

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(scope=message), is_api=is_api)
            await send(message)

        headers = Headers(scope=scope)
        role = self._role(headers)
        refused = self._refusal(scope, headers, role) if is_api else self._wrong_host(headers)
        if refused is not None:
            await problem_response(refused, scope["path"])(scope, receive, guarded)
            return
        scope.setdefault("state", {})["role"] = role
        await self.app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers, role: Role | None) -> ApiError | None:
        method, path = scope["method"], scope["path"]
        found = self._wrong_host(headers) or self._wrong_origin(headers, method)
        if found is not None or path in _OPEN_PATHS:
            return found
        if role is None:
            fix = "open the address that the dashboard printed, or send `authorization: Bearer`"
            return ApiError(401, "no-token", "expected a token or a session, found none", fix)
        if method not in _SAFE and role != "operator":
            fix = "sign in with the operator's token"
            return ApiError(403, "viewer", "expected an operator, found a viewer", fix)
        return None

    def _wrong_host(self, headers: Headers) -> ApiError | None:
        """A page of another site could otherwise reach a loopback address by a name of its own."""
        host = headers.get("host", "").lower()
        if host in self._settings.hosts:
            return None
        allowed = ", ".join(sorted(self._settings.hosts))
        fix = f"use one of {allowed}, or start the dashboard with --origin"
        return ApiError(421, "wrong-host", f"the host {host[:100]!r} is not answered", fix)

    def _wrong_origin(self, headers: Headers, method: str) -> ApiError | None:
        fix = "open the dashboard's own address, or start it with --origin"
        origin = headers.get("origin")
        if origin is not None and origin not in self._settings.origins:
            return ApiError(403, "wrong-origin", f"the origin {origin[:100]!r} is not trusted", fix)
        site = headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none"):
            return ApiError(403, "wrong-origin", f"a request from a {site} page is refused", fix)
        if origin is None and method not in _SAFE and "authorization" not in headers:
            detail = "expected the header Origin with a cookie, found none"
            return ApiError(403, "wrong-origin", detail, "send Origin, or a Bearer token")
        return None

    def _role(self, headers: Headers) -> Role | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._gate.role_of_token(token.strip())
        return self._gate.role_of_cookie(_cookie(headers))


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _is_api(path: str) -> bool:
    return path.startswith("/api/") or path == "/metrics"


def _add_headers(headers: MutableHeaders, *, is_api: bool) -> None:
    for name, value in _HEADERS.items():
        headers[name] = value
    headers["content-security-policy"] = _API_POLICY if is_api else CONTENT_SECURITY_POLICY
    headers.setdefault("cache-control", "private, no-cache")
