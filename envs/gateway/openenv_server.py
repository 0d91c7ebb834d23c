"""OpenEnv's protocol on the server's host: an OpenEnv session runs episodes of the served tasks.

The WebSocket `/ws` takes reset, step, state, close and mcp (JSON-RPC). `/schema` and `/metadata`
describe it. `plain_rpc` serves the JSON-RPC that OpenEnv's tool client posts to `/mcp`. A request
that cannot be served is answered with an error message. A socket is closed only with one of these
codes: 1000 after `close`, 1001 when it was idle for too long, 1008 for a session that is not open,
and 1013 when the server is full. The WebSocket library itself closes
with 1009 if a message is too long.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import assert_never

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from envs.config import ToolServerConfig
from envs.gateway.openenv_episode import OpenEnvEpisode, OpenEnvError, TaskPool
from envs.gateway.openenv_rpc import OpenEnvRpc
from envs.gateway.rpc_body import NoJson, read_message
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
)
from envs.server.idle import IdleSweep
from envs.server.incoming import BIG_BYTES
from envs.server.session_host import SessionHost
from envs.server.shapes import first_complaint
from envs.tasks import Task
from envs.tools import JsonObject

_SEND_TIMEOUT_S = 30.0
_INVALID: ErrorCode = "VALIDATION_ERROR"
_CODE_OF_PROBLEM: dict[str, ErrorCode] = {
    "union_tag_invalid": "UNKNOWN_TYPE",
    "union_tag_not_found": "UNKNOWN_TYPE",
}


class _Gone(Exception):
    """The client has disconnected, or does not read."""


@dataclass(slots=True)
class _OpenSession:
    """An environment, and whether a WebSocket is attached to it."""

    episode: OpenEnvEpisode
    used_at: float
    attached: bool = False


class OpenEnvSessions:
    """The environments of all clients, by session id."""

    def __init__(self, host: SessionHost, tasks: Sequence[Task], config: ToolServerConfig) -> None:
        self.task_pool = TaskPool(tasks)
        self._host = host
        self._config = config
        self._sessions: dict[str, _OpenSession] = {}

    def open_session(self) -> str:
        """Create an environment and return its id. Raises OpenEnvError if the server is full."""
        if len(self._sessions) >= self._config.max_sessions and not self._give_up_unused():
            message = f"all {self._config.max_sessions} sessions are in use; close some or wait"
            raise OpenEnvError("CAPACITY_REACHED", message)
        session_id = secrets.token_hex(12)
        episode = OpenEnvEpisode(self._host, self.task_pool, self._config)
        self._sessions[session_id] = _OpenSession(episode, _now())
        return session_id

    def _give_up_unused(self) -> bool:
        """End the environment that was left unused for longest after it was created, if any."""
        unused = [
            name
            for name, used_at in sorted(self.last_used().items(), key=lambda item: item[1])
            if not self._sessions[name].episode.begun
        ]
        return bool(unused) and self.close_session(unused[0])

    def episode(self, session_id: str) -> OpenEnvEpisode:
        """Return an environment and mark it as used now. Raises OpenEnvError if it is not open."""
        session = self._sessions.get(session_id)
        if session is None:
            raise OpenEnvError("SESSION_ERROR", f"session {session_id[:80]!r} is not open")
        session.used_at = _now()
        return session.episode

    def attach(self, session_id: str) -> None:
        """Reserve an environment for one WebSocket. Raises OpenEnvError if it has one already."""
        self.episode(session_id)
        if self._sessions[session_id].attached:
            raise OpenEnvError("SESSION_ERROR", f"session {session_id!r} has a WebSocket already")
        self._sessions[session_id].attached = True

    def detach(self, session_id: str) -> None:
        """Release an environment for another WebSocket; harmless if it has ended."""
        if session := self._sessions.get(session_id):
            session.attached = False
            session.used_at = _now()

    def close_session(self, session_id: str) -> bool:
        """End an environment; return whether it was open."""
        session = self._sessions.pop(session_id, None)
        if session:
            session.episode.close()
        return session is not None

    def last_used(self) -> dict[str, float]:
        """Return when each environment without a WebSocket was last used, by session id.

        An attached WebSocket has its own idle limit.
        """
        return {
            name: session.used_at
            for name, session in self._sessions.items()
            if not session.attached
        }

    def close_sessions(self, session_ids: Sequence[str]) -> None:
        """End these environments."""
        for session_id in session_ids:
            self.close_session(session_id)

    def close_all(self) -> None:
        """End every environment."""
        self.close_sessions(list(self._sessions))


class OpenEnvGateway:
    """The OpenEnv routes of one host; they work while the context `serving()` is open."""

    def __init__(self, host: SessionHost, tasks: Sequence[Task], config: ToolServerConfig) -> None:
        """Raises ValueError if there are no tasks."""
        self._sessions = OpenEnvSessions(host, tasks, config)
        self._idle_s = config.session_idle_s
        self.plain_rpc = OpenEnvRpc(self._sessions)
        self.router = APIRouter(tags=["OpenEnv"])
        self.router.add_api_route("/schema", _schema, methods=["GET"])
        self.router.add_api_route("/metadata", self._metadata, methods=["GET"])
        self.router.add_api_websocket_route("/ws", self._socket)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """End idle sessions while the context is open, and all sessions when it closes."""
        sweep = IdleSweep(self._idle_s, self._sessions.last_used, self._sessions.close_sessions)
        sweep.start()
        try:
            yield
        finally:
            await sweep.stop()
            self._sessions.close_all()

    def _metadata(self) -> dict[str, str]:
        tasks = self._sessions.task_pool.tasks
        name = tasks[0].environment
        description = f"trialrun's environment {name}: {len(tasks)} tasks with tools"
        return {"name": name, "description": description, "version": version("trialrun")}

    async def _socket(self, socket: WebSocket) -> None:
        connection = _Connection(socket, self._idle_s)
        try:
            await socket.accept()
            await self._serve(connection, socket)
        except _Gone:
            pass

    async def _serve(self, connection: "_Connection", socket: WebSocket) -> None:
        wanted = socket.query_params.get("session_id")
        try:
            session_id = self._sessions.open_session() if wanted is None else wanted
            self._sessions.attach(session_id)
        except OpenEnvError as error:
            await connection.refuse(error)
            return
        try:
            await self._converse(connection, session_id)
        finally:
            self._sessions.detach(session_id)
            if wanted is None:
                self._sessions.close_session(session_id)

    async def _converse(self, connection: "_Connection", session_id: str) -> None:
        """Answer messages until `close`, or until none comes for the idle limit."""
        while True:
            try:
                text = await connection.receive()
            except TimeoutError:
                await connection.send_error("SESSION_ERROR", f"no message for {self._idle_s:g} s")
                await connection.close(1001)
                return
            try:
                message = await _read(text)
            except OpenEnvError as error:
                await connection.send_error(error.code, error.message)
                continue
            if isinstance(message, CloseMessage):
                await connection.close(1000)
                return
            try:
                await connection.send(*await self._answer(session_id, message))
            except OpenEnvError as error:
                await connection.send_error(error.code, error.message)

    async def _answer(self, session_id: str, message: ClientMessage) -> tuple[str, JsonObject]:
        """Return the type and content of the reply. Raises OpenEnvError."""
        episode = self._sessions.episode(session_id)
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


class _Connection:
    """A WebSocket on which every wait has a deadline."""

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
        # As ASCII: a lone surrogate is valid JSON, but cannot be encoded as UTF-8.
        text = json.dumps({"type": kind, "data": content})
        try:
            await asyncio.wait_for(self._socket.send_text(text), _SEND_TIMEOUT_S)
        except (TimeoutError, RuntimeError, WebSocketDisconnect) as error:
            raise _Gone from error

    async def send_error(self, code: ErrorCode, message: str) -> None:
        """Send an error and keep the connection. Raises _Gone."""
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


async def _read(text: str | bytes) -> ClientMessage:
    """Return a client's message. Raises OpenEnvError."""
    try:
        if len(text) <= BIG_BYTES:
            content = read_message(text)
        else:
            content = await asyncio.to_thread(read_message, text)
        return CLIENT_MESSAGE.validate_python(content)
    except NoJson as error:
        raise OpenEnvError("INVALID_JSON", str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # A location inside the message means an unknown action, not an unknown message.
        code = _INVALID if first["loc"] else _CODE_OF_PROBLEM.get(first["type"], _INVALID)
        raise OpenEnvError(code, first_complaint(error, "message")) from error
    except ValueError as error:
        raise OpenEnvError(_INVALID, str(error)) from error


def _schema() -> dict[str, JsonObject]:
    """Return the JSON schemas of actions, observations and state."""
    return {
        "action": {"title": "TrialrunAction", "type": "object", **ACTION.json_schema()},
        "observation": {"title": "TrialrunObservation", **OBSERVATION.json_schema()},
        "reset_observation": TaskObservation.model_json_schema(),
        "state": EpisodeState.model_json_schema(),
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
