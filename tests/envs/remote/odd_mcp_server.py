"""An MCP server over stdio, by hand: the first argument says how it differs from a plain one."""

import json
import os
import sys
from pathlib import Path

KIND = sys.argv[1]
OBJECT = {"type": "object"}
OFFERED = {
    "listing": [
        {"name": "good", "description": "Good.", "inputSchema": OBJECT},
        {"name": "no-schema", "description": "x"},
        {"name": "list-schema", "inputSchema": {"type": "array"}},
        {"name": 7, "inputSchema": OBJECT},
        "no object",
        {"name": "good", "description": "Again.", "inputSchema": OBJECT},
        {"name": "bare", "title": "Bare title", "inputSchema": {}},
        {
            "name": "add_item",
            "description": None,
            "inputSchema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "title": "addItemArguments",
                "type": "object",
                "properties": {
                    "item_name": {"title": "Item Name", "type": "string"},
                    "size": {"title": "Size in cm", "type": "number", "default": None},
                },
                "required": None,
            },
        },
    ],
    "endless": [],
    "many": [{"name": f"t{number}", "inputSchema": OBJECT} for number in range(1_100)],
}
CONTENT = {
    "link": [
        {"type": "text", "text": "Found:"},
        {
            "type": "resource_link",
            "uri": "reports://q3",
            "name": "quarterly",
            "description": "By quarter",
            "mimeType": "application/pdf",
            "size": 12,
        },
    ],
    "resources": [
        {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "the text"}},
        {
            "type": "resource",
            "resource": {"uri": "file:///a.bin", "mimeType": "application/pdf", "blob": "AAAA"},
        },
    ],
    "media": [
        {"type": "image", "data": "AAAA", "mimeType": "image/png"},
        {"type": "audio", "data": "AA==", "mimeType": "audio/wav"},
    ],
    "future": [{"type": "hologram", "depth": 3}],
}
STRUCTURED = {
    "beside": ([{"type": "text", "text": "2 items."}], {"items": [1, 2]}),
    "same": ([{"type": "text", "text": '{"b": [1], "a": 2}'}], {"a": 2, "b": [1]}),
    "wrapped": ([{"type": "text", "text": "41"}], {"result": 41}),
    "list": (
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        {"result": ["a", "b"]},
    ),
    "alone": ([], {"a": 1}),
}
CODES = {"internal": -32603, "gone": -32002, "own": -32000, "unknown": -32601, "zero": 0}
grown: list[dict] = []


def say(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def tools() -> list:
    names = {
        "growing": ["login", "logout"],
        "content": [*CONTENT, *STRUCTURED],
        "errors": [*CODES],
        "dying": ["die"],
        "orders": ["cancel", "status"],
    }.get(KIND, [])
    return [{"name": name, "description": f"To {name}.", "inputSchema": OBJECT} for name in names]


def called(name: str) -> dict:
    """Return the result of a call, or the error."""
    if KIND == "errors":
        error = {"code": CODES[name], "message": f"fault {name}", "data": {"why": name}}
        return {"error": error if name == "gone" else {**error, "data": None}}
    if name in STRUCTURED:
        content, structured = STRUCTURED[name]
        return {"result": {"content": content, "structuredContent": structured}}
    if name in CONTENT:
        return {"result": {"content": CONTENT[name]}}
    if name == "die":
        sys.stderr.write(f"\x1b[31mTOKEN is {os.environ['TOKEN']}\x1b[0m\npassword=hunter22\n")
        sys.stderr.flush()
        os._exit(3)
    return {"result": {"content": [{"type": "text", "text": acted(name)}]}}


def acted(name: str) -> str:
    if KIND == "growing":
        secret = {"name": "secret", "description": "Tells it.", "inputSchema": OBJECT}
        if name in ("login", "logout"):
            grown[:] = [secret] if name == "login" else []
            say({"method": "notifications/tools/list_changed"})
        return "42" if name == "secret" else f"did {name}"
    orders = Path(sys.argv[2])
    if name == "cancel":
        orders.write_text("cancelled")
    return orders.read_text()


def listed(request: dict) -> dict:
    if KIND == "endless":
        return {"tools": [], "nextCursor": "again"}
    return {"tools": [*OFFERED.get(KIND, tools()), *grown]}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        match request.get("method"):
            case "initialize":
                result = {
                    "protocolVersion": request["params"]["protocolVersion"],
                    "capabilities": {"tools": {"listChanged": KIND == "growing"}},
                    "serverInfo": {"name": "odd", "version": "0"},
                    "instructions": "Log in before anything else.\n",
                }
                say({"id": request["id"], "result": result})
            case "tools/list":
                say({"id": request["id"], "result": listed(request)})
            case "tools/call":
                say({"id": request["id"], **called(request["params"]["name"])})


if KIND == "crash":
    sys.stderr.write("Error: TOKEN is not set\n")
    sys.exit(1)
if __name__ == "__main__":
    main()
