"""Sources and documents that are written to hang or end the process that only reads them.

`python -m tests.envs.sources.hostile_inputs` reads all of them, within a limit of memory, and
prints a line of JSON for each: its name, the kind of error (empty if there was none), the message,
and CPU seconds.
"""

import json
import resource
import sys
import time
from collections.abc import Callable

from envs.sources.openapi.tool_set import simulated_tool_set
from envs.sources.python import tool_set_of_class, tool_set_of_functions

MEMORY_BYTES = 3 * 2**30


def function(text: str = "", arguments: str = "x: int", before: str = "") -> str:
    return f"{before}\ndef tool({arguments}):\n    {text!r}\n"


def diamonds(count: int) -> str:
    first = "class A0:\n    def tool(self): pass\nclass B0(A0): pass\n"
    rows = [
        f"class A{n}(A{n - 1}, B{n - 1}): pass\nclass B{n}(B{n - 1}, A{n - 1}): pass\n"
        for n in range(1, count)
    ]
    return first + "".join(rows)


def doubled(count: int) -> str:
    """Return aliases, each of which is the last one twice."""
    return "A0 = int\n" + "".join(
        f"A{n} = tuple[A{n - 1}, A{n - 1}, A{n - 1}]\n" for n in range(1, count)
    )


FUNCTIONS: dict[str, Callable[[], str]] = {
    "blanks after Args": lambda: function("Do.\n\nArgs" + " " * 60_000 + "\n x"),
    "blank lines": lambda: function("Do.\n\nArgs:\n" + "\n \t" * 30_000 + "x"),
    "colons": lambda: function(":param " * 20_000),
    "dashes": lambda: function("Parameters\n" + "-" * 99_000),
    "many headings": lambda: function(
        "".join(f"H{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}:\n  x\n" for n in range(9_000))
    ),
    "many docstrings": lambda: "".join(
        f"def t{n}(x: int):\n    {'Do. Args:' + chr(10) + '  x: y' * 2_000!r}\n" for n in range(60)
    ),
    "half a character in a docstring": lambda: function("Do \ud800 it."),
    "half a character in a default": lambda: function(arguments='x: str = "\\ud800"'),
    "half a character in a Literal": lambda: function(arguments='x: Literal["\\ud800"]'),
    "half a character in an Enum": lambda: function(
        before='class E(Enum):\n    A = "\\ud800"\n', arguments="x: E"
    ),
    "half a character in a Field": lambda: function(
        arguments='x: Annotated[str, Field(pattern="\\ud800", description="\\ud800")]'
    ),
    "half a character in an annotation": lambda: function(arguments='x: "\\ud800"'),
    "a complex default": lambda: function(arguments="x=1j, y=[1j], z={'a': 1j}, u=(1, 2j)"),
    "bytes and sets as defaults": lambda: function(arguments="x=b'x', y=[b'x'], z={'a': {1}}"),
    "a default without an end": lambda: function(arguments="x=1e999, y=[-1e999], z={1: 2}"),
    "a default of many digits": lambda: function(arguments=f"x=0x{'f' * 20_000}"),
    "a long default": lambda: function(arguments=f"x={'y' * 900_000!r}"),
    "a wide default": lambda: function(arguments=f"x={[0] * 60_000!r}"),
    "a deep default": lambda: function(arguments="x=" + "[" * 90 + "]" * 90),
    "a sum as a default": lambda: function(arguments="x=1" + "+1" * 20_000),
    "a deep annotation": lambda: function(arguments="x: " + "list[" * 90 + "int" + "]" * 90),
    "a wide union": lambda: function(arguments="x: int" + "|str" * 900),
    "a deep attribute": lambda: function(arguments="x: a" + ".b" * 900),
    "deep calls": lambda: "@" + "a" + "()" * 900 + function()[1:],
    "annotations in annotations": lambda: function(arguments="x: " + repr("list[int]" * 9_000)),
    "aliases of aliases": lambda: function(before=doubled(15), arguments="x: A14"),
    "aliases of aliases, many times": lambda: (
        doubled(11) + "".join(f"def t{n}(x: A10): pass\n" for n in range(300))
    ),
    "a type that contains itself": lambda: function(before="A = list[A]", arguments="x: A"),
    "many parts": lambda: "x = [" + "0," * 250_000 + "]\n" + function(),
    "long": lambda: "x = 1\n" * 300_000 + function(),
    "minus signs": lambda: function(arguments="x=" + "-" * 50_000 + "1"),
    "many tools of a long source": lambda: (
        f"x = {'y' * 500_000!r}\n" + "".join(f"def t{n}(): pass\n" for n in range(9_000))
    ),
    "a null byte": lambda: function() + "\0",
    "a half of a character": lambda: function() + "# \ud800",
}
CLASSES: dict[str, Callable[[], str]] = {
    "diamonds": lambda: diamonds(40),
    "a chain": lambda: (
        "class A0:\n    def tool(self): pass\n"
        + "".join(f"class A{n}(A{n - 1}): pass\n" for n in range(1, 900))
    ),
    "a circle": lambda: "class A(B):\n    def tool(self): pass\nclass B(A): pass\n",
    "many bases": lambda: (
        "class B: pass\nclass A(" + "B, " * 9_000 + "):\n    def tool(self): pass\n"
    ),
    "many classes": lambda: "".join(f"class A{n}:\n    def t(s): pass\n" for n in range(9_000)),
}
_PATH = 'openapi: 3.0.0\ninfo: {title: t, version: "1"}\npaths: {/x: {get: {responses: {}}}}\n'


