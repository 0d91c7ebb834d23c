"""The server's end of a zygote: start it, ask it for children, hear how they ended."""

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
from envs.errors import IsolationError, SandboxError
from envs.sandbox.confine import NOBODY, check_kernel, check_platform
from envs.sandbox.cpu_throttle import ShortCallsFirst
from envs.sandbox.options import ZygoteOptions
from envs.sandbox.plan import ENVIRONMENT, zygote_options
from envs.sandbox.process import Child, Exit
from envs.sandbox.scratch import empty_folder

_START_S = 30.0
_EXIT_S = 2.0
_MESSAGES_AT_ONCE = 64
_KEPT_CORES = 2
"""For the server, its clients and short calls; calls that compute for long share the rest."""
_BOOT = (
    "import os, sys; os.register_at_fork = lambda **hooks: None; sys.path.insert(0, sys.argv[1]); "
    "from envs.sandbox.zygote import main; main(sys.argv[2])"
)
"""Without the library's hooks, which write to half of what a child shares: the zygote has one
thread, and sessions are seeded.
"""


class ZygoteMessage(BaseModel):
    """What the zygote says."""

    kind: str
    level: IsolationLevel = "none"
    message: str = ""
    landlock: int = 0
    refusals: dict[str, str] = {}
    pid: int = 0
    code: int = 0
    cpu_s: float = 0.0


class ZygoteLink:
    """The fork server's process and its control socket.

    `deliver` gets every child, or the SandboxError that stands for one, in the order of the
    requests.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        options: ZygoteOptions,
        deliver: Callable[[Child | SandboxError], None],
        precedence: ShortCallsFirst,
    ) -> None:
        self._process = process
        self._control = control
        self._options = options
        self._deliver = deliver
        self._reply_limit = 6 * options.reply_limit_bytes + 1_024  # JSON may take six bytes for one
        self.precedence = precedence
        self._exits: dict[int, asyncio.Future[Exit]] = {}
        self._ready: asyncio.Future[ZygoteMessage] = asyncio.get_running_loop().create_future()
        self.pending = 0
        """Children asked for and not delivered yet."""
        self.alive = True
        asyncio.get_running_loop().add_reader(control, self._receive)

    @classmethod
    async def start(
        cls,
        config: ToolServerConfig,
        strongest: IsolationLevel,
        deliver: Callable[[Child | SandboxError], None],
    ) -> tuple["ZygoteLink", ZygoteMessage]:
        """Start a zygote and wait for it. Raises IsolationError, ConfigError or SandboxError."""
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
        spare_cores = max(0, len(os.sched_getaffinity(0)) - _KEPT_CORES)
        precedence = ShortCallsFirst(spare_cores, config.long_call_share)
        link = cls(process, ours, options, deliver, precedence)
        try:
            return link, await link._wait_ready()
        except BaseException:
            await link.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _wait_ready(self) -> ZygoteMessage:
        try:
            async with asyncio.timeout(_START_S):
                ready = await self._ready
        except TimeoutError as error:
            raise SandboxError(f"the sandbox was not ready within {_START_S:g} s") from error
        if ready.kind != "ready":
            raise IsolationError(f"the sandbox could not be locked down: {ready.message}")
        return ready

    def request(self, count: int) -> None:
        """Ask for `count` children. Raises SandboxError."""
        try:
            self._control.send(str(count).encode())
        except OSError as error:
            raise SandboxError(f"the sandbox's fork server takes no requests: {error}") from error
        self.pending += count

    async def close(self) -> None:
        """Hang up, which ends the zygote and its children, and reap it."""
        self._hung_up()
        self._process.kill()
        await asyncio.to_thread(self._process.wait, _EXIT_S)
        if self._options.server_folder:
            await asyncio.to_thread(_remove, self._options.server_folder)

    def _receive(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                body, descriptors, _, _ = socket.recv_fds(self._control, 65_536, 2)
            except BlockingIOError:
                return
            except OSError:
                body, descriptors = b"", []
            if not body:
                self._hung_up()
                return
            try:
                self._understand(ZygoteMessage.model_validate_json(body), descriptors)
            except ValidationError:  # it has lost its mind; it is replaced like a dead one
                self._hung_up()
                return

    def _understand(self, message: ZygoteMessage, descriptors: list[int]) -> None:
        if message.kind == "exit":
            exit_ = self._exits.pop(message.pid, None)
            if exit_:
                exit_.set_result(Exit(message.code, message.cpu_s))
        elif message.kind in ("child", "failed"):
            self.pending -= 1
            self._deliver(self._spawned(message, descriptors))
        elif not self._ready.done():
            self._ready.set_result(message)

    def _spawned(self, message: ZygoteMessage, descriptors: list[int]) -> Child | SandboxError:
        if message.kind == "child":
            exit_ = self._exits[message.pid] = asyncio.get_running_loop().create_future()
            if len(descriptors) == 2:
                connection = socket.socket(
                    socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptors[0]
                )
                return Child(connection, descriptors[1], exit_, self._reply_limit, self.precedence)
        for descriptor in descriptors:
            os.close(descriptor)
        why = message.message or "this server is out of file descriptors"
        return SandboxError(f"no child could be forked: {why}")

    def _hung_up(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        lost = SandboxError("the sandbox's fork server died")
        for future in self._exits.values():
            if not future.done():
                future.set_exception(lost)
                future.exception()  # marks it as seen: not every child has somebody waiting
        self._exits.clear()
        for _ in range(self.pending):
            self._deliver(lost)
        self.pending = 0
        if not self._ready.done():
            refusal = ZygoteMessage(kind="refused", message="it died while starting")
            self._ready.set_result(refusal)


def _server_folder() -> str:
    """Return a new private folder for scratch, for where there is no mount namespace."""
    folder = tempfile.mkdtemp(prefix="trialrun-scratch-")
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):  # the janitor may be at it as well
        empty_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)
