"""`trialrun dashboard`: the process that serves a dashboard, its addresses and its tokens."""

import asyncio
import contextlib
import ipaddress
import json
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from cluster.dashboard.app import create_app
from cluster.dashboard.settings import DEFAULT_PORT, Settings, Tokens, cache_folder
from envs.errors import ConfigError, MissingError

DEMO = Path(__file__).parent / "demo"
OPERATOR_VARIABLE = "TRIALRUN_DASHBOARD_TOKEN"
VIEWER_VARIABLE = "TRIALRUN_DASHBOARD_VIEWER_TOKEN"
_SHORTEST_TOKEN = 16
_BACKLOG = 128
_PORTS_TRIED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line asks for."""

    roots: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    """None: the default one, or the next that is free."""
    origins: tuple[str, ...] = ()
    may_come: bool = False
    """Whether folders may not exist yet: their runs are shown once they do."""
    demo: bool = False
    read_only: bool = False
    cache: Path | None = None
    memory_mb: int = 256
    as_json: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    user: str = "unknown"
    version: str = "unknown"


def run_dashboard(wanted: Wanted) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises ConfigError, MissingError before anything is served."""
    with contextlib.ExitStack() as stack:
        roots = stack.enter_context(_demo_run()) if wanted.demo else _checked_roots(wanted)
        tokens = tokens_of(wanted)
        check_exposure(wanted)
        listener = stack.enter_context(_listen(wanted.host, wanted.port))
        settings = settings_of(wanted, roots, tokens, listener.getsockname()[1])
        app = create_app(settings)
        port = listener.getsockname()[1]
        asyncio.run(_serve(app, listener, lambda: _say_ready(wanted, settings, port)))


def settings_of(wanted: Wanted, roots: tuple[Path, ...], tokens: Tokens, port: int) -> Settings:
    """Return the settings of a dashboard that listens on `port`."""
    names = {"localhost", "127.0.0.1", "[::1]"}
    if not _is_loopback(wanted.host):
        names.add(_bracketed(wanted.host))
    hosts = {f"{name}:{port}" for name in names}
    origins = {f"http://{host}" for host in hosts}
    for origin in wanted.origins:
        hosts.add(_host_of(origin))
        origins.add(origin.rstrip("/").lower())
    return Settings(
        roots=roots,
        cache=wanted.cache or cache_folder(wanted.environ),
        tokens=tokens,
        hosts=frozenset(host.lower() for host in hosts),
        origins=frozenset(origins),
        secure_cookie=bool(wanted.origins) and all(o.startswith("https:") for o in wanted.origins),
        demo=wanted.demo,
        read_only=wanted.read_only or wanted.demo,
        version=wanted.version,
        memory_mb=wanted.memory_mb,
        user=wanted.user,
    )


def _checked_roots(wanted: Wanted) -> tuple[Path, ...]:
    found = tuple(dict.fromkeys(root.resolve() for root in wanted.roots or (Path("runs"),)))
    for root in found:
        if not root.is_dir() and not wanted.may_come:
            raise MissingError(
                f"expected a folder with runs, found none at {root}: name one, or try "
                "`trialrun dashboard --demo`"
            )
    return found


@contextlib.contextmanager
def _demo_run() -> Iterator[tuple[Path, ...]]:
    """Yield the folder of the recorded runs: unpacked, because the package keeps them packed."""
    with tempfile.TemporaryDirectory(prefix="trialrun-demo-") as folder:
        shutil.unpack_archive(DEMO / "runs.tar.xz", folder, filter="data")
        yield (Path(folder),)


def tokens_of(wanted: Wanted) -> Tokens:
    """Return the tokens that the environment gives; the operator's is made where it gives none."""
    given = wanted.environ.get(OPERATOR_VARIABLE, "")
    viewer = wanted.environ.get(VIEWER_VARIABLE, "")
    for name, token in ((OPERATOR_VARIABLE, given), (VIEWER_VARIABLE, viewer)):
        if token and len(token) < _SHORTEST_TOKEN:
            raise ConfigError(
                f"expected at least {_SHORTEST_TOKEN} characters in {name}, found {len(token)}: "
                "make one with `openssl rand -hex 32`"
            )
    if given and given == viewer:
        raise ConfigError(f"expected two different tokens, found one: change {VIEWER_VARIABLE}")
    return Tokens(operator=given or secrets.token_urlsafe(32), viewer=viewer)


def check_exposure(wanted: Wanted) -> None:
    """Refuse to listen where other machines can connect, unless that was prepared."""
    for origin in wanted.origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
            raise ConfigError(
                f"expected an origin such as https://runs.example.org, found --origin {origin!r}"
            )
    if _is_loopback(wanted.host):
        return
    if not wanted.environ.get(OPERATOR_VARIABLE):
        raise ConfigError(
            f"expected a token in {OPERATOR_VARIABLE} with --host {wanted.host}, found none: other "
            "machines can reach that address. Set one, or stay on loopback and forward the port "
            "with ssh -L"
        )
    if not wanted.origins:
        raise ConfigError(
            f"expected --origin with --host {wanted.host}, found none: name the address that "
            "browsers will use, such as --origin https://runs.example.org"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError as error:
        raise ConfigError(f"expected an IP address for --host, found {host!r}") from error


@contextlib.contextmanager
def _listen(host: str, port: int | None) -> Iterator[socket.socket]:
    """Yield a listening socket. Raises ConfigError where the port is taken."""
    first = DEFAULT_PORT if port is None else port
    tried = range(first, first + _PORTS_TRIED) if port is None else (first,)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in tried:
        # With its protocol named: asyncio turns Nagle's algorithm off only for such sockets, and
        # small answers would otherwise wait 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), number))
        except OSError as error:
            listener.close()
            if number == tried[-1]:
                raise ConfigError(
                    f"cannot listen on {host}:{number}: {error.strerror}; give another --port"
                ) from error
            continue
        listener.listen(_BACKLOG)
        with listener:
            yield listener
        return


def _say_ready(wanted: Wanted, settings: Settings, port: int) -> None:
    """Print the addresses; the token stands behind `#`, which browsers do not send."""
    host = _bracketed("127.0.0.1" if _is_loopback(wanted.host) else wanted.host)
    base = wanted.origins[0].rstrip("/") if wanted.origins else f"http://{host}:{port}"
    url = f"{base}/#token={settings.tokens.operator}"
    if wanted.as_json:
        content = {"url": url, "port": port, "metrics": f"{base}/metrics"}
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()
        return
    name = socket.gethostname()
    lines = [f"dashboard  {url}"]
    if settings.tokens.viewer:
        lines.append(f"viewers    {base}/#token=THE VALUE OF {VIEWER_VARIABLE}")
    lines += [
        "from another machine:",
        f"  ssh -L {port}:127.0.0.1:{port} {wanted.user}@{name}",
        f"  kubectl port-forward pod/{name} {port}:{port}",
        "Ctrl-C ends it; runs go on without it",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


async def _serve(app: ASGIApp, listener: socket.socket, ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16,
    )
    server = _Server(config, ready)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it is ready; leaves signals to `_serve`, because uvicorn raises them again."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _host_of(origin: str) -> str:
    """Return what browsers send as Host for an origin: the port only where it is not usual."""
    parts = urlsplit(origin)
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = _bracketed(parts.hostname or "")
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"
