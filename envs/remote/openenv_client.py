"""Tools of third-party OpenEnv environments: a session is one WebSocket, and so one environment.

The wire format is that of `openenv` 0.10 (`/ws` with `reset`, `step`, `state`, `close`; `/schema`).
If the environment lists tools (its MCP actions), those are the tools. Otherwise there is one tool,
`step`, whose parameters are the schema of its actions. Every answer is JSON with `reward` and
`done`; the observation of the reset is not shown. Of an endpoint that is a `world`, rewards are for
the scorer, and the reset's observation is the question. A step that the environment refuses or
fails is a tool error. A full server, a lost connection and invalid frames are infrastructure
failures.
"""

import asyncio
import contextlib
import json
import time
from dataclasses import replace

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from envs.config import ToolServerConfig
from envs.endpoints import OpenEnvEndpoint, without_address
from envs.errors import ConfigError, DeadlineError, ToolServerError
from envs.remote.bounded_body import bounded_body
from envs.remote.endpoint_session import BackendReply, EndpointSession, Limits
from envs.remote.openenv_wire import BOOKKEEPING, json_text, plain_result, shown_observation
from envs.seeds import stable_hash
from envs.tools import REWARD_CALL, AnswerStatus, JsonObject, SessionPurpose, ToolSet, ToolSpec

STEP = "step"
_SPARE_BYTES = 65_536
"""Bytes that a message may have in addition to eight times the longest text of an answer."""
_FULL = "CAPACITY_REACHED"
_INFRA_CODES = frozenset({_FULL, "FACTORY_ERROR", "SESSION_ERROR", "UNKNOWN_TYPE"})
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 1.0
"""Seconds between two attempts to open a session on a full server; each is twice the last."""
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_MAX_SCHEMA_BYTES = 4 * 2**20
_SEED_BITS = 0x7FFFFFFF


class _FullServer(ToolServerError):
    """The server has as many sessions as it takes; later there may be room."""


class _Incoming(BaseModel):
    """Any message of an environment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str
    data: JsonObject = {}


class _ListedTool(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    description: str = ""
    input_schema: JsonObject = {}


class _Listing(BaseModel):
    """The observation that answers `list_tools`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tools: tuple[_ListedTool, ...]


class OpenEnvTools:
    """ToolService for tool sets whose endpoint is an OpenEnv environment.

    A session resets its environment with the session's seed, if the environment accepts one.
    """

    def __init__(self, config: ToolServerConfig) -> None:
        self._limits = Limits.of(config)
        self._wait_s = config.open_wait_s
        self._opened = 0

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> EndpointSession:
        """Connect and reset; wait for a while where the server is full.

        Raises ToolServerError or DeadlineError.
        """
        endpoint = tool_set.endpoint
        if not isinstance(endpoint, OpenEnvEndpoint):
            raise ConfigError(
                f"expected a tool set with an OpenEnv endpoint, found {type(endpoint).__name__}"
            )
        names = tuple(tool.name for tool in tool_set.tools)
        backend = OpenEnvBackend(endpoint, self._limits, names)
        await _started(backend, seed, self._wait_s)
        self._opened += 1
        session_id = f"openenv-{stable_hash(seed, purpose, self._opened):016x}"
        return EndpointSession(session_id, tool_set, backend, self._limits)

    async def close(self) -> None: ...


async def tool_set_of_openenv(endpoint: OpenEnvEndpoint, config: ToolServerConfig) -> ToolSet:
    """Ask an environment for its tools and return them as a tool set.

    Raises ToolServerError, DeadlineError or ConfigError.
    """
    limits = Limits.of(config)
    backend = OpenEnvBackend(endpoint, limits, ())
    await _started(backend, 0, config.open_wait_s)
    try:
        async with asyncio.timeout(limits.open_s):
            specs = await backend.list_tools() or [await _step_tool(endpoint)]
    except TimeoutError as error:
        raise DeadlineError(
            f"{endpoint.place} did not list its tools within {limits.open_s:g} s"
        ) from error
    finally:
        await backend.close()
    return ToolSet(tools=tuple(specs), endpoint=endpoint)


