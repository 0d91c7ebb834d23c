"""The server's ends of the sandbox's processes: the zygote, and the children it hands out."""

import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from pydantic import BaseModel

from envs.config import IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError
from envs.isolation import IsolationReport, SessionLimits
from envs.sandbox_child import CHILD_DESCRIPTORS
from envs.sandbox_confine import check_platform

_START_S = 30.0
_SPAWN_S = 10.0
_EXIT_S = 2.0
_SPAWNS_AT_ONCE = 32  # more would fill the control socket
_HASH_SEED = 0
_ENVIRONMENT = {"PYTHONHASHSEED": str(_HASH_SEED), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from envs.sandbox_zygote import main; main(sys.argv[2])"
)


class ChildGone(Exception):
    """The child's end of the socket closed."""


class ChildSpoke(Exception):
    """The child sent what no well-behaved child sends."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended; `code` is negative for a signal. `cpu_s` is the kernel's own account."""

    code: int
    cpu_s: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def __str__(self) -> str:
        return f"exit code {self.code}" if self.code >= 0 else signal.Signals(-self.code).name


class _Message(BaseModel):
    """What the zygote says."""

    kind: str
    level: str = ""
    message: str = ""
    landlock: int = 0
    refusals: dict[str, str] = {}
    pid: int = 0
    code: int = 0
    cpu_s: float = 0.0


