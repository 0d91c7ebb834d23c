"""Hostile requests at each protocol that a server of tasks speaks, beside a session that goes on.

    python -m tests.envs.gateway.request_fuzz [--protocol native] [--requests 10000] [--seed 1]

Prints for each protocol how many requests there were, how much the server's memory grew, and the
latency of another session's calls before and while they came.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgpack
import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from envs.config import IsolationConfig, ToolServerConfig
from envs.server.client import ToolClient
from envs.tools import ToolCall, ToolSession
from tests.envs.server.scripted_host import TOOLS

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a token of the fuzz"
CONFIG = ToolServerConfig(
    isolation=IsolationConfig(required="seccomp"),
    max_sessions=64,
    open_wait_s=0.01,
    session_idle_s=20,
)
PROTOCOLS = ("native", "stream", "mcp", "openenv")
ANSWER_S = 60.0
FRAME_BYTES = 2**22
SERVER = """
import asyncio, sys
from envs.gateway.serve import ServedTasks, serve_tasks
from envs.server.main import bind_tcp
from tests.envs.gateway.request_fuzz import CONFIG, TOKEN
from tests.envs.server.scripted_host import task

listener = bind_tcp("127.0.0.1", 0, TOKEN)
served = ServedTasks(tasks=[task("one"), task("two")], config=CONFIG, token=TOKEN, variables={})
ready = lambda: print(listener.getsockname()[1], flush=True)
asyncio.run(serve_tasks(served, listener, ready))
"""
SET = TOOLS.model_dump(mode="json")
OPENING = {"digest": TOOLS.digest, "seed": 1, "purpose": "trial"}
GOOD: dict[str, list[tuple[str, object]]] = {
    "native": [
        ("/sessions", {"sessions": [OPENING], "tool_sets": {TOOLS.digest: SET}}),
        ("/calls", {"items": [{"session": "s", "calls": [{"name": "echo", "arguments": "{}"}]}]}),
        ("/sessions/close", {"ids": ["s"]}),
    ],
    "stream": [
        ("call", {"session": "s", "calls": [{"name": "echo", "arguments": "{}"}]}),
        ("open", {"session": OPENING, "tool_set": SET}),
        ("close", {"ids": ["s"]}),
    ],
    "mcp": [
        ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        for method, params in (
            ("tools/list", {}),
            ("tools/call", {"name": "echo", "arguments": {"text": "a"}}),
            (
                "initialize",
                {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {},
                    "clientInfo": {"name": "fuzz", "version": "1"},
                },
            ),
        )
    ],
    "openenv": [
        ("/ws", {"type": "reset", "data": {"seed": 1}}),
        ("/ws", {"type": "step", "data": {"type": "list_tools"}}),
        ("/ws", {"type": "state"}),
        ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of the requests at one protocol; latencies are seconds."""

    protocol: str
    requests: int
    grown_mib: float
    before_s: list[float]
    during_s: list[float]
    errors: list[str]

    def line(self) -> str:
        """Return the figures as one line."""
        before, during = _p99(self.before_s), _p99(self.during_s)
        return (
            f"{self.protocol:8} {self.requests:6} requests, memory {self.grown_mib:+.0f} MiB, "
            f"p99 of another session {before * 1e3:.1f} -> {during * 1e3:.1f} ms "
            f"({during / before:.2f}x, {len(self.during_s)} calls), {len(self.errors)} errors"
        )


@contextlib.contextmanager
def server() -> Iterator[tuple[psutil.Process, int]]:
    """Yield a server's process and port."""
    command = [sys.executable, "-c", SERVER]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), int(process.stdout.readline())
        finally:
            process.terminate()


async def fuzzed(protocol: str, count: int, seed: int, pid: psutil.Process, port: int) -> Found:
    """Send `count` requests to a protocol from another process, while a session
    calls a tool all the time.
    """
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as others:
        await loop.run_in_executor(others, sent, protocol, 1, seed, port)
        client = ToolClient(f"http://127.0.0.1:{port}", CONFIG, TOKEN)
        session = await client.open_session(TOOLS, 1, "trial")
        before_s = await _calls(session, pid, lambda times: len(times[0]) >= 300)
        held = pid.memory_info().rss
        sending = loop.run_in_executor(others, sent, protocol, count, seed, port)
        during_s = await _calls(session, pid, lambda _: sending.done())
        errors = await sending
    await session.close()
    await client.close()
    return Found(
        protocol=protocol,
        requests=count,
        grown_mib=(max(during_s[1]) - held) / 2**20,
        before_s=before_s[0],
        during_s=during_s[0],
        errors=errors,
    )


