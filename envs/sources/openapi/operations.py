"""Operations of an OpenAPI document as tools: name, arguments and response of each.

An operation that cannot be served is left out by name, with the reason; the others are served.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from envs.endpoints import HttpOperation
from envs.errors import DataFileError
from envs.sources.openapi.answers import ApiAnswer, Shape, answer_of, no_answer, shape_of
from envs.sources.openapi.arguments import Arguments, add_parameters, parameters_of
from envs.sources.openapi.bodies import add_body
from envs.sources.openapi.document import OpenApiDocument
from envs.sources.openapi.schemas import SchemaReader
from envs.sources.openapi.security import Needed, Security
from envs.tools import JsonObject, LeftOut, ToolSpec

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_UNSUPPORTED = ("trace",)
_REQUEST_PARTS = 6_000
"""At most: the schema of one tool is then some 100,000 characters long."""
_ANSWER_PARTS = 6_000
_MAX_NAME = 64
_MAX_DESCRIPTION = 2**17
"""Characters of the description of one operation."""
_MAX_OPERATIONS = 4_000
_MAX_ALL = 2**26
"""Characters of all operations of a document together, as tools and as requests."""


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One operation: its tool, its HTTP request, its response, and what it needs."""

    spec: ToolSpec
    request: HttpOperation
    answer: ApiAnswer
    sent: Shape
    """What the body of its request is about."""
    needed: Needed


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations that are served, and those that cannot be."""

    served: tuple[ApiOperation, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """An operation as it stands in the document."""

    method: str
    path: str
    operation: JsonObject
    item: JsonObject

    @property
    def place(self) -> str:
        return f"{self.method.upper()} {self.path}"


def operations_of(
    document: OpenApiDocument,
    chosen: Sequence[str] | None,
    security: Security,
    *,
    simulated: bool,
) -> Operations:
    """Return all operations in document order, or those of `chosen` in the given order.

    `chosen` names operations by `operationId` or as `GET /path`. Raises DataFileError if it names
    one that does not exist or cannot be served, or if nothing can be served.
    """
    found, broken = _all_of(document)
    keys = list(found) if chosen is None else [_key(found, broken, name) for name in chosen]
    if len(keys) > _MAX_OPERATIONS:
        raise DataFileError(
            f"expected at most {_MAX_OPERATIONS} operations, found {len(keys)}: choose some with "
            "`operations`"
        )
    names = _names([found[key] for key in keys])
    served: list[ApiOperation] = []
    left_out: list[LeftOut] = []
    left = _MAX_ALL
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        try:
            operation = _operation(document, name, found[key], security, simulated=simulated)
            left -= _length(operation)
            if left < 0:
                raise DataFileError(
                    f"expected at most {_MAX_ALL} characters in all operations together, found "
                    "more: choose some with `operations`"
                )
            served.append(operation)
        except DataFileError as error:
            if left < 0 and chosen is None:  # the others would only take time
                others = zip(names[number:], keys[number:], strict=True)
                left_out += [LeftOut(name=one, why=f"{at}: {error}") for one, at in others]
                break
            left_out.append(LeftOut(name=name, why=f"{key}: {error}"))
    if chosen is not None and left_out:
        raise DataFileError(
            f"`operations` names {left_out[0].name!r}, which cannot be served: {left_out[0].why}"
        )
    if chosen is None:
        left_out += [LeftOut(name=place, why=why) for place, why in broken.items()]
    if not served:
        reasons = "; ".join(f"{one.name}: {one.why}" for one in left_out[:3])
        raise DataFileError(f"expected an operation that can be served, found none: {reasons}")
    return Operations(tuple(served), tuple(left_out))


def _length(operation: ApiOperation) -> int:
    """Return the length of an operation in characters.

    Raises DataFileError if its description is too long.
    """
    if len(operation.spec.description) > _MAX_DESCRIPTION:
        raise DataFileError(f"expected a description of at most {_MAX_DESCRIPTION} characters")
    length = len(json.dumps(operation.spec.parameters, ensure_ascii=False))
    return length + len(operation.spec.description) + len(operation.request.model_dump_json())


def find_operation(operations: Sequence[ApiOperation], name: str) -> ApiOperation | None:
    """Return the operation that `name` names: as a tool, or as `POST /path`."""
    for operation in operations:
        place = f"{operation.request.method.upper()} {operation.request.path}"
        if name == place or _cleaned(name) == operation.spec.name:
            return operation
    return None


def _all_of(document: OpenApiDocument) -> tuple[dict[str, _Found], dict[str, str]]:
    """Return the operations by method and path, and the reasons why others cannot be read."""
    found: dict[str, _Found] = {}
    broken: dict[str, str] = {}
    for path, node in document.section("paths").items():
        if not path.startswith("/"):
            continue  # extensions, as `x-internal`
        try:
            own = node if isinstance(node, dict) else {}
            item = {**document.resolved(node), **own} if "$ref" in own else document.resolved(node)
        except DataFileError as error:
            broken[path] = f"{path}: {error}"
            continue
        for method in (*_METHODS, *_UNSUPPORTED):
            if method not in item:
                continue
            place = f"{method.upper()} {path}"
            try:
                operation = document.resolved(item[method])
            except DataFileError as error:
                broken[place] = f"{place}: {error}"
                continue
            if method in _UNSUPPORTED:
                broken[place] = f"{place}: expected another method than {method.upper()}"
            else:
                found[place] = _Found(method, path, operation, item)
    return found, broken


def _key(found: Mapping[str, _Found], broken: Mapping[str, str], name: str) -> str:
    """Return the place of the operation that the user names. Raises DataFileError."""
    if name in found:
        return name
    identities = {
        key: str(entry.operation["operationId"])
        for key, entry in found.items()
        if "operationId" in entry.operation
    }
    keys = [key for key, identity in identities.items() if identity == name]
    keys = keys or [key for key, identity in identities.items() if _cleaned(identity) == name]
    if len(keys) == 1:
        return keys[0]
    if len(keys) > 1:
        raise DataFileError(
            f"expected one operation with the id {name!r}, found {', '.join(keys)}: name it by "
            "method and path"
        )
    if name in broken:
        raise DataFileError(f"`operations` names {broken[name]}")
    known = ", ".join(identities.values()) or ", ".join(found)
    raise DataFileError(f"expected an operation of the document, found {name!r}: {known[:2000]}")


def _operation(
    document: OpenApiDocument, name: str, found: _Found, security: Security, *, simulated: bool
) -> ApiOperation:
    operation, item = found.operation, found.item
    arguments = Arguments()
    reader = SchemaReader(document, "request", _REQUEST_PARTS)
    parameters = [
        parameter
        for parameter in parameters_of(document, item, operation)
        if not _is_secret(parameter, security) and not _is_stray(parameter, found.path)
    ]
    add_parameters(document, arguments, parameters, reader)
    in_path = {wire.name for wire in arguments.wire.values() if wire.place == "path"}
    for hole in re.findall(r"{([^{}]*)}", found.path):
        if hole not in in_path:
            raise DataFileError(f"expected a path parameter {hole!r}, found none")
    body, sent = None, Shape()
    given = document.resolved(operation["requestBody"]) if "requestBody" in operation else {}
    if given and (found.method not in ("get", "head") or given.get("required") is True):
        body = add_body(document, arguments, given, reader)
        content = given.get("content")
        first = next(iter(content.values()), {}) if isinstance(content, dict) else {}
        sent = shape_of(document, document.resolved(first).get("schema", {}), reader)
    needed = security.of(operation)
    answer = _answer(document, operation, simulated=simulated)
    request = HttpOperation.model_validate(
        {
            "method": found.method,
            "path": found.path,
            "arguments": arguments.wire,
            "defaults": arguments.defaults,
            "body": body,
            "accept": answer.accept,
            "base_url": "" if simulated else _own_server(document, item, operation),
            "credentials": tuple(needed.credentials),
            "needs_credentials": needed.required,
        }
    )
    spec = ToolSpec(
        name=name, description=_description(operation, item), parameters=arguments.schema()
    )
    return ApiOperation(spec, request, answer, sent, needed)


def _is_secret(parameter: JsonObject, security: Security) -> bool:
    return (str(parameter.get("name")), str(parameter.get("in"))) in security.secret_names


def _is_stray(parameter: JsonObject, path: str) -> bool:
    """Whether a path parameter has no place in the path: it could not be sent."""
    return parameter.get("in") == "path" and f"{{{parameter.get('name')}}}" not in path


def _answer(document: OpenApiDocument, operation: JsonObject, *, simulated: bool) -> ApiAnswer:
    reader = SchemaReader(document, "answer", _ANSWER_PARTS)
    try:
        return answer_of(document, operation, reader)
    except DataFileError:
        # A real API says itself what it answers.
        if simulated:
            raise
        return no_answer(operation)


def _own_server(document: OpenApiDocument, item: JsonObject, operation: JsonObject) -> str:
    """Return the server of the operation or its path; empty for that of the API."""
    servers = operation.get("servers") or item.get("servers")
    server = servers[0] if isinstance(servers, list) and servers else None
    if not isinstance(server, dict) or not isinstance(server.get("url"), str):
        return ""
    if server in document.general_servers:
        return ""
    variables = server.get("variables")
    known = variables if isinstance(variables, dict) else {}

    def default(found: re.Match[str]) -> str:
        variable = known.get(found[1])
        if not isinstance(variable, dict) or "default" not in variable:
            raise DataFileError(f"server: expected a default for the variable {found[1]!r}")
        return str(variable["default"])

    return re.sub(r"{([^{}]*)}", default, str(server["url"]))


def _description(operation: JsonObject, item: JsonObject) -> str:
    texts: list[str] = []
    for key in ("summary", "description"):
        value: JsonValue = operation.get(key) or item.get(key)
        if isinstance(value, str) and value.strip() and value.strip() not in texts:
            texts.append(value.strip())
    first = texts[0] if texts else ""
    if len(texts) < 2 or texts[1].startswith(first):
        return texts[-1] if texts else ""
    return f"{first.rstrip('.')}. {texts[1]}"


def _cleaned(name: str) -> str:
    """Return `name` with letters and digits of every script, `_` and `-`; others become `_`."""
    kept = "".join(
        character if unicodedata.category(character)[0] in "LMN" or character in "_-" else " "
        for character in unicodedata.normalize("NFC", name)
    )
    return re.sub(r" +", "_", kept).strip("_")[:_MAX_NAME]


def _names(found: Sequence[_Found]) -> list[str]:
    """Return a distinct name per operation."""
    names: dict[str, None] = {}
    seen: Counter[str] = Counter()
    for entry in found:
        wanted = str(entry.operation.get("operationId") or f"{entry.method}{entry.path}")
        name = _cleaned(wanted) or "operation"
        seen[name] += 1
        given = name if seen[name] == 1 and name not in names else f"{name}_{seen[name]}"
        while given in names:
            seen[name] += 1
            given = f"{name}_{seen[name]}"
        names[given] = None
    return list(names)
