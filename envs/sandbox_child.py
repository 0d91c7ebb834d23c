"""The session child: the only process that compiles and runs untrusted tool source.

It answers length-framed JSON over one descriptor. Tools of a session trust each other: a hostile
one can spoil its own session's answers and nothing else, for the server checks every frame.
"""

import json
import os
import random
import resource
import struct
import time
from collections.abc import Callable

CHILD_DESCRIPTORS = 16
"""Files open at once in a session, its own socket and standard streams included."""
_SET_TYPES = (set, frozenset)


def _plain(value: object) -> object:
    if isinstance(value, _SET_TYPES):
        return sorted(value, key=repr)
    return str(value)


def as_text(value: object) -> str:
    """Return a string as it is, anything else as JSON, and as `repr` where JSON cannot hold it."""
    if isinstance(value, str):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError):
        return repr(value)


def error_text(error: BaseException) -> str:
    """Return `Type: message`, whatever the exception's own methods do."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:  # hostile __str__
        message = ""
    return f"{name}: {message}" if message else name


def cut(text: str, limit: int) -> tuple[str, bool]:
    """Return at most `limit` UTF-8 bytes of `text`, and whether something was cut."""
    encoded = text[:limit].encode("utf-8", "replace")
    if len(encoded) <= limit and len(text) <= limit:
        return encoded.decode(), False
    return encoded[:limit].decode("utf-8", "ignore"), True


class SessionChild:
    """Serves the tools of one session until its socket closes.

    A source is compiled and executed at the first call of its tool, each in a namespace of its own.
    """

    def __init__(self, descriptor: int, reply_limit_bytes: int) -> None:
        self._descriptor = descriptor
        self._reply_limit = reply_limit_bytes
        self._sources: list[str] = []
        self._functions: list[str] = []
        self._loaded: dict[int, dict[str, object] | str] = {}

    def serve(self) -> None:
        """Answer requests in order; return when the server hangs up."""
        while header := self._read(4):
            request = json.loads(self._read(struct.unpack(">I", header)[0]))
            if "sources" in request:
                self._start(request)
            else:
                self._answer(request)

    def _start(self, request: dict) -> None:
        self._sources, self._functions = request["sources"], request["functions"]
        resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_s"], request["cpu_s"] + 1))
        random.seed(request["seed"])

    def _answer(self, request: dict) -> None:
        started, cpu_started = time.monotonic(), time.process_time()
        # BaseException: a tool that calls sys.exit has failed, but its session goes on
        try:
            arguments = json.loads(request["arguments"])
            text, status = as_text(self._tool(request["tool"])(**arguments)), "ok"
        except BaseException as error:
            text, status = error_text(error), "tool_error"
        text, truncated = cut(text, self._reply_limit)
        reply = {
            "number": request["number"],
            "status": status,
            "text": text,
            "truncated": truncated,
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - cpu_started,
        }
        self._write(json.dumps(reply, ensure_ascii=False).encode())

    def _tool(self, index: int) -> Callable[..., object]:
        if index not in self._loaded:
            self._loaded[index] = self._load(index)
        namespace = self._loaded[index]
        if isinstance(namespace, str):
            raise ImportError(f"the tool could not be loaded: {namespace}")
        function = namespace.get(self._functions[index])
        if not callable(function):
            raise NameError(f"the tool's source defines no function {self._functions[index]}")
        return function

    def _load(self, index: int) -> dict[str, object] | str:
        namespace: dict[str, object] = {"__name__": f"tool_{index}"}
        try:
            code = compile(self._sources[index], f"<tool {index}>", "exec", dont_inherit=True)
            exec(code, namespace)
        except BaseException as error:  # a source may raise anything while it loads
            return error_text(error)
        return namespace

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._descriptor, size)
            if not part:
                return b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _write(self, body: bytes) -> None:
        frame = memoryview(struct.pack(">I", len(body)) + body)
        while frame:
            frame = frame[os.write(self._descriptor, frame) :]
