"""The server's end of a zygote: starts it, requests children and receives their exits."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from envs.config import IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError, SandboxFullError
from envs.sandbox.confine import NOBODY, check_kernel, check_platform
from envs.sandbox.cpu_throttle import CpuThrottle, ThrottleTiming
from envs.sandbox.janitor import empty_folder
from envs.sandbox.options import ZygoteOptions
from envs.sandbox.plan import ENVIRONMENT, zygote_options
from envs.sandbox.process import Child, Exit
from envs.sandbox.rest import RestWatch

_START_S = 30.0
_PACKAGE_S = 60.0
"""Seconds more for each package that is imported whole."""
_EXIT_S = 2.0
SILENT_S = 15.0
"""A zygote that owes children and sends nothing for this long hangs; a fork takes milliseconds."""
_MESSAGES_AT_ONCE = 64
_RESERVED_CORES = 2
"""Cores for the server, its clients and short calls; long CPU-bound calls share the rest."""
_BOOT = (
    "import os, sys; os.register_at_fork = lambda **hooks: None; sys.path.insert(0, sys.argv[1]); "
    "from envs.sandbox.zygote import main; main(sys.argv[2])"
)
"""Program of the zygote.

It disables fork hooks, because those of the standard library write to memory after each fork and so
unshare many pages of a child. They are not needed: the zygote has one thread, and sessions seed
their random numbers.
"""


class ZygoteMessage(BaseModel):
    """A message from the zygote; ZygoteLink says which kinds there are."""

    kind: str
    level: IsolationLevel = "none"
    message: str = ""
    landlock: int = 0
    refusals: dict[str, str] = {}
    pid: int = 0
    code: int = 0
    cpu_s: float = 0.0
    full: bool = False
    """Whether no child could be forked for want of room."""
    over: bool = False
    """Whether a child was ended because its scratch folder had too much in it."""


class ZygoteLink:
    """The zygote's (fork server's) process and its control socket.

    Messages are `ready` or `refused` once, then `child`, `failed` and `exit`. `deliver` is called
    with every requested child, or with a SandboxError in its place, in the order of the requests.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        options: ZygoteOptions,
        deliver: Callable[[Child | SandboxError], None],
        throttle: CpuThrottle,
        silent_s: float = SILENT_S,
    ) -> None:
        self._process = process
        self._control = control
        self._options = options
        self._deliver = deliver
        self._reply_limit = options.reply_limit_bytes
        self.throttle = throttle
        self.rest = RestWatch()
        self._leads_group = False
        """Whether children lead process groups."""
        self._silent_s = silent_s
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        """Runs while children are owed."""
        self._exits: dict[int, asyncio.Future[Exit]] = {}
        self._ready: asyncio.Future[ZygoteMessage] = asyncio.get_running_loop().create_future()
        self.pending = 0
        """Children that were requested and are not delivered yet."""
        self.alive = True
        asyncio.get_running_loop().add_reader(control, self._receive)

    @classmethod
    async def start(
        cls,
        config: ToolServerConfig,
        strongest: IsolationLevel,
        deliver: Callable[[Child | SandboxError], None],
        throttle_timing: ThrottleTiming | None = None,
        silent_s: float = SILENT_S,
    ) -> tuple["ZygoteLink", ZygoteMessage]:
        """Start a zygote and wait until it is ready; it is ended once it owes children and sends
        nothing for `silent_s`.

        Raises IsolationError, ConfigError or SandboxError.
        """
        check_platform()
        check_kernel()
        options = zygote_options(config, strongest)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            folder = _server_folder() if options.files else ""
            options = replace(options, control=theirs.fileno(), server_folder=folder)
            process = subprocess.Popen(
                [
                    *(sys.executable, "-S", "-s", "-P", "-B", "-c", _BOOT),
                    *(str(Path(__file__).parents[2]), options.to_json()),
                ],
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        spare_cores = max(0, len(os.sched_getaffinity(0)) - _RESERVED_CORES)
        throttle = CpuThrottle(spare_cores, config.long_call_share, throttle_timing)
        link = cls(process, ours, options, deliver, throttle, silent_s)
        try:
            return link, await link._wait_ready()
        except BaseException:
            await link.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _wait_ready(self) -> ZygoteMessage:
        start_s = _START_S + _PACKAGE_S * len(self._options.further)
        try:
            async with asyncio.timeout(start_s):
                ready = await self._ready
        except TimeoutError as error:
            raise SandboxError(
                f"the sandbox was not ready within {start_s:g} s; start the server again"
            ) from error
        if ready.kind != "ready":
            raise IsolationError(f"the sandbox could not be locked down: {ready.message}")
        return ready

    def request(self, count: int) -> None:
        """Request `count` children. Raises SandboxError."""
        try:
            self._control.send(str(count).encode())
        except OSError as error:
            raise SandboxError(
                f"the sandbox's fork server accepts no requests: {error}; open a new session"
            ) from error
        self.pending += count
        if self._watch is None:
            self._heard_at = _now()
            self._watch = asyncio.get_running_loop().call_later(self._silent_s, self._check_silence)

    async def close(self) -> None:
        """Close the socket, which ends the zygote and its children, and reap the zygote."""
        self._connection_lost()
        self._process.kill()
        await asyncio.to_thread(self._process.wait, _EXIT_S)
        if self._options.server_folder:
            await asyncio.to_thread(_remove, self._options.server_folder)

    def _check_silence(self) -> None:
        """End a zygote that owes children and hangs: its callers must get another one."""
        self._watch = None
        if self.alive:
            self._receive()  # answers may wait for a server that stood still itself
        if not self.alive or not self.pending:
            return
        left_s = self._heard_at + self._silent_s - _now()
        if left_s > 0:
            self._watch = asyncio.get_running_loop().call_later(left_s, self._check_silence)
            return
        self._process.kill()
        self._connection_lost(f"answered nothing for {self._silent_s:g} s")

    def _receive(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                body, descriptors, _, _ = socket.recv_fds(self._control, 65_536, 2)
            except BlockingIOError:
                return
            except OSError:
                body, descriptors = b"", []
            if not body:
                self._connection_lost()
                return
            try:
                self._handle_message(ZygoteMessage.model_validate_json(body), descriptors)
            except ValidationError:  # an invalid message: the zygote is replaced like a dead one
                self._connection_lost()
                return

    def _handle_message(self, message: ZygoteMessage, descriptors: list[int]) -> None:
        self._heard_at = _now()
        if message.kind == "exit":
            exit_ = self._exits.pop(message.pid, None)
            if exit_:
                exit_.set_result(Exit(message.code, message.cpu_s, message.over))
        elif message.kind in ("child", "failed"):
            self.pending -= 1
            self._deliver(self._child_of(message, descriptors))
        elif not self._ready.done():
            self._leads_group = message.level == "none"
            self._ready.set_result(message)

    def _child_of(self, message: ZygoteMessage, descriptors: list[int]) -> Child | SandboxError:
        if message.kind == "child":
            exit_ = self._exits[message.pid] = asyncio.get_running_loop().create_future()
            if len(descriptors) == 2:
                connection = socket.socket(
                    socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptors[0]
                )
                return Child(
                    connection,
                    descriptors[1],
                    exit_,
                    self._reply_limit,
                    (self.throttle, self.rest),
                    leads_group=self._leads_group,
                )
        for descriptor in descriptors:
            os.close(descriptor)
        why = message.message or "this server is out of file descriptors"
        full = message.full or message.kind == "child"  # which came without its descriptors
        return (SandboxFullError if full else SandboxError)(f"no child could be forked: {why}")

    def _connection_lost(self, why: str = "died") -> None:
        if not self.alive:
            return
        self.alive = False
        if self._watch is not None:
            self._watch.cancel()
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        lost = SandboxError(f"the sandbox's fork server {why}; open a new session")
        for future in self._exits.values():
            if not future.done():
                future.set_exception(lost)
                future.exception()  # marks it as retrieved: not every exit is awaited
        self._exits.clear()
        for _ in range(self.pending):
            self._deliver(lost)
        self.pending = 0
        if not self._ready.done():
            refusal = ZygoteMessage(kind="refused", message="its process died while starting")
            self._ready.set_result(refusal)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _server_folder() -> str:
    """Create a private folder for scratch folders, for use without a mount namespace."""
    folder = tempfile.mkdtemp(prefix="trialrun-scratch-")
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):  # the janitor may be emptying it too
        empty_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)
