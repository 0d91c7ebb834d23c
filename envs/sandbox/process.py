"""A session's process as the server sees it: requests and answers over one socket, and its end."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from dataclasses import dataclass

from envs.errors import SandboxError
from envs.sandbox.cpu_throttle import ShortCallsFirst

_EXIT_S = 2.0
_CHUNK = 65_536


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


class Child:
    """One forked, locked-down process; the pidfd makes sure that a kill meets no other process.

    Frames are a length and a body. There is one answer per request, and none unasked: anything else
    is a fault, after which nothing more is read. The event loop watches the socket from the first
    request on.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_buffer",
        "_clock",
        "_connection",
        "_exit",
        "_limit",
        "_loop",
        "_pidfd",
        "_precedence",
        "_unsent",
        "_usual_limit",
        "_watched",
        "fault",
        "stopped",
    )

    def __init__(
        self,
        connection: socket.socket,
        pidfd: int,
        exit_: asyncio.Future[Exit],
        limit_bytes: int,
        precedence: ShortCallsFirst,
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._pidfd = pidfd
        self._exit = exit_
        self._limit = self._usual_limit = limit_bytes
        self._precedence = precedence
        self._clock: int | None = None
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self.fault: ChildGone | ChildSpoke | None = None
        self.stopped = False
        """Whether the server ended it, rather than a tool or the system."""

    @property
    def alive(self) -> bool:
        return self.fault is None and not self._exit.done()

    def tell(self, body: bytes) -> None:
        """Send a message that has no answer."""
        if self.fault:
            return
        frame = struct.pack(">I", len(body)) + body
        sent = 0
        if not self._unsent:
            try:
                sent = self._connection.send(frame)
            except BlockingIOError:
                pass
            except OSError:
                self._fail(ChildGone())
                return
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.add_writer(self._connection, self._send_more)

    async def ask(self, body: bytes, limit_bytes: int = 0) -> bytes:
        """Send a request and return the body of its answer, of at most `limit_bytes`, or of the
        usual limit where that is 0. Raises ChildGone or ChildSpoke.
        """
        if self.fault:
            raise self.fault
        self._limit = limit_bytes or self._usual_limit
        self._answer = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._connection, self._receive)
        self._precedence.began(self)
        try:
            self.tell(body)
            if self.fault:
                raise self.fault
            return await self._answer
        finally:
            self._precedence.ended(self)

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the process so far; None when it is gone."""
        if self._pidfd < 0:
            return None
        try:
            self._clock = self._clock or _process_clock(self._pidfd)
            return time.clock_gettime(self._clock)
        except (OSError, ValueError):
            return None

    def hold(self) -> None:
        """Stop the process until it is told to go on."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the process go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End the process now; harmless when it has ended or was killed before."""
        if self._pidfd < 0:
            return
        self.stopped = not self._exit.done()
        self._signal(signal.SIGKILL)
        os.close(self._pidfd)
        self._pidfd = -1
        self._fail(ChildGone())

    async def ended(self, wait_s: float = _EXIT_S) -> Exit | None:
        """Return how the process ended, as the zygote saw it; None when that is not known."""
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(self._exit)
        except (TimeoutError, SandboxError):
            return None

    def _send_more(self) -> None:
        try:
            del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._fail(ChildGone())
            return
        if not self._unsent:
            self._loop.remove_writer(self._connection)

    def _receive(self) -> None:
        try:
            part = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._fail(ChildGone())
        elif self._answer is None or self._answer.done():
            self._fail(ChildSpoke("bytes that nobody asked for"))
        else:
            self._buffer += part
            self._take_frame(self._answer)

    def _take_frame(self, answer: asyncio.Future[bytes]) -> None:
        if len(self._buffer) < 4:
            return
        (size,) = struct.unpack_from(">I", self._buffer)
        if size > self._limit:
            self._fail(ChildSpoke("an answer over the size limit"))
        elif len(self._buffer) == 4 + size:
            answer.set_result(bytes(self._buffer[4:]))
            self._buffer.clear()
        elif len(self._buffer) > 4 + size:
            self._fail(ChildSpoke("more than one answer"))

    def _fail(self, fault: ChildGone | ChildSpoke) -> None:
        self.fault = self.fault or fault
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
        self._buffer.clear()
        if self._answer and not self._answer.done():
            self._answer.set_exception(self.fault)


def _process_clock(pidfd: int) -> int:
    """Return the id of the clock that a process's CPU time is read from.

    Source: clock_getcpuclockid(3); the kernel's MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED.
    """
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        lines = dict(line.split(":", 1) for line in file)
    pid = int(lines["Pid"])
    if pid <= 0:
        raise ProcessLookupError
    return (~pid << 3) | 2
