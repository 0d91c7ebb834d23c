"""Operations of an OpenAPI document as tools: name, arguments and response of each."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from envs.endpoints import HttpOperation
from envs.errors import DataFileError
from envs.sources.openapi_document import OpenApiDocument
from envs.tools import JsonObject, ToolSpec

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_IGNORED_HEADERS = frozenset({"accept", "content-type", "authorization"})
"""Header parameters of these names are ignored, as the OpenAPI specification requires."""
_ARGUMENT_DEPTH = 8
_ANSWER_DEPTH = 6
_EXAMPLE_ITEMS = 3
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """Response of a successful call; `example` is None if the document has none."""

    status: int
    schema: JsonObject
    example: JsonValue


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One operation: its tool, its HTTP request and its response."""

    spec: ToolSpec
    request: HttpOperation
    answer: ApiAnswer


def operations_of(
    document: OpenApiDocument, chosen: Sequence[str] | None
) -> tuple[ApiOperation, ...]:
    """Return all operations in document order, or those of `chosen` in the given order.

    `chosen` names operations by `operationId` or as `GET /path`. Raises DataFileError.
    """
    found: dict[str, tuple[str, str, JsonObject, JsonObject]] = {}
    paths = document.root["paths"]
    assert isinstance(paths, dict), "parse_document checks this"
    for path, item in paths.items():
        entry = document.resolved(item)
        for method in _METHODS:
            if method in entry:
                operation = document.resolved(entry[method])
                found[f"{method.upper()} {path}"] = (method, path, operation, entry)
    identities = {str(entry[2].get("operationId")): key for key, entry in found.items()}
    keys = list(found) if chosen is None else [identities.get(name, name) for name in chosen]
    for key in keys:
        if key not in found:
            known = ", ".join(name for name in identities if name != "None") or ", ".join(found)
            raise DataFileError(f"expected an operation of the document, found {key!r}: {known}")
    names = _names([found[key] for key in keys])
    secrets = _secret_names(document)
    return tuple(
        _operation(document, name, found[key], secrets)
        for name, key in zip(names, keys, strict=True)
    )


@dataclass(slots=True)
class _Arguments:
    """Collects the arguments of one operation."""

    properties: JsonObject = field(default_factory=dict)
    required: list[JsonValue] = field(default_factory=list)
    locations: dict[str, str] = field(default_factory=dict)
    wire_names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, place: str, schema: JsonObject, *, required: bool) -> None:
        """Add an argument; if its name is taken, the place is appended to it."""
        argument = name if name not in self.properties else f"{name}_in_{place or 'body'}"
        if argument != name:
            self.wire_names[argument] = name
        if place:
            self.locations[argument] = place
        self.properties[argument] = schema
        if required:
            self.required.append(argument)


def _operation(
    document: OpenApiDocument,
    name: str,
    found: tuple[str, str, JsonObject, JsonObject],
    secrets: frozenset[tuple[str, str]],
) -> ApiOperation:
    method, path, operation, item = found
    where = f"{method.upper()} {path}"
    arguments = _Arguments()
    try:
        for parameter in _parameters(document, item, operation):
            _add_parameter(document, arguments, parameter, secrets)
        if method not in ("get", "head") and "requestBody" in operation:
            _add_body(document, arguments, document.resolved(operation["requestBody"]))
        answer = _answer(document, operation)
    except DataFileError as error:
        raise DataFileError(f"{where}: {error}") from error
    for hole in re.findall(r"{([^{}]*)}", path):
        if arguments.locations.get(hole) != "path":
            raise DataFileError(f"{where}: expected a path parameter {hole!r}, found none")
    parameters: JsonObject = {
        "type": "object",
        "properties": arguments.properties,
        "required": arguments.required,
        "additionalProperties": False,
    }
    request = HttpOperation.model_validate(
        {
            "method": method,
            "path": path,
            "locations": arguments.locations,
            "wire_names": arguments.wire_names,
        }
    )
    spec = ToolSpec(name=name, description=_description(operation, item), parameters=parameters)
    return ApiOperation(spec, request, answer)


def _parameters(
    document: OpenApiDocument, item: JsonObject, operation: JsonObject
) -> list[JsonObject]:
    """Return the parameters of the path and the operation; the operation's override the path's."""
    gathered: dict[tuple[str, str], JsonObject] = {}
    for owner in (item, operation):
        given = owner.get("parameters")
        for node in given if isinstance(given, list) else []:
            parameter = document.resolved(node)
            gathered[str(parameter.get("name")), str(parameter.get("in"))] = parameter
    return list(gathered.values())


