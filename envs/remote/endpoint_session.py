"""Sessions on tools outside of the sandbox: deadlines, reply limits and typed answers.

Failures are of two kinds. A tool that fails or exceeds its time limit gives an observation to the
policy. A backend that cannot be reached, or violates its protocol, is an infrastructure failure:
`infra_error`.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from envs.config import ToolServerConfig
from envs.errors import DeadlineError, InfraError
from envs.tools import (
    REWARD_CALL,
    STATE_CALL,
    AnswerStatus,
    JsonObject,
    ToolAnswer,
    ToolCall,
    ToolSet,
    ToolSpec,
)

_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class BackendReply:
    """Result of one call; `truncated` if the backend has already cut the text."""

    status: AnswerStatus
    text: str
    truncated: bool = False
    done: bool = False
    """Whether the environment's own episode has ended."""


@runtime_checkable
class Readable(Protocol):
    """A backend whose state, or rewards, scorers can read."""

    async def read(self, name: str) -> BackendReply:
        """Answer STATE_CALL or REWARD_CALL. Raises InfraError and OSError."""
        ...


class EndpointBackend(Protocol):
    """One session's connection to its tools. A call is cancelled when its deadline passes."""

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Call tool number `index` of the set. Raises InfraError and OSError."""
        ...

    async def close(self) -> None:
        """Release all resources; does not raise for those that are gone already."""
        ...


Changes = Callable[[], Awaitable[tuple[ToolSpec, ...] | None]]
"""Returns all tools of a session if they have changed since the last time, else None."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time and size limits of a session."""

    call_s: float
    """Wall seconds of one call."""
    open_s: float
    """Wall seconds to open a session, and to close it."""
    reply_bytes: int
    """UTF-8 bytes of one answer's text."""

    @classmethod
    def of(cls, config: ToolServerConfig) -> "Limits":
        """Return the limits that `config` sets."""
        return cls(config.call_timeout_s, config.request_timeout_s, config.reply_limit_bytes)


class EndpointSession:
    """ToolSession on an endpoint."""

    def __init__(
        self,
        session_id: str,
        tool_set: ToolSet,
        backend: EndpointBackend,
        limits: Limits,
        changes: Changes | None = None,
    ) -> None:
        """`changes` is asked after each call for all tools, if they have changed."""
        assert tool_set.endpoint is not None, "only services of endpoints create this"
        self._id = session_id
        self._endpoint = tool_set.endpoint
        self._indices = _indices(tool_set.tools)
        self._backend = backend
        self._changes = changes
        self._limits = limits
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def id(self) -> str:
        return self._id

    @property
    def isolation(self) -> str:
        """`outside (KIND, STATE)`: the sandbox does not apply to these tools; `STATE` says who sees
        what a session changes: `shared` is everybody.
        """
        return f"outside ({self._endpoint.kind}, {self._endpoint.isolation})"

    @property
    def server(self) -> str:
        return self._endpoint.place

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call."""
        async with self._turn:
            return [await self._call(call) for call in calls]

    async def close(self) -> None:
        """End the session; a backend that hangs is abandoned after `open_s` seconds."""
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(self._limits.open_s):
                await self._backend.close()
        except (TimeoutError, InfraError, OSError):
            return

    async def _call(self, call: ToolCall) -> ToolAnswer:
        started = time.monotonic()
        reply = await self._reply(call)
        text, cut = _cut(reply.text, self._limits.reply_bytes)
        seconds = time.monotonic() - started
        tools = (
            await self._changed_tools() if reply.status is not AnswerStatus.INFRA_ERROR else None
        )
        return ToolAnswer(
            status=reply.status,
            text=text,
            seconds=seconds,
            truncated=cut or reply.truncated,
            done=reply.done,
            tools=tools,
        )

    async def _read(self, name: str) -> BackendReply:
        """Return what a scorer asks for, which no policy can."""
        if self._closed or not isinstance(self._backend, Readable):
            text = f"{self._endpoint.place} has no state and no rewards that can be read"
            return BackendReply(AnswerStatus.TOOL_ERROR, text)
        try:
            async with asyncio.timeout(self._limits.call_s):
                return await self._backend.read(name)
        except (InfraError, DeadlineError, OSError) as error:
            text = f"{self._endpoint.place}: {error or type(error).__name__}"
            return BackendReply(AnswerStatus.INFRA_ERROR, text)

    async def _changed_tools(self) -> tuple[ToolSpec, ...] | None:
        """Return all tools of the session, if the last call has changed them."""
        if self._changes is None:
            return None
        try:
            async with asyncio.timeout(self._limits.open_s):
                tools = await self._changes()
        except TimeoutError:
            return None
        if tools is not None:
            self._indices = _indices(tools)
        return tools

    async def _reply(self, call: ToolCall) -> BackendReply:
        if call.name in (STATE_CALL, REWARD_CALL):
            return await self._read(call.name)
        index = self._indices.get(call.name)
        if index is None:
            names = ", ".join(self._indices)
            return BackendReply(AnswerStatus.TOOL_ERROR, f"no tool {call.name!r}; tools: {names}")
        if fault := _unsendable(call.arguments):
            return BackendReply(AnswerStatus.TOOL_ERROR, fault)
        if self._closed:
            return BackendReply(AnswerStatus.INFRA_ERROR, "the session is closed; open a new one")
        try:
            async with asyncio.timeout(self._limits.call_s):
                return await self._backend.answer(index, call.arguments)
        except TimeoutError:
            text = f"the tool did not answer within {self._limits.call_s:g} s"
            return BackendReply(AnswerStatus.TIMEOUT, text)
        except (InfraError, DeadlineError, OSError) as error:
            text = f"{self._endpoint.place}: {error or type(error).__name__}"
            return BackendReply(AnswerStatus.INFRA_ERROR, text)


def _indices(tools: Sequence[ToolSpec]) -> dict[str, int]:
    """Return the number of each tool by its name; of two with one name, the first one's."""
    indices: dict[str, int] = {}
    for index, tool in enumerate(tools):
        indices.setdefault(tool.name, index)
    return indices


def _unsendable(arguments: JsonObject) -> str:
    """Return why `arguments` cannot be sent, or empty: a policy must not break the connection."""
    level: list[JsonValue] = [arguments]
    for _ in range(_MAX_DEPTH):
        level = [item for value in level for item in _inside(value)]
        if not level:
            break
    else:
        return f"the arguments are nested more than {_MAX_DEPTH} deep"
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        return f"the arguments are no JSON in UTF-8: {error}"
    return ""


def _inside(value: JsonValue) -> Iterable[JsonValue]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _cut(text: str, limit: int) -> tuple[str, bool]:
    """Return at most `limit` UTF-8 bytes of `text`, and whether something was cut."""
    encoded = text[: limit + 1].encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode(), False
    return encoded[:limit].decode("utf-8", "ignore"), True
