"""OpenAPI documents of a few lines, and what a tool set made of one of them expects."""

import json
from collections.abc import Mapping
from typing import Any

from envs.tools import ToolSet


def document(paths: Mapping, version: str = "3.0.3", **parts: object) -> str:
    info = {"title": "t", "version": "1"}
    return json.dumps({"openapi": version, "info": info, "paths": paths, **parts})


def parameters(tool_set: ToolSet, index: int = 0) -> dict[str, Any]:
    """Return the schema of a tool's arguments."""
    return tool_set.tools[index].parameters


def properties(tool_set: ToolSet, index: int = 0) -> dict[str, Any]:
    """Return the schema of each argument of a tool."""
    return parameters(tool_set, index)["properties"]


def posting(schema: object, version: str = "3.0.3", **schemas: object) -> str:
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    paths = {"/x": {"post": {"operationId": "x", "requestBody": body}}}
    return document(paths, version, components={"schemas": schemas})
