"""A small MCP server over stdio, by hand, so that it can misbehave; `test_mcp_tools.py` runs it."""

import json
import os
import subprocess
import sys
import time

NAMES = ("echo", "fail", "refuse", "slow", "flood", "stray", "spawn", "die", "environment", "count")
SCHEMA = {"type": "object"}
counted: list[int] = []


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def answer(request: dict, arguments: dict) -> dict | None:
    """Return the `result` of a call, or say something else and return None."""
    text, failed = "", False
    match request["params"]["name"]:
        case "echo":
            text = arguments["text"]
        case "fail":
            text, failed = "it did not work", True
        case "refuse":
            code = -32603 if arguments.get("as_defect") else -32602
            error = {"code": code, "message": "refused"}
            say(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}))
            return None
        case "slow":
            time.sleep(arguments["seconds"])
            text = "late"
        case "flood":
            text = "x" * arguments["bytes"]
        case "stray":
            say("a print that is no message")
            text = "still here"
        case "spawn":
            child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
            text = f"{os.getpid()} {child.pid}"
        case "die":
            os._exit(3)
        case "count":
            counted.append(1)
            text = str(len(counted))
        case "environment":
            text = json.dumps(dict(os.environ))
    return {"content": [{"type": "text", "text": text}], "isError": failed}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        match request["method"]:
            case "initialize":
                result = {
                    "protocolVersion": request["params"]["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "raw", "version": "0"},
                }
            case "tools/list":
                first = "cursor" not in (request.get("params") or {})
                names = NAMES[:5] if first else NAMES[5:]
                tools = [
                    {"name": n, "description": f"To {n}.", "inputSchema": SCHEMA} for n in names
                ]
                result = {"tools": tools, **({"nextCursor": "second"} if first else {})}
            case "tools/call":
                result = answer(request, request["params"].get("arguments") or {})
            case _:
                result = None
        if "id" in request and result is not None:
            say(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))


if __name__ == "__main__":
    if "--mute" in sys.argv:
        sys.stdin.read()
    else:
        main()