class OpenEnvBackend:
    """EndpointBackend of one environment.

    Every message gets exactly one reply, in order. A call whose deadline passed leaves its reply
    unread; the next call reads and drops it.
    """

    def __init__(self, endpoint: OpenEnvEndpoint, limits: Limits, names: tuple[str, ...]) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._names = names
        self._socket: ClientConnection | None = None
        self._unread = 0
        self._rewards: list[float] = []
        self._steps = 0
        self._done = False
        self.first: JsonValue = None
        """Observation of the reset."""

    async def start(self, seed: int) -> None:
        """Connect and reset. Raises ToolServerError or DeadlineError."""
        url = self._endpoint.url.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"expected an OpenEnv url http(s)://host:port, found {self._endpoint.place}: "
                "correct it"
            )
        try:
            async with asyncio.timeout(self._limits.open_s):
                self._socket = await connect(
                    f"ws{url.removeprefix('http')}/ws",
                    max_size=8 * self._limits.reply_bytes + _SPARE_BYTES,
                    open_timeout=None,
                    ping_interval=None,
                    proxy=None,
                )
                options = {"seed": seed & _SEED_BITS, **self._endpoint.reset}
                reply = await self._exchange("reset", options)
        except TimeoutError as error:
            await self.close()
            raise DeadlineError(
                f"{self._endpoint.place} did not reset within {self._limits.open_s:g} s"
            ) from error
        except (OSError, WebSocketException) as error:
            await self.close()
            said = without_address(str(error), url) or type(error).__name__
            raise ToolServerError(f"{self._endpoint.place}: {said}") from error
        except BaseException:
            await self.close()
            raise
        if reply.type != "observation":
            await self.close()
            text = f"{self._endpoint.place} refused the reset: {_fault(reply)}"
            if reply.data.get("code") == _FULL:
                raise _FullServer(f"{text}: it needs room for as many sessions as are open at once")
            raise ToolServerError(text)
        self.first = reply.data.get("observation")

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Take a step: `arguments` as the action, or as a call of tool `index`.

        Raises InfraError.
        """
        if self._done and self._endpoint.world:
            text = "the environment's episode has ended: no step does anything any more"
            return BackendReply(AnswerStatus.TOOL_ERROR, text, done=True)
        name = self._names[index]
        action = (
            arguments
            if self._names == (STEP,)
            else {"type": "call_tool", "tool_name": name, "arguments": arguments}
        )
        try:
            reply = await self._exchange("step", action)
        except WebSocketException as error:
            raise ToolServerError(f"the connection was lost: {error}") from error
        if reply.type == "error":
            if reply.data.get("code") in _INFRA_CODES:
                raise ToolServerError(_fault(reply))
            return BackendReply(AnswerStatus.TOOL_ERROR, _fault(reply))
        if reply.type != "observation":
            raise ToolServerError(f"expected an observation, found {reply.type!r}")
        return self._noted(reply.data)

    async def read(self, name: str) -> BackendReply:
        """Return the environment's state, or its rewards so far and the number of steps."""
        if name == REWARD_CALL:
            told: JsonObject = {"rewards": [*self._rewards], "steps": self._steps}
            return BackendReply(AnswerStatus.OK, json_text(told))
        try:
            reply = await self._exchange("state", None)
        except WebSocketException as error:
            raise ToolServerError(f"the connection was lost: {error}") from error
        if reply.type != "state":
            return BackendReply(AnswerStatus.TOOL_ERROR, _fault(reply))
        return BackendReply(AnswerStatus.OK, json_text({"openenv": reply.data}))

    def _noted(self, data: JsonObject) -> BackendReply:
        """Return the result of a step, and note its reward; of a world, the reward is not told."""
        self._steps += 1
        reward = data.get("reward")
        if isinstance(reward, int | float) and not isinstance(reward, bool):
            self._rewards.append(float(reward))
        self._done = self._done or data.get("done") is True
        reply = _reply_of(data, hidden=self._endpoint.world)
        return replace(reply, done=self._done) if self._endpoint.world else reply

    async def list_tools(self) -> list[ToolSpec]:
        """Return the tools that the environment lists; none if it does not know this action."""
        try:
            reply = await self._exchange("step", {"type": "list_tools"})
            listing = _Listing.model_validate(reply.data.get("observation"))
        except ValidationError:
            return []
        except WebSocketException as error:
            raise ToolServerError(f"{self._endpoint.place}: {error}") from error
        return [
            ToolSpec(
                name=tool.name,
                description=tool.description,
                parameters=tool.input_schema or {"type": "object", "properties": {}},
            )
            for tool in listing.tools
        ]

    async def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is None:
            return
        try:
            async with asyncio.timeout(self._limits.call_s):
                await socket.send('{"type": "close"}')
                await socket.close()
        except (TimeoutError, OSError, WebSocketException):
            socket.transport.abort()

    async def _exchange(self, kind: str, content: JsonObject | None) -> _Incoming:
        """Send a message and return its reply. Raises WebSocketException, ToolServerError."""
        if self._socket is None:
            raise ToolServerError("the connection is closed")
        self._unread += 1  # before the send, because a cancelled send may have been sent
        with contextlib.suppress(ConnectionClosed):  # its reason can still be read
            data = {} if content is None else {"data": content}
            await self._socket.send(json.dumps({"type": kind, **data}))
        while True:
            text = await self._socket.recv()
            self._unread -= 1
            if self._unread == 0:
                break
        try:
            return _Incoming.model_validate_json(text)
        except ValidationError as error:
            raise ToolServerError(f"expected a message of OpenEnv, found {text[:80]!r}") from error


