"""The same function where others serve it: a process per call, and the `mcp` package's own server.

python -m tests.benchmarks.tool_peers --port N    serves the MCP peer (streamable HTTP, no sandbox)
"""

import argparse
import contextlib
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from mcp import Client
from mcp.server import MCPServer
from mcp_types import CallToolResult

from envs.tools import JsonObject

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
import json, re
def reverse_digits(text="12345"):
    return {"digits": re.sub(r"\\D", "", text)[::-1]}
"""
ARGUMENTS: JsonObject = {"text": "a1b2c3"}
EXPECTED = '{"digits": "321"}'
_START_S = 30.0


def reverse_digits(text: str = "12345") -> dict[str, str]:
    """Return the digits of `text` backwards."""
    return {"digits": re.sub(r"\D", "", text)[::-1]}


def subprocess_call() -> None:
    """Run one call in an interpreter of its own: the baseline."""
    code = f"{SOURCE}\nprint(json.dumps(reverse_digits('a1b2c3')))"
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    assert ended.stdout.decode().strip() == EXPECTED


@contextlib.contextmanager
def mcp_server() -> Iterator[str]:
    """Run the MCP peer in a process of its own; the value is its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.tool_peers", "--port", str(port)], cwd=ROOT
    )
    try:
        _await_port(port)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait()


@contextlib.asynccontextmanager
async def mcp_sessions(url: str, count: int) -> AsyncIterator[list[Client]]:
    """Hold `count` sessions of the official client."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(url)) for _ in range(count)]


async def mcp_call(client: Client) -> None:
    """Call the peer's tool once."""
    result = await client.call_tool("reverse_digits", ARGUMENTS)
    assert isinstance(result, CallToolResult)
    assert result.structured_content == {"digits": "321"}, result


def _await_port(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        select.select([], [], [], 0.05)
    raise TimeoutError(f"the MCP server did not listen within {_START_S:g} s")


def main() -> None:
    """Serve the peer until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    server = MCPServer("peer", log_level="ERROR")
    server.tool()(reverse_digits)
    server.run("streamable-http", port=options.port, json_response=True)


if __name__ == "__main__":
    main()