class _Frames(asyncio.Protocol):
    """Length-framed answers of a child: one per question, and none unasked."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self.fault: ChildGone | ChildSpoke | None = None
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is not a subclass

    def expect(self) -> asyncio.Future[bytes]:
        """Return the future of the next answer. Raises the fault that already happened."""
        if self.fault:
            raise self.fault
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.fault:
            return
        if self._answer is None or self._answer.done():
            self._fail(ChildSpoke("bytes that nobody asked for"))
            return
        if len(self._buffer) < 4:
            return
        (size,) = struct.unpack_from(">I", self._buffer)
        if size > self._limit:
            self._fail(ChildSpoke("an answer over the size limit"))
        elif len(self._buffer) == 4 + size:
            self._answer.set_result(bytes(self._buffer[4:]))
            self._buffer.clear()
        elif len(self._buffer) > 4 + size:
            self._fail(ChildSpoke("more than one answer"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ChildGone())

    def _fail(self, fault: ChildGone | ChildSpoke) -> None:
        self.fault = self.fault or fault
        self._buffer.clear()
        if self.transport:
            self.transport.abort()
        if self._answer and not self._answer.done():
            self._answer.set_exception(self.fault)


class Child:
    """One forked, locked-down process; the pidfd makes sure that a kill meets no other process."""

    def __init__(self, pidfd: int, frames: _Frames, exit_: asyncio.Future[Exit]) -> None:
        self._pidfd = pidfd
        self._frames = frames
        self.stopped = False
        """Whether the server ended it, rather than a tool or the system."""
        self._exit = exit_

    @property
    def alive(self) -> bool:
        return self._frames.fault is None and not self._exit.done()

    def tell(self, message: str) -> None:
        """Send a message that has no answer."""
        if self._frames.transport and not self._frames.fault:
            body = message.encode()
            self._frames.transport.write(struct.pack(">I", len(body)) + body)

    async def ask(self, message: str) -> bytes:
        """Send a request and return the body of its answer. Raises ChildGone or ChildSpoke."""
        answer = self._frames.expect()
        self.tell(message)
        return await answer

    def kill(self) -> None:
        """End the process now; harmless when it has ended or was killed before."""
        if self._pidfd < 0:
            return
        self.stopped = not self._exit.done()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._frames.transport:
            self._frames.transport.abort()

    async def ended(self, wait_s: float = _EXIT_S) -> Exit | None:
        """Return how the process ended, as the zygote saw it; None when that is not known."""
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(self._exit)
        except (TimeoutError, SandboxError):
            return None


def _report(config: ToolServerConfig, ready: _Message) -> IsolationReport:
    limits = SessionLimits(
        cpu_s=config.session_cpu_s,
        memory_mib=config.session_memory_mib,
        reply_bytes=config.reply_limit_bytes,
        files=CHILD_DESCRIPTORS,
    )
    return IsolationReport(
        level=cast(IsolationLevel, ready.level),
        profile=config.isolation.profile,
        imports=config.isolation.imports,
        landlock=ready.landlock,
        kernel=platform.release(),
        machine=platform.machine(),
        hash_seed=_HASH_SEED,
        limits=limits,
        refusals=ready.refusals,
    )


class Zygote:
    """The fork server's process and its control socket."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, reply: int
    ) -> None:
        self._process = process
        self._control = control
        self._reply_limit = 6 * reply + 1_024  # JSON may take six bytes for one
        self._spawns: deque[asyncio.Future[tuple[int, int, asyncio.Future[Exit]]]] = deque()
        self._exits: dict[int, asyncio.Future[Exit]] = {}
        self._ready: asyncio.Future[_Message] = asyncio.get_running_loop().create_future()
        self._turns = asyncio.Semaphore(_SPAWNS_AT_ONCE)
        self.report: IsolationReport | None = None
        self.alive = True
        asyncio.get_running_loop().add_reader(control, self._receive)

    @classmethod
    async def start(cls, config: ToolServerConfig, strongest: IsolationLevel) -> "Zygote":
        """Start a zygote and wait for it. Raises IsolationError or SandboxError."""
        check_platform()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        options = {
            "control": theirs.fileno(),
            "strongest": strongest,
            "memory_mib": config.session_memory_mib,
            "reply_limit_bytes": config.reply_limit_bytes,
        }
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-S", "-s", "-P", "-B", "-c", _BOOT),
                    *(str(Path(__file__).parents[1]), json.dumps(options)),
                ],
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        zygote = cls(process, ours, config.reply_limit_bytes)
        try:
            zygote.report = await zygote._achieve(config)
        except (IsolationError, SandboxError):
            await zygote.close()
            raise
        return zygote

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _achieve(self, config: ToolServerConfig) -> IsolationReport:
        try:
            async with asyncio.timeout(_START_S):
                ready = await self._ready
        except TimeoutError as error:
            raise SandboxError(f"the sandbox was not ready within {_START_S:g} s") from error
        if ready.kind != "ready":
            raise IsolationError(f"the sandbox could not be locked down: {ready.message}")
        report = _report(config, ready)
        required = config.isolation.required
        levels = get_args(IsolationLevel)
        if levels.index(report.level) > levels.index(required):
            reasons = "; ".join(f"{name}: {why}" for name, why in ready.refusals.items())
            raise IsolationError(
                f"expected isolation {required}, this kernel gives {report.level} ({reasons}); "
                "allow user namespaces or Landlock, or set tools.isolation.required to a weaker "
                "level"
            )
        return report

    async def spawn(self) -> Child:
        """Fork a child. Raises SandboxError."""
        async with self._turns:
            return await self._spawn()

    async def _spawn(self) -> Child:
        if not self.alive:
            raise SandboxError("the sandbox's fork server died")
        loop = asyncio.get_running_loop()
        spawn = loop.create_future()
        self._spawns.append(spawn)
        try:
            self._control.send(b"fork")
            async with asyncio.timeout(_SPAWN_S):
                descriptor, pidfd, exit_ = await spawn
        except TimeoutError as error:
            raise SandboxError(f"no child was forked within {_SPAWN_S:g} s") from error
        except OSError as error:
            raise SandboxError(f"the sandbox's fork server takes no requests: {error}") from error
        frames = _Frames(self._reply_limit)
        child = Child(pidfd, frames, exit_)
        connection = socket.socket(fileno=descriptor)
        try:
            await loop.create_unix_connection(lambda: frames, sock=connection)
        except (OSError, asyncio.CancelledError):
            child.kill()
            connection.close()
            raise
        return child

    async def close(self) -> None:
        """Hang up, which ends the zygote and its children, and reap it."""
        self._hung_up()
        self._process.kill()
        await asyncio.to_thread(self._process.wait, _EXIT_S)

    def _receive(self) -> None:
        try:
            body, descriptors, _, _ = socket.recv_fds(self._control, 65_536, 2)
        except BlockingIOError:
            return
        except OSError:
            body, descriptors = b"", []
        if not body:
            self._hung_up()
            return
        message = _Message.model_validate_json(body)
        if message.kind == "exit":
            exit_ = self._exits.pop(message.pid, None)
            if exit_:
                exit_.set_result(Exit(message.code, message.cpu_s))
        elif message.kind in ("child", "failed"):
            self._spawned(message, descriptors)
        elif not self._ready.done():
            self._ready.set_result(message)

    def _spawned(self, message: _Message, descriptors: list[int]) -> None:
        spawn = self._spawns.popleft()
        if message.kind == "child":
            exit_ = self._exits[message.pid] = asyncio.get_running_loop().create_future()
            if len(descriptors) == 2 and not spawn.done():
                spawn.set_result((descriptors[0], descriptors[1], exit_))
                return
        for descriptor in descriptors:
            os.close(descriptor)
        if not spawn.done():
            why = message.message or "this server is out of file descriptors"
            spawn.set_exception(SandboxError(f"no child could be forked: {why}"))

    def _hung_up(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        lost = SandboxError("the sandbox's fork server died")
        for future in (*self._spawns, *self._exits.values()):
            if not future.done():
                future.set_exception(lost)
                future.exception()  # marks it as seen: not every child has somebody waiting
        self._spawns.clear()
        self._exits.clear()
        if not self._ready.done():
            self._ready.set_result(_Message(kind="refused", message="it died while starting"))