def sent(protocol: str, count: int, seed: int, port: int) -> list[str]:
    """Send `count` requests to a protocol; return what is wrong with their answers."""

    async def send() -> list[str]:
        rng = random.Random(seed)
        errors = []
        for _ in range(count):
            async with asyncio.timeout(ANSWER_S):
                ask = _frame if protocol == "stream" else _request
                errors.append(await ask(protocol, rng, port))
        return list(filter(None, errors))

    return asyncio.run(send())


async def _calls(
    session: ToolSession, pid: psutil.Process, ended: Callable[[tuple], bool]
) -> tuple[list[float], list[int]]:
    """Call a tool until it has `ended`; return the seconds of each call, and the server's memory
    after it.
    """
    found: tuple[list[float], list[int]] = ([], [])
    call = ToolCall(name="echo", arguments={"text": "a"})
    while not found[0] or not ended(found):
        began = time.perf_counter()
        (answer,) = await session.call([call])
        found[0].append(time.perf_counter() - began)
        found[1].append(pid.memory_info().rss)
        assert answer.text == "a", answer
        await asyncio.sleep(0.002)
    return found


async def _request(protocol: str, rng: random.Random, port: int) -> str:
    """Send one request; return what is wrong with its answer, or nothing."""
    path, good = rng.choice(GOOD[protocol])
    if path == "/ws":
        return await _messages(good, rng, port)
    headers, body = _headers(protocol, rng), _body(good, rng)
    if rng.random() < 0.3:
        body = _packed(_wrong(good, rng))
        headers["content-type"] = "application/msgpack"
    stated = len(body) if rng.random() < 0.95 else rng.choice([0, 1, len(body) + 9, 10**12])
    method = "POST" if rng.random() < 0.9 else rng.choice(["GET", "PUT", "DELETE", "TRACE", "XX"])
    lines = [f"{method} {path} HTTP/1.1", f"content-length: {stated}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if rng.random() < 0.03:
        lines += [f"x-{number}: {'y' * 500}" for number in range(rng.randrange(200))]
    message = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    whole = stated <= len(body) and "transfer-encoding" not in headers
    if rng.random() < 0.05:
        message, whole = _damaged(message, rng), False
    return await _sent(message, port, 8.0 if whole else 0.2)


async def _sent(message: bytes, port: int, patience_s: float) -> str:
    """Send a request and hang up after its answer, or after `patience_s` without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(message)
        async with asyncio.timeout(patience_s):
            head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        if status >= 500 and status != 503:
            return f"{status} for {message[:200]!r}"
    except TimeoutError:
        return f"no answer to {message[:200]!r}" if patience_s > 1 else ""
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the server may hang up on what is no request
    finally:
        writer.close()
    return ""


async def _frame(_: str, rng: random.Random, port: int) -> str:
    """Send one frame of a stream; it is answered, or the connection is closed with a code."""
    kind, good = rng.choice(GOOD["stream"])
    body = _wrong(good, rng)
    # A server refuses what is far larger than a frame unread; here it would not fit into memory.
    most = 50 if len(_packed(body)) < FRAME_BYTES else 1
    copies = min(most, rng.choice([1, 1, 1, 2, 50]))
    messages: object = [[number, kind, body] for number in range(copies)]
    if rng.random() < 0.1:
        messages = _wrong(messages, rng)
    frame = _packed(messages)
    if rng.random() < 0.1:
        frame = _damaged(frame, rng)
    return await _spoken(f"ws://127.0.0.1:{port}/stream", frame)


async def _messages(good: object, rng: random.Random, port: int) -> str:
    text = _body(good, rng)
    return await _spoken(f"ws://127.0.0.1:{port}/ws", text)


async def _spoken(uri: str, message: bytes) -> str:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with contextlib.suppress(WebSocketException, ConnectionError, EOFError):
        dialled = connect(
            uri, additional_headers=headers, proxy=None, compression=None, max_size=None
        )
        async with dialled as socket:
            await socket.send(message)
            try:
                async with asyncio.timeout(15):
                    await socket.recv()
            except TimeoutError:
                return "" if len(message) < 4 else f"no answer to {message[:200]!r}"
            except WebSocketException:
                code = socket.close_code
                return f"closed with {code} after {message[:200]!r}" if code == 1011 else ""
    return ""


def _headers(protocol: str, rng: random.Random) -> dict[str, str]:
    headers = {"host": "localhost", "authorization": f"Bearer {TOKEN}"}
    headers["content-type"] = "application/json"
    headers["connection"] = "close"
    if protocol == "mcp":
        headers["accept"] = "application/json, text/event-stream"
        headers["mcp-session-id"] = rng.choice(["x", "", "\xff", "0" * 32])
        if rng.random() < 0.5:
            del headers["mcp-session-id"]
    if rng.random() < 0.2:
        name, value = rng.choice(
            [
                ("host", "evil.example"),
                ("origin", "http://evil.example"),
                ("authorization", "Bearer guess"),
                ("authorization", "Basic \xff"),
                ("content-type", "text/plain"),
                ("content-type", "application/json; charset=\xff"),
                ("content-encoding", "gzip"),
                ("transfer-encoding", "chunked"),
                ("expect", "100-continue"),
                ("upgrade", "websocket"),
                ("mcp-protocol-version", "9999-99-99"),
            ]
        )
        headers[name] = value
    return headers


def _body(good: object, rng: random.Random) -> bytes:
    body = json.dumps(_wrong(good, rng)).encode()
    return _damaged(body, rng) if rng.random() < 0.15 else body


def _wrong(good: object, rng: random.Random) -> object:
    """Return `good` with something wrong somewhere, at times a lot of it."""
    if rng.random() < 0.1:
        return good
    content = json.loads(json.dumps(good))
    places = list(_places(content))
    if not places:
        return _odd(rng)
    inside, key = rng.choice(places)
    many = rng.choice([1, 1, 1, 10, 1_000, 5_000, 60_000 if rng.random() < 0.2 else 10])
    match rng.randrange(4):
        case 0:
            inside[key] = _odd(rng)
        case 1 if isinstance(inside, dict):
            inside |= {f"k{number}": _odd(rng) for number in range(many)}
        case 2:
            odd = _odd(rng)
            inside[key] = [odd] * (min(many, 5_000) if isinstance(odd, str) else many)
        case _:
            inside[key] = {f"k{number}": 0 for number in range(many)}
    return content


def _places(content: object) -> Iterator[tuple]:
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield content, key
        yield from _places(value)


def _odd(rng: random.Random) -> object:
    return rng.choice(
        [None, True, 0, -1, 2**63, 1.5, "", "\x00", "\ud800", "x" * 10_000, [], {}, [[]], {"a": {}}]
    )


def _packed(content: object) -> bytes:
    packed = msgpack.packb(content, unicode_errors="surrogatepass")
    assert packed is not None
    return packed


def _damaged(body: bytes, rng: random.Random) -> bytes:
    """Return `body` cut, repeated, or with other bytes in it."""
    at = rng.randrange(len(body) + 1)
    match rng.randrange(4):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + rng.randbytes(rng.randrange(1, 64)) + body[at:]
        case 2:
            return body * rng.choice([2, 3])
        case _:
            return rng.choice([b"[", b"\x91", b"\x81\xa1a", b'{"a":']) * rng.choice([10, 50_000])


def _p99(times_s: list[float]) -> float:
    return statistics.quantiles(times_s, n=100)[98] if len(times_s) > 1 else float("nan")


def main() -> None:
    """Run the protocols and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for protocol in options.protocol or PROTOCOLS:
        with server() as (pid, port):
            found = asyncio.run(fuzzed(protocol, options.requests, options.seed, pid, port))
        sys.stdout.write(f"{found.line()}\n")
        sys.stdout.writelines(f"  {error}\n" for error in found.errors[:20])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
