"""Tool sets from OpenAPI documents, served by a simulation or by the real API."""

from collections.abc import Sequence
from typing import Literal

import httpx

from envs.endpoints import HttpEndpoint
from envs.errors import DataFileError
from envs.sources.openapi_document import OpenApiDocument, parse_document
from envs.sources.openapi_operations import operations_of, security_schemes
from envs.sources.openapi_simulation import simulation_source
from envs.tools import ToolSet


def tool_set_of_openapi(
    document: str,
    *,
    base_url: str | None = None,
    allowed_hosts: Sequence[str] = (),
    operations: Sequence[str] | None = None,
    token_variable: str = "",
) -> ToolSet:
    """Return a tool set with one tool per operation of an OpenAPI document (JSON or YAML text).

    Without `base_url`, a simulation in the sandbox answers. With it, the real API answers: calls
    may reach its host and the `allowed_hosts` to which it redirects. `operations` selects by
    `operationId` or as `GET /path`; None means all. `token_variable` names an environment variable
    whose token is sent as the document's security scheme requires. Raises DataFileError.
    """
    parsed = parse_document(document)
    found = operations_of(parsed, operations)
    specs = tuple(operation.spec for operation in found)
    if base_url is None:
        if allowed_hosts or token_variable:
            raise DataFileError(
                "expected `base_url` with `allowed_hosts` or `token_variable`, found none: "
                "the simulation contacts no host; add `base_url`, or remove the other keys"
            )
        source, functions = simulation_source(found)
        return ToolSet(tools=specs, sources=(source,) * len(specs), functions=functions)
    location, name = _token_place(parsed)
    endpoint = HttpEndpoint(
        base_url=base_url,
        operations=tuple(operation.request for operation in found),
        allowed_hosts=tuple(dict.fromkeys((_host_of(base_url), *allowed_hosts))),
        token_variable=token_variable,
        token_location=location,
        token_name=name,
    )
    return ToolSet(tools=specs, endpoint=endpoint)


def _host_of(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise DataFileError(f"base_url: expected a URL, found {base_url!r}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise DataFileError(
            f"base_url: expected http(s)://host[:port][/path], found {base_url!r}: correct it"
        )
    host = url.netloc.decode()
    return host if url.port else f"{host}:{443 if url.scheme == 'https' else 80}"


def _token_place(document: OpenApiDocument) -> tuple[Literal["bearer", "header", "query"], str]:
    """Return where the document expects the token, and the name of the header or query parameter.

    It is a bearer token unless the document has only API keys.
    """
    keys: list[tuple[Literal["header", "query"], str]] = []
    for scheme in security_schemes(document):
        if scheme.get("type") in ("http", "oauth2", "openIdConnect"):
            return "bearer", ""
        if scheme.get("type") == "apiKey":
            for place in ("header", "query"):
                if scheme.get("in") == place:
                    keys.append((place, str(scheme.get("name"))))
    return keys[0] if keys else ("bearer", "")
