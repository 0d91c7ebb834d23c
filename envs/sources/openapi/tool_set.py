"""Tool sets from OpenAPI documents, served by a simulation or by the real API."""

from collections.abc import Sequence

import httpx

from envs.endpoints import ClientCredential, Credential, HttpEndpoint, HttpOperation
from envs.errors import DataFileError
from envs.sources.openapi.document import parse_document
from envs.sources.openapi.operations import (
    ApiOperation,
    Operations,
    find_operation,
    operations_of,
)
from envs.sources.openapi.options import RealApi
from envs.sources.openapi.security import Security
from envs.sources.openapi.simulation.fixtures import read_fixtures
from envs.sources.openapi.simulation.source import simulation_source
from envs.sources.set_limits import check_set
from envs.tools import LeftOut, ToolSet

_PORTS = {"http": 80, "https": 443}


def simulated_tool_set(
    document: str,
    *,
    operations: Sequence[str] | None = None,
    fixtures: str = "",
    seed: int = 0,
    name: str = "Simulation",
) -> ToolSet:
    """Return a tool set with one tool per operation of an OpenAPI document (JSON or YAML text).

    A simulation in the sandbox answers. Its state at the start is that of `fixtures` (JSON text: a
    value for each path), or is sampled with `seed`; it is the same in every session. `operations`
    selects by `operationId` or as `GET /path`; None means all that can be served. The others are in
    `left_out`. `name` is that of its state among those of a session. Raises DataFileError.
    """
    parsed = parse_document(document)
    found = operations_of(parsed, operations, Security(parsed, None), simulated=True)
    state = read_fixtures(fixtures, found.served) if fixtures else {}
    source, functions = simulation_source(found.served, state, seed, name)
    check_set(source, len(functions))
    return ToolSet(
        tools=tuple(operation.spec for operation in found.served),
        sources=(source,) * len(functions),
        functions=functions,
        left_out=found.left_out,
    )


def real_tool_set(
    document: str, api: RealApi, *, operations: Sequence[str] | None = None
) -> ToolSet:
    """Return a tool set with one tool per operation of an OpenAPI document; the real API answers.

    Calls may reach its host and the allowed ones. `operations` and `left_out` are as for a
    simulation. Raises DataFileError.
    """
    parsed = parse_document(document)
    hosts = tuple(dict.fromkeys((_host_of(api.base_url), *api.allowed_hosts)))
    found = operations_of(parsed, operations, Security(parsed, api), simulated=False)
    found = _within(found, api.base_url, hosts, chosen=operations is not None)
    requests = _tried(found.served, api.trial_operations)
    credentials: dict[str, Credential] = {}
    for operation in found.served:
        credentials |= operation.needed.credentials
    for name, credential in credentials.items():
        _check_token_url(name, credential, hosts)
    endpoint = HttpEndpoint(
        base_url=api.base_url,
        operations=requests,
        allowed_hosts=hosts,
        credentials=credentials,
        infra_statuses=api.infra_statuses,
    )
    tools = tuple(operation.spec for operation in found.served)
    return ToolSet(tools=tools, endpoint=endpoint, left_out=found.left_out)


def _host_of(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise DataFileError(f"base_url: expected a URL, found {base_url!r}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise DataFileError(
            f"base_url: expected http(s)://host[:port][/path], found {base_url!r}: correct it"
        )
    return _place(url)


def _place(url: httpx.URL) -> str:
    host = url.netloc.decode()
    return host if url.port else f"{host}:{_PORTS.get(url.scheme, 0)}"


def _is_allowed(url: httpx.URL, hosts: Sequence[str]) -> bool:
    place = _place(url)
    return place in hosts or (
        place.rpartition(":")[0] in hosts and url.port in (None, *_PORTS.values())
    )


def _within(found: Operations, base_url: str, hosts: Sequence[str], *, chosen: bool) -> Operations:
    """Leave out operations with a server of their own that may not be contacted."""
    served: list[ApiOperation] = []
    left_out = list(found.left_out)
    for operation in found.served:
        request = operation.request
        url = httpx.URL(base_url).join(request.base_url)
        if request.base_url and not _is_allowed(url, hosts):
            place = f"{request.method.upper()} {request.path}"
            why = (
                f"{place}: expected a server among the allowed hosts, found {url}: add its host "
                "to `allowed_hosts`"
            )
            if chosen:
                raise DataFileError(why)
            left_out.append(LeftOut(name=operation.spec.name, why=why))
        else:
            served.append(operation)
    if not served:
        raise DataFileError(f"expected an operation that can be served: {left_out[0].why}")
    return Operations(tuple(served), tuple(left_out))


def _tried(served: Sequence[ApiOperation], names: Sequence[str]) -> tuple[HttpOperation, ...]:
    """Return the requests, with those marked that trials may make. Raises DataFileError."""
    marked: list[ApiOperation] = []
    for name in names:
        operation = find_operation(served, name)
        if operation is None:
            raise DataFileError(
                f"trial_operations: expected operations that are served, found {name!r}"
            )
        marked.append(operation)
    return tuple(
        operation.request.model_copy(update={"tried": True})
        if operation in marked
        else operation.request
        for operation in served
    )


def _check_token_url(name: str, credential: Credential, hosts: Sequence[str]) -> None:
    """Raise DataFileError if a client's secret would go to a host that the user did not allow."""
    if not isinstance(credential, ClientCredential):
        return
    try:
        url = httpx.URL(credential.token_url)
    except httpx.InvalidURL as error:
        raise DataFileError(f"credentials.{name}: the token URL is no URL: {error}") from error
    if url.scheme not in _PORTS or not _is_allowed(url, hosts):
        raise DataFileError(
            f"credentials.{name}: expected a token URL on an allowed host, found {url}: add its "
            "host to `allowed_hosts`, or set `token_url`"
        )