def _add_parameter(
    document: OpenApiDocument,
    arguments: _Arguments,
    parameter: JsonObject,
    secrets: frozenset[tuple[str, str]],
) -> None:
    name, place = str(parameter.get("name")), str(parameter.get("in"))
    if place not in ("path", "query", "header", "cookie"):
        raise DataFileError(f"parameter {name!r}: expected a known `in`, found {place!r}")
    if (name, place) in secrets or (place == "header" and name.lower() in _IGNORED_HEADERS):
        return
    node = parameter.get("schema")
    if node is None:
        content = parameter.get("content")
        forms = list(content.values()) if isinstance(content, dict) else []
        node = document.resolved(forms[0]).get("schema", {}) if forms else {}
    schema = document.plain(node, _ARGUMENT_DEPTH)
    if isinstance(parameter.get("description"), str):
        schema["description"] = parameter["description"]
    required = place == "path" or parameter.get("required") is True
    arguments.add(name, place, schema, required=required and "default" not in schema)


def _add_body(document: OpenApiDocument, arguments: _Arguments, body: JsonObject) -> None:
    content = body.get("content")
    forms = content if isinstance(content, dict) else {}
    form = next((node for kind, node in forms.items() if _is_json(kind)), None)
    if form is None:
        raise DataFileError(
            f"expected a JSON body, found {', '.join(forms) or 'none'}: select other operations"
        )
    schema = document.plain(document.resolved(form).get("schema", {}), _ARGUMENT_DEPTH)
    needed = body.get("required") is True
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not properties:
        arguments.add("body", "body", schema, required=needed)
        return
    names = required if isinstance(required, list) else []
    for name, below in properties.items():
        if isinstance(below, dict) and "readOnly" not in below:
            arguments.add(name, "", below, required=needed and name in names)


def _answer(document: OpenApiDocument, operation: JsonObject) -> ApiAnswer:
    responses = operation.get("responses")
    given = responses if isinstance(responses, dict) else {}
    good = sorted(str(status) for status in given if str(status).startswith("2"))
    status = good[0] if good else "default" if "default" in given else ""
    number = int(status) if status.isdigit() else 200
    response = document.resolved(given[status]) if status else {}
    content = response.get("content")
    forms = content if isinstance(content, dict) else {}
    form = next((document.resolved(node) for kind, node in forms.items() if _is_json(kind)), {})
    node = form.get("schema", {})
    schema = document.plain(node, _ANSWER_DEPTH)
    example = form.get("example")
    examples = form.get("examples")
    if example is None and isinstance(examples, dict) and examples:
        example = document.resolved(next(iter(examples.values()))).get("value")
    if example is None and isinstance(node, dict):
        example = document.resolved(node).get("example")
    return ApiAnswer(number, schema, document.trimmed(example, _EXAMPLE_ITEMS))


def _is_json(kind: str) -> bool:
    bare = kind.partition(";")[0].strip().lower()
    return bare in ("application/json", "*/*", "application/*") or bare.endswith("+json")


def _description(operation: JsonObject, item: JsonObject) -> str:
    texts: list[str] = []
    for key in ("summary", "description"):
        value = operation.get(key) or item.get(key)
        if isinstance(value, str) and value.strip() and value.strip() not in texts:
            texts.append(value.strip())
    first = texts[0] if texts else ""
    if len(texts) < 2 or texts[1].startswith(first):
        return texts[-1] if texts else ""
    return f"{first.rstrip('.')}. {texts[1]}"


def _names(found: Sequence[tuple[str, str, JsonObject, JsonObject]]) -> list[str]:
    """Return a distinct name per operation, of characters that tool names allow."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for method, path, operation, _ in found:
        wanted = str(operation.get("operationId") or f"{method}{path}")
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", wanted).strip("_")[:_MAX_NAME] or "operation"
        seen[name] += 1
        while seen[name] > 1 and f"{name}_{seen[name]}" in names:
            seen[name] += 1
        names.append(name if seen[name] == 1 and name not in names else f"{name}_{seen[name]}")
    return names


def _secret_names(document: OpenApiDocument) -> frozenset[tuple[str, str]]:
    """Return name and place of every API key; the policy must not supply these parameters."""
    return frozenset(
        (str(scheme.get("name")), str(scheme.get("in")))
        for scheme in security_schemes(document)
        if scheme.get("type") == "apiKey"
    )


def security_schemes(document: OpenApiDocument) -> list[JsonObject]:
    """Return the document's security schemes."""
    components = document.root.get("components")
    given = components.get("securitySchemes") if isinstance(components, dict) else None
    return [document.resolved(node) for node in given.values()] if isinstance(given, dict) else []
