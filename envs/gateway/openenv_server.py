"""OpenEnv's protocol on the server's host: an OpenEnv session plays episodes of the given tasks.

`/ws`: reset, step, state, close, and mcp (JSON-RPC); `/schema` and `/metadata` describe it;
`plain_rpc` serves the JSON-RPC that OpenEnv's tool client posts to `/mcp`. What cannot be served is
answered with an error message; a socket is only closed with a code: 1000 after `close`, 1001 when
idle too long, 1008 for a foreign origin or a session that is not open, 1013 when the server is
full; the WebSocket library itself closes with 1009 for a message that is too long.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import assert_never
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from envs.config import ToolServerConfig
from envs.gateway.openenv_episode import OpenEnvEpisode, OpenEnvError, TaskShelf
from envs.gateway.openenv_rpc import OpenEnvRpc
from envs.remote.openenv_wire import (
    ACTION,
    CLIENT_MESSAGE,
    OBSERVATION,
    ClientMessage,
    CloseMessage,
    EpisodeState,
    ErrorCode,
    McpMessage,
    ResetMessage,
    StateMessage,
    StepMessage,
    TaskObservation,
    first_fault,
)
from envs.server.session_host import SessionHost
from envs.tasks import Task
from envs.tools import JsonObject

_SEND_TIMEOUT_S = 30.0
_INVALID: ErrorCode = "VALIDATION_ERROR"
_CODE_OF_PROBLEM: dict[str, ErrorCode] = {
    "json_invalid": "INVALID_JSON",
    "union_tag_invalid": "UNKNOWN_TYPE",
    "union_tag_not_found": "UNKNOWN_TYPE",
}


class _Gone(Exception):
    """The client is no longer there, or does not read."""


@dataclass(slots=True)
class _Seat:
    """An environment and whether a WebSocket has it."""

    episode: OpenEnvEpisode
    used_at: float
    attached: bool = False


class OpenEnvSeats:
    """The environments of all clients, by session id."""

    def __init__(self, host: SessionHost, tasks: Sequence[Task], config: ToolServerConfig) -> None:
        self.shelf = TaskShelf(tasks)
        self._host = host
        self._config = config
        self._seats: dict[str, _Seat] = {}

    def enter(self) -> str:
        """Make an environment and return its id. Raises OpenEnvError when the server is full."""
        if len(self._seats) >= self._config.max_sessions:
            message = f"all {self._config.max_sessions} sessions are in use; close some or wait"
            raise OpenEnvError("CAPACITY_REACHED", message)
        session_id = secrets.token_hex(12)
        episode = OpenEnvEpisode(self._host, self.shelf, self._config)
        self._seats[session_id] = _Seat(episode, _now())
        return session_id

    def episode(self, session_id: str) -> OpenEnvEpisode:
        """Return an environment, which now counts as used. Raises OpenEnvError."""
        seat = self._seats.get(session_id)
        if seat is None:
            raise OpenEnvError("SESSION_ERROR", f"session {session_id[:80]!r} is not open")
        seat.used_at = _now()
        return seat.episode

    def attach(self, session_id: str) -> None:
        """Reserve an environment for one WebSocket. Raises OpenEnvError."""
        self.episode(session_id)
        if self._seats[session_id].attached:
            raise OpenEnvError("SESSION_ERROR", f"session {session_id!r} has a WebSocket already")
        self._seats[session_id].attached = True

    def detach(self, session_id: str) -> None:
        """Free an environment for the next WebSocket; harmless when it has ended."""
        if seat := self._seats.get(session_id):
            seat.attached = False
            seat.used_at = _now()

    def leave(self, session_id: str) -> bool:
        """End an environment; whether there was one."""
        seat = self._seats.pop(session_id, None)
        if seat:
            seat.episode.close()
        return seat is not None

    async def sweep(self) -> None:
        """End what is idle, for ever; a WebSocket watches over its environment itself."""
        while True:
            await asyncio.sleep(self._config.session_idle_s / 4)
            oldest = _now() - self._config.session_idle_s
            for session_id, seat in list(self._seats.items()):
                if not seat.attached and seat.used_at < oldest:
                    self.leave(session_id)

    def leave_all(self) -> None:
        """End every environment."""
        for session_id in list(self._seats):
            self.leave(session_id)


class OpenEnvDoor:
    """The OpenEnv routes over one host, which serve inside of `serving()`."""

    def __init__(self, host: SessionHost, tasks: Sequence[Task], config: ToolServerConfig) -> None:
        """Raises ValueError where there are no tasks."""
        self._seats = OpenEnvSeats(host, tasks, config)
        self._idle_s = config.session_idle_s
        self.plain_rpc = OpenEnvRpc(self._seats)
        self.router = APIRouter(tags=["OpenEnv"])
        self.router.add_api_route("/schema", _schema, methods=["GET"])
        self.router.add_api_route("/metadata", self._metadata, methods=["GET"])
        self.router.add_api_websocket_route("/ws", self._socket)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """End idle sessions while the context is open, and all of them on the way out."""
        sweep = asyncio.create_task(self._seats.sweep())
        try:
            yield
        finally:
            sweep.cancel()
            await asyncio.gather(sweep, return_exceptions=True)
            self._seats.leave_all()

    def _metadata(self) -> dict[str, str]:
        tasks = self._seats.shelf.tasks
        name = tasks[0].environment
        description = f"trialrun's environment {name}: {len(tasks)} tasks with tools to be tried"
        return {"name": name, "description": description, "version": version("trialrun")}

    async def _socket(self, socket: WebSocket) -> None:
        line = _Line(socket, self._idle_s)
        try:
            await socket.accept()
            await self._serve(line, socket)
        except _Gone:
            pass

    async def _serve(self, line: "_Line", socket: WebSocket) -> None:
        wanted = socket.query_params.get("session_id")
        if not _own_origin(socket):
            await line.refuse(OpenEnvError("SESSION_ERROR", "expected no Origin of another site"))
            return
        try:
            session_id = self._seats.enter() if wanted is None else wanted
            self._seats.attach(session_id)
        except OpenEnvError as error:
            await line.refuse(error)
            return
        try:
            await self._converse(line, session_id)
        finally:
            self._seats.detach(session_id)
            if wanted is None:
                self._seats.leave(session_id)

    async def _converse(self, line: "_Line", session_id: str) -> None:
        """Answer messages until `close`, or until there is none for too long."""
        while True:
            try:
                text = await line.receive()
            except TimeoutError:
                await line.send_error("SESSION_ERROR", f"no message for {self._idle_s:g} s")
                await line.close(1001)
                return
            try:
                message = CLIENT_MESSAGE.validate_json(text)
            except ValidationError as error:
                await line.send_error(_code_of(error), first_fault(error))
                continue
            if isinstance(message, CloseMessage):
                await line.close(1000)
                return
            try:
                await line.send(*await self._answer(session_id, message))
            except OpenEnvError as error:
                await line.send_error(error.code, error.message)

    async def _answer(self, session_id: str, message: ClientMessage) -> tuple[str, JsonObject]:
        """Return type and content of the reply. Raises OpenEnvError."""
        episode = self._seats.episode(session_id)
        match message:
            case ResetMessage():
                return "observation", _plain(await episode.reset(message.data))
            case StepMessage():
                return "observation", _plain(await episode.step(message.data))
            case StateMessage():
                return "state", episode.state().model_dump(mode="json")
            case McpMessage():
                return "mcp", await self.plain_rpc.answer(message.data, session_id)
            case CloseMessage():
                raise OpenEnvError("SESSION_ERROR", "the session was closed")
            case _:
                assert_never(message)


class _Line:
    """A WebSocket whose every wait has a deadline."""

    def __init__(self, socket: WebSocket, idle_s: float) -> None:
        self._socket = socket
        self._idle_s = idle_s

    async def receive(self) -> str | bytes:
        """Return the next message. Raises TimeoutError, or _Gone."""
        message = await asyncio.wait_for(self._socket.receive(), self._idle_s)
        if message["type"] != "websocket.receive":
            raise _Gone
        text = message.get("text")
        return message.get("bytes", b"") if text is None else text

    async def send(self, kind: str, content: JsonObject) -> None:
        """Send a reply. Raises _Gone."""
        # In ASCII: half a surrogate pair is JSON, but not UTF-8.
        text = json.dumps({"type": kind, "data": content})
        try:
            await asyncio.wait_for(self._socket.send_text(text), _SEND_TIMEOUT_S)
        except (TimeoutError, RuntimeError, WebSocketDisconnect) as error:
            raise _Gone from error

    async def send_error(self, code: ErrorCode, message: str) -> None:
        """Send an error; the conversation goes on. Raises _Gone."""
        await self.send("error", {"message": message, "code": code})

    async def refuse(self, error: OpenEnvError) -> None:
        """Send an error and close. Raises _Gone."""
        await self.send_error(error.code, error.message)
        await self.close(1013 if error.code == "CAPACITY_REACHED" else 1008)

    async def close(self, code: int) -> None:
        """Close with a code. Raises _Gone."""
        try:
            await asyncio.wait_for(self._socket.close(code), _SEND_TIMEOUT_S)
        except (TimeoutError, RuntimeError, WebSocketDisconnect) as error:
            raise _Gone from error


def _plain(message: BaseModel) -> JsonObject:
    content = message.model_dump(mode="json")
    if content["metadata"] is None:
        del content["metadata"]
    return content


def _code_of(error: ValidationError) -> ErrorCode:
    first = error.errors(include_url=False, include_input=False)[0]
    # Below the top it is an action that is unknown, not a message.
    return _INVALID if first["loc"] else _CODE_OF_PROBLEM.get(first["type"], _INVALID)


def _own_origin(socket: WebSocket) -> bool:
    """Whether no browser, or a page of this very server, opens the socket."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")


def _schema() -> dict[str, JsonObject]:
    """Return the JSON schemas of what is sent and returned."""
    return {
        "action": {"title": "TrialrunAction", "type": "object", **ACTION.json_schema()},
        "observation": {"title": "TrialrunObservation", **OBSERVATION.json_schema()},
        "reset_observation": TaskObservation.model_json_schema(),
        "state": EpisodeState.model_json_schema(),
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
