"""Python source that simulates an API: this package's generic code and the API's description.

The result is one Python module for the sandbox, which needs only the standard library.
"""

import ast
import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from envs.sources.openapi.operations import ApiOperation
from envs.tools import JsonObject

TEXTS = ("values.py", "json_patch.py", "resources.py", "listing.py", "stores.py", "backend.py")
_WIDTH = 96


def simulation_source(
    operations: Sequence[ApiOperation], fixtures: JsonObject, seed: int, name: str
) -> tuple[str, tuple[str, ...]]:
    """Return the source of a class `name`, and for each operation the method that serves it.

    Methods are called `name.operation_0` and so on, in the order of `operations`.
    """
    facts = {
        "operations": [_facts(operation) for operation in operations],
        "fixtures": fixtures,
        "seed": seed,
    }
    packed = base64.b85encode(zlib.compress(json.dumps(facts).encode(), 9)).decode()
    rows = [packed[start : start + _WIDTH] for start in range(0, len(packed), _WIDTH)]
    methods = [f"operation_{index}" for index in range(len(operations))]
    lines = [
        *(_without_own_imports(name) for name in TEXTS),
        "import base64",
        "import zlib",
        "",
        "_FACTS = (",
        *(f"    {row!r}" for row in rows),
        ")",
        "",
        "",
        f"class {name}(SimulatedApi):",
        "    def __init__(self):",
        "        super().__init__(**json.loads(zlib.decompress(base64.b85decode(_FACTS))))",
    ]
    for index, method in enumerate(methods):
        lines += ["", f"    def {method}(self, /, **arguments):"]
        lines += [f"        return self.answer({index}, arguments)"]
    return "\n".join([*lines, ""]), tuple(f"{name}.{method}" for method in methods)


def _without_own_imports(name: str) -> str:
    """Return a module's text without its imports from this package.

    The simulation is one text that already contains the imported module.
    """
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    own: set[int] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("envs."):
            own |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    rows = text.splitlines()
    return "\n".join(row for number, row in enumerate(rows, start=1) if number not in own)


def _facts(operation: ApiOperation) -> JsonObject:
    request, parameters = operation.request, operation.spec.parameters
    body = request.body
    return {
        "method": request.method,
        "path": request.path,
        "places": {name: [wire.place, wire.name] for name, wire in request.arguments.items()},
        "defaults": {**request.defaults},
        "properties": parameters["properties"],
        "required": parameters["required"],
        "others": parameters["additionalProperties"],
        "body": body.media_type if body else "",
        "sent": [operation.sent.single, operation.sent.items],
        "status": operation.answer.status,
        "schema": operation.answer.schema,
        "example": operation.answer.example,
        "answered": [operation.answer.shape.single, operation.answer.shape.items],
    }
