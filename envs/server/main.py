"""The tool server: sandboxed tool sessions over HTTP.

    python -m envs.server.main --uds PATH [--config-json JSON]
    python -m envs.server.main --host 127.0.0.1 --port N [--token-file PATH] [--config-json JSON]

Prints `ready <address>` when it is ready. The native protocol is the WebSocket /stream. The HTTP
routes are POST /sessions, POST /calls, POST /sessions/close, DELETE /sessions/{id}, GET /health and
GET /metrics. `envs/server/wire.py` has the messages.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from envs.config import ToolServerConfig
from envs.errors import ConfigError, TrialrunError
from envs.process_watch import when_readable
from envs.sandbox.confine import use_short_time_slices
from envs.server.app import create_app
from envs.server.connection_limits import (
    HEAD_BYTES,
    ConnectionLimits,
    LimitedWebSocket,
    protocol_for,
)
from envs.server.guard import hosts_of
from envs.server.metrics import ToolMetrics
from envs.server.replay_host import ReplayHost
from envs.server.session_host import SessionHost
from envs.server.tool_host import ToolHost
from envs.server.traffic import recorder_for

_KEEP_ALIVE_S = 900
_PING_TIMEOUT_S = 60
_SHUTDOWN_S = 2
_BACKLOG = 2_048
_FRAME_BYTES = 32 * 2**20
"""Longest frame of `/stream`: a tool set may come with files."""


_App = Callable[..., Awaitable[None]]


def bind_unix(path: Path) -> socket.socket:
    """Listen on `path`, for this user only. The socket file of a dead server is replaced.

    Raises ConfigError if that is impossible, or a running server listens there.
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


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`. Raises ConfigError if it is a name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigError(f"expected an IP address for --host, found {host!r}") from error


def bind_tcp(host: str, port: int, token: str) -> socket.socket:
    """Listen on `host:port`. Raises ConfigError if the port is taken or a token is missing."""
    if not is_loopback(host) and not token:
        raise ConfigError(
            f"expected --token with --host {host}, found none: other machines can reach that "
            "address; give a token, better with --token-file"
        )
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
    """Exit when the parent process dies or closes this process's standard input."""
    when_readable((os.pidfd_open(os.getppid()), 0), lambda: os._exit(1))


def _serve(options: argparse.Namespace) -> None:
    config = ToolServerConfig.model_validate_json(options.config_json)
    if options.record:
        config = config.model_copy(update={"record": True, "record_dir": options.record})
    metrics = ToolMetrics()
    with _listening(options) as listener, session_host(config, metrics, options.replay) as host:

        def say_ready() -> None:
            print(f"ready {_address(listener)}", flush=True)

        hosts = hosts_of(listener, options.allow_host)
        app = create_app(host, options.token, metrics=metrics, hosts=hosts)
        loop_factory = server_settings(app).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve(host, app, listener, say_ready))


def _token(options: argparse.Namespace) -> str:
    """Return the token, without a line break at its end. Raises ConfigError if there is none."""
    if options.token_variable:
        token = os.environ.get(options.token_variable, "").strip()
        if not token:
            raise ConfigError(
                f"expected a token in the environment variable {options.token_variable}, found none"
            )
        return token
    return read_token(options.token_file) if options.token_file else options.token.strip()


def read_token(path: Path) -> str:
    """Return the token in a file, without a line break at its end. Raises ConfigError."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token in {path}: {error}") from error
    if not token or not token.isprintable():
        raise ConfigError(f"expected one line with a token in {path}, found another text")
    return token


def _listening(options: argparse.Namespace) -> socket.socket:
    if options.uds:
        return bind_unix(Path(options.uds))
    return bind_tcp(options.host, options.port, options.token)


@contextlib.contextmanager
def session_host(
    config: ToolServerConfig, metrics: ToolMetrics, replay: str = ""
) -> Iterator[SessionHost]:
    """Yield a host that runs tools, and records them if `config` says so; or one that replays.

    `replay` is the folder of the record, empty to run tools. Raises ConfigError or StoreError if it
    cannot record.
    """
    recorder = None if replay else recorder_for(config)
    if recorder is None:
        yield ReplayHost(Path(replay)) if replay else ToolHost(config, observers=[metrics])
        return
    metrics.watch(recorder)
    try:
        yield ToolHost(config, observers=[metrics, recorder])
    finally:
        recorder.close()


def server_settings(app: _App, limits: ConnectionLimits | None = None) -> uvicorn.Config:
    """Return uvicorn's settings for an app of this package; without a limits, nobody is counted."""
    return uvicorn.Config(
        app,
        http=protocol_for(limits),
        h11_max_incomplete_event_size=HEAD_BYTES,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        log_level="error",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        ws=LimitedWebSocket,
        ws_max_size=_FRAME_BYTES,
        ws_ping_timeout=_PING_TIMEOUT_S,
        ws_per_message_deflate=False,
    )


class _Server(uvicorn.Server):
    """Leaves signals to `serve`, because uvicorn re-raises them before the host has stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    host: SessionHost, app: _App, listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Start `host`, call `ready`, and serve until SIGINT or SIGTERM.

    Raises what `host.start` raises.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    limits = None if listener.family == socket.AF_UNIX else ConnectionLimits(max(soft, hard))
    server = _Server(server_settings(app, limits))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    try:
        await host.start()
        ready()
        await server.serve(sockets=[listener])
    finally:
        await host.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.server.main", description=__doc__)
    parser.add_argument("--uds", default="", help="listen on this UNIX socket")
    parser.add_argument("--host", default="127.0.0.1", help="listen on this address")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument(
        "--token", default="", help="bearer token; other users can see it, so better:"
    )
    tokens.add_argument("--token-file", type=Path, help="file with the bearer token")
    tokens.add_argument(
        "--token-variable", default="", help="environment variable with the bearer token"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], help="a further name of this server"
    )
    parser.add_argument("--config-json", default="{}", help="a ToolServerConfig as JSON")
    traffic = parser.add_mutually_exclusive_group()
    traffic.add_argument("--record", default="", help="record all calls and answers in this folder")
    traffic.add_argument("--replay", default="", help="answer from the record in this folder")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="exit when the parent process does"
    )
    options = parser.parse_args(arguments)
    if options.exit_with_parent:
        _exit_with_parent()
    with contextlib.suppress(OSError):
        use_short_time_slices()
    try:
        options.token = _token(options)
        _serve(options)
    except (TrialrunError, ValidationError) as error:
        print(f"tool server: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TrialrunError) else ConfigError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
