"""The tool server: sandboxed tool sessions over HTTP.

    python -m envs.tool_server --uds PATH [--config-json JSON]
    python -m envs.tool_server --host 127.0.0.1 --port N [--token T] [--config-json JSON]

Prints `ready <address>` when it serves. Routes: POST /sessions, POST /calls, POST /sessions/close,
DELETE /sessions/{id}, GET /health; bodies as in `envs/tool_wire.py`.
"""

import argparse
import asyncio
import hmac
import ipaddress
import os
import resource
import select
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from envs.config import ToolServerConfig
from envs.errors import ConfigError, TrialrunError
from envs.session_host import SessionHost
from envs.tool_host import ToolHost, unknown_session
from envs.tool_wire import (
    MSGPACK,
    STATUS_OF_ERROR,
    CallItem,
    CallRequest,
    CallResponse,
    CallResult,
    CloseRequest,
    CloseResponse,
    ErrorKind,
    ErrorResponse,
    OpenRequest,
    OpenResponse,
    WireError,
    WireT,
    decode,
    encode,
)

_BODY_LIMIT_BYTES = 64 * 2**20
_KEEP_ALIVE_S = 900
_BACKLOG = 2_048


class _Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.error = WireError(kind=kind, message=message)


class _Routes:
    """The routes of the app, over one host."""

    def __init__(self, host: SessionHost) -> None:
        self._host = host

    async def open(self, request: Request) -> Response:
        """Open sessions, each in its tool set's initial state."""
        message = await _read(request, OpenRequest)
        try:
            self._host.add_tool_sets(message.tool_sets)
        except ValueError as error:
            raise _Refusal("bad_request", str(error)) from error
        if unknown := self._host.unknown_digests(message.sessions):
            raise _Refusal("unknown_tool_set", f"send the content of {', '.join(unknown)}")
        opened = await asyncio.gather(*(self._host.open(item) for item in message.sessions))
        _raise_common_error([session.error for session in opened])
        return _reply(request, OpenResponse(sessions=tuple(opened)))

    async def call(self, request: Request) -> Response:
        """Call tools: sessions in parallel, calls of one session in order."""
        message = await _read(request, CallRequest)
        if not any(self._host.knows(item.session) for item in message.items):
            missing = unknown_session(message.items[0].session)
            raise _Refusal(missing.kind, missing.message)
        if _wants_json(request):
            calls = [self._host.call(index, item) for index, item in enumerate(message.items)]
            results = await asyncio.gather(*calls)
            return _reply(request, CallResponse(results=tuple(results)))
        return StreamingResponse(self._as_ready(message.items), media_type=MSGPACK)

    async def _as_ready(self, items: Sequence[CallItem]) -> AsyncIterator[bytes]:
        """Yield results as sessions finish, so that a slow tool holds up nobody else's answer."""
        finished: asyncio.Queue[CallResult] = asyncio.Queue()

        async def run(index: int, item: CallItem) -> None:
            finished.put_nowait(await self._host.call(index, item))

        async with asyncio.TaskGroup() as group:
            for index, item in enumerate(items):
                group.create_task(run(index, item))
            left = len(items)
            while left:
                results = [await finished.get()]
                while not finished.empty():
                    results.append(finished.get_nowait())
                left -= len(results)
                yield b"".join(encode(result) for result in results)

    async def close_batch(self, request: Request) -> Response:
        """Close sessions; those that are gone already are not an error."""
        message = await _read(request, CloseRequest)
        return _reply(request, CloseResponse(closed=self._host.close(message.ids)))

    async def close_one(self, session_id: str) -> Response:
        """Close one session; 404 when it is not open."""
        if not self._host.close([session_id]):
            missing = unknown_session(session_id)
            raise _Refusal(missing.kind, missing.message)
        return Response(status_code=204)

    async def health(self) -> Response:
        """Say how the server is; JSON."""
        health = await self._host.health()
        status = 200 if health.status == "ok" else 503
        return Response(encode(health, as_json=True), status, media_type="application/json")


