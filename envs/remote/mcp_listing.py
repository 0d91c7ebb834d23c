"""The tools that an MCP server lists: each is read by itself, so that a bad one costs no other."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from envs.tool_schemas import without_noise
from envs.tools import JsonObject, LeftOut, ToolSpec

_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Listing:
    """The tools of a server that can be served, and those that cannot."""

    tools: tuple[ToolSpec, ...]
    left_out: tuple[LeftOut, ...]


def read_listing(listed: Iterable[JsonValue]) -> Listing:
    """Return the tools of `tools/list`; of several with one name the first."""
    tools: dict[str, ToolSpec] = {}
    left_out: list[LeftOut] = []
    for number, tool in enumerate(listed, start=1):
        name = _name(tool)
        fault = f"tool {name!r} is listed twice" if name in tools else _fault(tool)
        if fault or not isinstance(tool, dict):
            left_out.append(LeftOut(name=name or f"number {number}", why=fault))
        else:
            tools[name] = _spec(name, tool)
    return Listing(tuple(tools.values()), tuple(left_out))


def _name(tool: JsonValue) -> str:
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else ""


def _fault(tool: JsonValue) -> str:
    """Return why a tool cannot be served, or empty."""
    if not isinstance(tool, dict):
        return f"expected an object, found {_shown(tool)}"
    if not _name(tool):
        return f"expected a name, found {_shown(tool.get('name'))}"
    schema = tool.get("inputSchema")
    if not isinstance(schema, dict):
        return f"expected an object as inputSchema, found {_shown(schema)}"
    kind = schema.get("type", "object")
    if kind != "object":
        return f"expected an inputSchema of type object, found type {_shown(kind)}"
    return ""


def _spec(name: str, tool: JsonObject) -> ToolSpec:
    schema = tool.get("inputSchema")
    assert isinstance(schema, dict), "checked before"
    texts = (tool.get("description"), tool.get("title"))
    description = next((text for text in texts if isinstance(text, str) and text), "")
    return ToolSpec(name=name, description=description, parameters=without_noise(schema, name))


def _shown(value: JsonValue) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
