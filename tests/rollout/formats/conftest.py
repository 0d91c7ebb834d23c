"""Two tools, one of each kind of argument, for the formats' tests."""

import pytest

from envs.tools import ToolSet, ToolSpec


def spec(name: str, required: list[str], **properties: object) -> ToolSpec:
    parameters = {"type": "object", "properties": properties, "required": required}
    return ToolSpec.model_validate({"name": name, "description": "-", "parameters": parameters})


@pytest.fixture(scope="session")
def tools() -> ToolSet:
    tools = (
        spec("double", ["x"], x={"type": "integer"}),
        spec(
            "search",
            ["q"],
            q={"type": "string"},
            limit={"type": ["integer", "null"]},
            exact={"type": "boolean"},
            tags={"type": "array", "items": {"type": "string"}},
            options={"type": "object"},
            ratio={"type": "number"},
        ),
    )
    sources = ("def double(x): return 2 * x", "def search(q, **rest): return q")
    return ToolSet(tools=tools, sources=sources, functions=("double", "search"))