def create_app(host: SessionHost, token: str, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """Return the app over a host that is (or will be) started by the caller.

    `routers` serve further protocols on the same sessions; the token guards them as well.
    """
    app = FastAPI(title="trialrun tool server", docs_url=None, redoc_url=None)
    routes = _Routes(host)
    app.add_api_route("/sessions", routes.open, methods=["POST"])
    app.add_api_route("/calls", routes.call, methods=["POST"])
    app.add_api_route("/sessions/close", routes.close_batch, methods=["POST"])
    app.add_api_route("/sessions/{session_id}", routes.close_one, methods=["DELETE"])
    app.add_api_route("/health", routes.health, methods=["GET"])
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(_Refusal, _refuse)
    if token:
        app.add_middleware(_TokenCheck, token=token)
    return app


class _TokenCheck:
    """ASGI middleware: every request and every WebSocket carries the bearer token."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] in ("http", "websocket"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                error = WireError(kind="unauthorized", message="expected the server's bearer token")
                response = _error_response(error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _wants_json(request: Request) -> bool:
    return request.headers.get("content-type", MSGPACK).startswith("application/json")


async def _read(request: Request, model: type[WireT]) -> WireT:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _BODY_LIMIT_BYTES:
            raise _Refusal("too_large", f"expected a body of at most {_BODY_LIMIT_BYTES} bytes")
    try:
        return decode(model, bytes(body), as_json=_wants_json(request))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise _Refusal("bad_request", f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise _Refusal("bad_request", str(error)) from error


def _reply(request: Request, message: BaseModel) -> Response:
    as_json = _wants_json(request)
    media_type = "application/json" if as_json else MSGPACK
    return Response(encode(message, as_json=as_json), media_type=media_type)


def _error_response(error: WireError) -> Response:
    body = encode(ErrorResponse(error=error), as_json=True)
    return Response(body, STATUS_OF_ERROR[error.kind], media_type="application/json")


async def _refuse(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, _Refusal)
    return _error_response(refusal.error)


def _raise_common_error(errors: Sequence[WireError | None]) -> None:
    """Refuse the whole request when every item of it failed."""
    failed = [error for error in errors if error]
    if failed and len(failed) == len(errors):
        raise _Refusal(failed[0].kind, failed[0].message)


def bind_unix(path: Path) -> socket.socket:
    """Listen on `path`, for this user only; a socket left there by a dead server is replaced.

    Raises ConfigError where that cannot be, or where a living server has the path.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.is_socket():
        if listener.connect_ex(str(path)) == 0:
            listener.close()
            raise ConfigError(f"another server listens on {path}; give another --uds")
        path.unlink()
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error}; give another --uds") from error
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return listener


def bind_tcp(host: str, port: int, token: str) -> socket.socket:
    """Listen on `host:port`. Raises ConfigError where the port is taken or a token is missing."""
    loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    if not loopback and not token:
        raise ConfigError(f"expected --token with --host {host}: others can reach that address")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}; give another --port"
        ) from error
    listener.listen(_BACKLOG)
    return listener


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def _exit_with_parent() -> None:
    """End this process when its parent dies or closes this process's standard input."""
    poll = select.poll()
    poll.register(os.pidfd_open(os.getppid()), select.POLLIN)
    poll.register(0, select.POLLIN)

    def watch() -> None:
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(options: argparse.Namespace) -> None:
    config = ToolServerConfig.model_validate_json(options.config_json)
    if options.uds:
        listener = bind_unix(Path(options.uds))
    else:
        listener = bind_tcp(options.host, options.port, options.token)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    host = ToolHost(config)
    settings = uvicorn.Config(
        create_app(host, options.token),
        lifespan="off",
        log_level="error",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
    )
    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(_host_and_serve(host, uvicorn.Server(settings), listener))


async def _host_and_serve(host: ToolHost, server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        await host.start()
        print(f"ready {_address(listener)}", flush=True)
        await server.serve(sockets=[listener])
    finally:
        await host.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.tool_server", description=__doc__)
    parser.add_argument("--uds", default="", help="listen on this UNIX socket")
    parser.add_argument("--host", default="127.0.0.1", help="listen on this address")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token", default="", help="bearer token; required off loopback")
    parser.add_argument("--token-file", type=Path, help="read the token here: others see arguments")
    parser.add_argument("--config-json", default="{}", help="a ToolServerConfig")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when the parent does")
    options = parser.parse_args(arguments)
    if options.exit_with_parent:
        _exit_with_parent()
    if options.token_file:
        options.token = options.token_file.read_text()
    try:
        _serve(options)
    except (TrialrunError, ValidationError) as error:
        print(f"tool server: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TrialrunError) else ConfigError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
