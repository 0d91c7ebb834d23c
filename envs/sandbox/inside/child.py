"""The session child: the only process that compiles and runs untrusted tool source.

`frames.py` has its requests and replies. The tools of a session trust each other: a hostile tool
can corrupt the answers of its own session and nothing else, because the server believes no frame.
"""

import inspect
import json
import os
import random
import socket
import sys
import time
from collections.abc import Awaitable

from envs.sandbox.inside.awaiting import Awaiter
from envs.sandbox.inside.fitting import invoked
from envs.sandbox.inside.frames import FAILED, OK, REPLY, REQUEST, TRUNCATED
from envs.sandbox.inside.modules import ToolModules, compiled, error_text
from envs.sandbox.inside.values import as_text, state_text

STATE = -1
"""Number of the tool that answers with the session's state."""
STATE_LIMIT_BYTES = 4 * 2**20
_ROUNDS = 32


def cut(text: str, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` UTF-8 bytes of `text`, and whether something was cut."""
    encoded = text[:limit].encode("utf-8", "replace")
    if len(encoded) <= limit and len(text) <= limit:
        return encoded, False
    return encoded[:limit].decode("utf-8", "ignore").encode(), True


class SessionChild:
    """Serves the tools of one session until its socket closes, or compiles tool sources."""

    def __init__(self, descriptor: int, reply_limit_bytes: int) -> None:
        self._descriptor = descriptor
        self._reply_limit = reply_limit_bytes
        self._tools = ToolModules({"functions": [], "errors": {}}, [])
        self._awaiter = Awaiter()

    def serve(self) -> None:
        """Answer requests in order; return when the server closes the socket."""
        while header := self._read(REQUEST.size):
            (size,) = REQUEST.unpack(header)
            line, _, attached = self._read(size).partition(b"\n")
            request = json.loads(line)
            if "functions" in request:
                self._start(request, attached)
            elif "compile" in request:
                number = request["compile"]
                status, body = compiled(attached, number, request["limit"])
                self._write(REPLY.pack(len(body), number, status, 0, 0, 0) + body)
            else:
                self._answer(request)

    def _start(self, request: dict, codes: bytes) -> None:
        """Become a session of the tools in `request`.

        `sizes` has the number of bytes of each module's code in `codes`, `errors` the reason for
        each module without code.
        """
        modules, at = [], 0
        for size in request["sizes"]:
            modules.append(codes[at : at + size])
            at += size
        self._tools = ToolModules(request, modules, os.environ.get("TMPDIR", ""))
        random.seed(request["seed"])
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(request["seed"] % 2**32)

    def _answer(self, request: dict) -> None:
        started, cpu_started = time.monotonic_ns(), time.process_time_ns()
        # BaseException: a tool that calls sys.exit has failed, but its session continues
        try:
            text, status = self._text(request["tool"], json.loads(request["arguments"])), OK
        except BaseException as error:
            text, status = error_text(error), FAILED
        is_state = request["tool"] == STATE
        body, truncated = cut(text, STATE_LIMIT_BYTES if is_state else self._reply_limit)
        wall_ns = time.monotonic_ns() - started
        cpu_ns = time.process_time_ns() - cpu_started
        flags = TRUNCATED if truncated else 0
        header = REPLY.pack(len(body), request["number"], status, flags, wall_ns, cpu_ns)
        self._write(header + body)

    def _text(self, tool: int, arguments: dict[str, object]) -> str:
        if tool == STATE:
            return state_text(self._tools.state())
        found = invoked(self._tools.find(tool), arguments)
        if inspect.isawaitable(found):
            found = self._awaiter.result(_awaited(found))
        if inspect.isasyncgen(found):
            found = self._awaiter.items(found)
        return as_text(found)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._descriptor, size)
            if not part:
                return b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _write(self, frame: bytes) -> None:
        left = memoryview(frame)
        while left:
            left = left[os.write(self._descriptor, left) :]


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def warm_up() -> None:
    """Serve a harmless session in this process, the zygote.

    The interpreter specialises (rewrites) bytecode as it warms up. Before the fork this happens
    only once, and its memory pages stay shared with the children.
    """
    source = b"class Warm:\n def up(self, x=1): return {'x': [x, 1.5, 'y', None]}"
    _, code = compiled(source, 0, len(source) * 64)
    start = {"functions": [[0, "Warm.up"]], "sizes": [len(code)], "errors": {}}
    bodies = [json.dumps(start | {"seed": 0}).encode() + b"\n" + code]
    for number in range(_ROUNDS):
        call = {"number": number, "tool": 0, "arguments": '{"x": 2}' if number else '{"no": 1}'}
        bodies.append(json.dumps(call).encode())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for body in bodies:
            ours.sendall(REQUEST.pack(len(body)) + body)
        ours.shutdown(socket.SHUT_WR)
        SessionChild(theirs.fileno(), 1_024).serve()
    del sys.modules["tool_0"]
