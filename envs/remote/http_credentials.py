"""Credentials of an HTTP API: read from environment variables, added to requests, never shown.

Tokens of OAuth 2 clients are fetched when they are first needed, shared by the sessions of a
worker, and fetched again before they expire or when the API refuses one.
"""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import quote_plus, urlencode

import httpx

from envs.endpoints import (
    BasicCredential,
    ClientCredential,
    Credential,
    HttpEndpoint,
    TokenCredential,
)
from envs.errors import InfraError
from envs.remote.bounded_body import bounded_body
from envs.remote.http_hosts import RefusedHost
from envs.remote.http_request import Signature
from envs.remote.tokens import check_header, endpoint_token

_EARLY_S = 30.0
"""Seconds before a token expires at which it is no longer used."""
_DEFAULT_LIFE_S = 300.0
"""Seconds that a token is used if its server does not say how long it is valid."""
_MAX_TOKEN_BYTES = 65_536

Send = Callable[[httpx.Request], Awaitable[httpx.Response]]
"""Sends a request to an allowed host. Raises RefusedHost, InfraError and httpx.HTTPError."""


class ClientTokens:
    """Tokens of OAuth 2 clients (client credentials), shared by all sessions of a worker."""

    def __init__(self) -> None:
        self._held: dict[tuple[ClientCredential, str], tuple[str, float]] = {}
        self._turns: dict[tuple[ClientCredential, str], asyncio.Lock] = {}

    async def token(
        self, credential: ClientCredential, secrets: tuple[str, str], send: Send
    ) -> str:
        """Return a valid token; `secrets` are the client's id and secret. Raises InfraError."""
        key = (credential, secrets[0])
        async with self._turns.setdefault(key, asyncio.Lock()):
            token, until = self._held.get(key, ("", 0.0))
            if not token or time.monotonic() >= until:
                token, life_s = await _fetched(credential, secrets, send)
                self._held[key] = (token, time.monotonic() + life_s)
            return token

    def drop(self, credential: ClientCredential, client_id: str, token: str) -> None:
        """Forget a token that the API has refused, unless another one has replaced it."""
        if self._held.get((credential, client_id), ("", 0.0))[0] == token:
            del self._held[credential, client_id]


class Secrets:
    """The credentials of one endpoint, with their values."""

    def __init__(
        self, endpoint: HttpEndpoint, variables: Mapping[str, str], tokens: ClientTokens
    ) -> None:
        """Read the variables. Raises ConfigError for one that is missing or cannot be sent."""
        used = {name for operation in endpoint.operations for name in operation.credentials}
        self._credentials = {name: endpoint.credentials[name] for name in sorted(used)}
        self._values = {
            name: _values(credential, endpoint.place, variables)
            for name, credential in self._credentials.items()
        }
        self._tokens = tokens
        self._sent: dict[str, str] = {}

    @property
    def header_names(self) -> frozenset[str]:
        """Headers that carry credentials, in lower case."""
        return frozenset({"authorization", "cookie"}) | {
            credential.name.lower()
            for credential in self._credentials.values()
            if isinstance(credential, TokenCredential) and credential.place == "header"
        }

    async def signature(self, names: Sequence[str], send: Send) -> Signature:
        """Return what the credentials `names` add to a request. Raises InfraError."""
        headers: dict[str, str] = {}
        query: list[str] = []
        cookies: list[str] = []
        for name in names:
            credential, values = self._credentials[name], self._values[name]
            match credential:
                case ClientCredential():
                    token = await self._tokens.token(credential, (values[0], values[1]), send)
                    self._sent[name] = token
                    headers["authorization"] = f"Bearer {token}"
                case BasicCredential():
                    headers["authorization"] = _basic(values[0])
                case TokenCredential(place="header"):
                    headers[credential.name] = f"{credential.prefix}{values[0]}"
                case TokenCredential(place="query"):
                    query.append(f"{quote_plus(credential.name)}={quote_plus(values[0])}")
                case TokenCredential():
                    cookies.append(f"{credential.name}={values[0]}")
        return Signature(headers, tuple(query), tuple(cookies))

    def renew(self, names: Sequence[str]) -> bool:
        """Forget the tokens that were sent for `names`; return whether there were any."""
        found = False
        for name in names:
            credential = self._credentials[name]
            if isinstance(credential, ClientCredential) and name in self._sent:
                self._tokens.drop(credential, self._values[name][0], self._sent.pop(name))
                found = True
        return found


def _values(credential: Credential, place: str, variables: Mapping[str, str]) -> tuple[str, ...]:
    match credential:
        case TokenCredential(variable=variable):
            names: tuple[str, ...] = (variable,)
        case BasicCredential(variable=variable) if variable:
            names = (variable,)
        case BasicCredential():
            user, password = (
                endpoint_token(name, place, variables)
                for name in (credential.user_variable, credential.password_variable)
            )
            return (f"{user}:{password}",)
        case ClientCredential():
            names = (credential.id_variable, credential.secret_variable)
    return tuple(endpoint_token(name, place, variables) for name in names)


def _basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


async def _fetched(
    credential: ClientCredential, secrets: tuple[str, str], send: Send
) -> tuple[str, float]:
    """Ask for a token; return it and the seconds that it may be used. Raises InfraError."""
    form = {"grant_type": "client_credentials"}
    if credential.scopes:
        form["scope"] = " ".join(credential.scopes)
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    headers["content-type"] = "application/x-www-form-urlencoded"
    if credential.in_body:
        form |= {"client_id": secrets[0], "client_secret": secrets[1]}
    else:
        headers["authorization"] = _basic(":".join(map(quote_plus, secrets)))
    content = urlencode(form).encode()
    request = httpx.Request("POST", credential.token_url, headers=headers, content=content)
    where = f"the token server {httpx.URL(credential.token_url).host}"
    try:
        response = await send(request)
        try:
            body, more = await bounded_body(
                response.headers, response.aiter_raw(), _MAX_TOKEN_BYTES
            )
        finally:
            await response.aclose()
        if not response.is_success:
            # What such a server answers may repeat what it was sent.
            raise InfraError(f"{where} answered {response.status_code} to the client's id")
        found = json.loads(b"" if more else body)
        token = check_header(str(found["access_token"]), f"the token of {where}")
    except RefusedHost as refusal:
        raise InfraError(f"{where}: {refusal}") from refusal
    except httpx.HTTPError as error:
        raise InfraError(f"{where}: {type(error).__name__}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InfraError(f"{where}: expected JSON with `access_token`, found none") from error
    life_s = found.get("expires_in")
    if isinstance(life_s, str) and life_s.isdecimal():
        life_s = float(life_s)
    if isinstance(life_s, bool) or not isinstance(life_s, int | float):
        return token, _DEFAULT_LIFE_S
    return token, max(life_s - _EARLY_S, life_s / 2)