def laughs(count: int, merge: str = "") -> str:
    """Return anchors, each of which has the last one several times."""
    if merge:
        lines = ["x-0: &a0 {a: 1, b: 2}"]
        lines += [f"x-{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, count)]
    else:
        lines = ["x-0: &a0 [1]"]
        lines += [f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, count)]
    return _PATH + "\n".join(lines)


def api(parameter: dict[str, object], operations: int = 1, **more: object) -> str:
    """Return a document in JSON whose operations share one parameter."""
    reference = {"$ref": "#/components/parameters/p"}
    paths = {
        f"/x{n}": {"get": {"parameters": [reference], "responses": {"200": {"description": "ok"}}}}
        for n in range(operations)
    }
    named = {"parameters": {"p": {"name": "p", "in": "query", "schema": parameter}}, **more}
    info = {"title": "t", "version": "1"}
    return json.dumps({"openapi": "3.1.0", "info": info, "paths": paths, "components": named})


def schemas(count: int) -> dict[str, object]:
    """Return schemas, each of which refers to the last one several times."""
    found: dict[str, object] = {"s0": {"type": "string"}}
    for n in range(1, count):
        inner = {"$ref": f"#/components/schemas/s{n - 1}"}
        found[f"s{n}"] = {"type": "object", "properties": {f"p{k}": inner for k in range(9)}}
    return {"schemas": found}


DOCUMENTS: dict[str, Callable[[], str]] = {
    "merge keys": lambda: laughs(40, merge="<<"),
    "a billion laughs": lambda: laughs(30),
    "a value in itself": lambda: _PATH + "x-a: &a [*a]\n",
    "an object in itself": lambda: _PATH + "x-a: &a {b: *a}\n",
    "deep YAML": lambda: _PATH + "x-a: " + "[" * 900 + "]" * 900,
    "very deep YAML": lambda: _PATH + "x-a: " + "[" * 90_000,
    "deep JSON": lambda: '{"openapi": "3.0.0", "x": ' + "[" * 90_000,
    "very deep YAML in blocks": lambda: _PATH + "x-a:\n" + "- " * 90_000,
    "rather deep JSON": lambda: (
        api({"type": "string"})[:-1] + ', "x": ' + "[" * 600 + "]" * 600 + "}"
    ),
    "many digits": lambda: _PATH + "x-a: " + "9" * 500_000,
    "a long default": lambda: api({"type": "string", "default": "x" * 2_300_000}),
    "a long default, many times": lambda: api({"type": "string", "default": "x" * 300_000}, 4_000),
    "a long description, many times": lambda: api({"description": "x" * 120_000}, 4_000),
    "long names, many times": lambda: api(
        {"type": "object", "properties": {"x" * 300_000: {}}}, 999
    ),
    "many operations": lambda: api({"type": "integer"}, 20_000),
    "schemas of schemas": lambda: api({"$ref": "#/components/schemas/s20"}, 50, **schemas(21)),
    "a schema of itself": lambda: api(
        {"$ref": "#/components/schemas/a"},
        schemas={"a": {"allOf": [{"$ref": "#/components/schemas/a"}] * 9}},
    ),
    "a pattern without an end": lambda: api({"type": "string", "pattern": "(a+)+" * 2_000}),
    "half a character": lambda: api({"type": "string", "default": "\ud800", "enum": ["\ud800"]}),
    "half a character in a name": lambda: api({"type": "object", "properties": {"\ud800": {}}}),
}


def main() -> None:
    """Read everything and tell what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    kinds = (
        ("function", FUNCTIONS, tool_set_of_functions),
        (
            "class",
            CLASSES,
            lambda text: tool_set_of_class(
                text, "A" if "class A(" in text else "A39" if "class A39(" in text else None
            ),
        ),
        ("document", DOCUMENTS, simulated_tool_set),
    )
    for kind, cases, read in kinds:
        for name, make in cases.items():
            text = make()
            print(json.dumps({"begins": f"{kind}: {name}"}), flush=True)
            began, error, message = time.process_time(), "", ""
            try:
                read(text).digest.encode()
            except Exception as fault:
                error, message = type(fault).__name__, str(fault)
            seconds = time.process_time() - began
            told = {"name": f"{kind}: {name}", "error": error, "message": message[:300]}
            print(json.dumps({**told, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    sys.setrecursionlimit(1_000)
    main()