async def _started(backend: OpenEnvBackend, seed: int, wait_s: float) -> None:
    """Connect and reset; on a full server, try again for `wait_s`.

    Raises ToolServerError or DeadlineError.
    """
    gives_up_at, pause_s = time.monotonic() + wait_s, _FIRST_PAUSE_S
    while True:
        try:
            return await backend.start(seed)
        except _FullServer:
            if time.monotonic() >= gives_up_at:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)


async def first_observation(endpoint: OpenEnvEndpoint, config: ToolServerConfig) -> str:
    """Return the text of the observation that an environment answers to the reset with.

    Raises ToolServerError, DeadlineError, ConfigError.
    """
    backend = OpenEnvBackend(endpoint, Limits.of(config), ())
    await _started(backend, 0, config.open_wait_s)
    await backend.close()
    return shown_observation(backend.first)


def _reply_of(data: JsonObject, *, hidden: bool = False) -> BackendReply:
    """Return the result of a step; for a tool call, its result or its error. Where they are to be
    `hidden`, reward and end are left out.
    """
    observation = data.get("observation")
    seen = dict(observation) if isinstance(observation, dict) else {"value": observation}
    outcome: JsonObject = {"reward": data.get("reward"), "done": data.get("done")}
    if not {"tool_name", "result"} <= set(seen):
        if hidden:
            return BackendReply(AnswerStatus.OK, shown_observation(observation))
        shown: JsonValue = {key: value for key, value in seen.items() if key not in BOOKKEEPING}
        return BackendReply(AnswerStatus.OK, json_text({"observation": shown, **outcome}))
    error = seen.get("error")
    if isinstance(error, dict):
        kind = error.get("error_type")
        message = str(error.get("message") or kind)
        if kind == "transport_error":
            raise ToolServerError(message)
        status = AnswerStatus.TIMEOUT if kind == "timeout" else AnswerStatus.TOOL_ERROR
        return BackendReply(status, message)
    result = seen["result"]
    failed = isinstance(result, dict) and (result.get("is_error") or result.get("isError")) is True
    status = AnswerStatus.TOOL_ERROR if failed else AnswerStatus.OK
    plain = plain_result(result)
    if hidden:
        return BackendReply(status, plain if isinstance(plain, str) else json_text(plain))
    return BackendReply(status, json_text({"result": plain, **outcome}))


async def _step_tool(endpoint: OpenEnvEndpoint) -> ToolSpec:
    """Return the tool `step` of an environment that lists no tools, from its action schema."""
    url = f"{endpoint.url.rstrip('/')}/schema"
    try:
        asked = {"accept-encoding": "identity"}
        async with (
            httpx.AsyncClient(headers=asked, timeout=None, trust_env=False) as http,
            http.stream("GET", url) as response,
        ):
            response.raise_for_status()
            body, more = await bounded_body(
                response.headers, response.aiter_raw(), _MAX_SCHEMA_BYTES
            )
        if more:
            raise ValueError(f"more than {_MAX_SCHEMA_BYTES} bytes")
        schema = json.loads(body)["action"]
        properties = schema.get("properties", {})
    except (
        httpx.HTTPError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ToolServerError(
            f"{endpoint.place}: expected a schema of actions, found none: {type(error).__name__}: "
            f"{without_address(str(error), endpoint.url)}"
        ) from error
    parameters: JsonObject = {
        **schema,
        "properties": {k: v for k, v in properties.items() if k not in BOOKKEEPING},
    }
    description = schema.get("description") or "Take one step in the environment."
    return ToolSpec(name=STEP, description=str(description), parameters=parameters)


def _fault(reply: _Incoming) -> str:
    code, message = reply.data.get("code", ""), reply.data.get("message", "")
    details = reply.data.get("errors")
    text = f"{code}: {message}" if message else str(code) or reply.type
    if isinstance(details, list):
        texts = [
            f"{'.'.join(str(part) for part in _list(item.get('loc')))}: {item.get('msg')}"
            for item in details
            if isinstance(item, dict)
        ]
        text = f"{text} ({'; '.join(texts)})"
    return text


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
