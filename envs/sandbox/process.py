"""A session's process as the server sees it: requests and answers on one socket, and its exit."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from dataclasses import dataclass

from envs.errors import SandboxError
from envs.sandbox.cpu_throttle import CpuThrottle

_EXIT_S = 2.0
_CHUNK = 65_536


class ChildGone(Exception):
    """The child's end of the socket closed."""


class ChildProtocolError(Exception):
    """The child sent bytes that a correct child never sends."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended.

    `code` is the exit code, or the negative number of a signal; `cpu_s` are CPU seconds as the
    kernel counted them.
    """

    code: int
    cpu_s: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def out_of_cpu(self) -> bool:
        """Whether the kernel ended it at its limit of CPU seconds."""
        return self.code == -signal.SIGXCPU

    def __str__(self) -> str:
        return f"exit code {self.code}" if self.code >= 0 else signal.Signals(-self.code).name


class Child:
    """One forked, locked-down process.

    Signals go to its pidfd, so they can never reach another process that reuses its number. Frames
    are a length and a body. Each request gets exactly one answer. Other bytes from the child are a
    fault, after which nothing more is read from it. The event loop watches the socket only from the
    first request on; idle children cost it nothing.
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
        "_throttle",
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
        throttle: CpuThrottle,
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._pidfd = pidfd
        self._exit = exit_
        self._limit = self._usual_limit = limit_bytes
        self._throttle = throttle
        self._clock: int | None = None
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self.fault: ChildGone | ChildProtocolError | None = None
        self.stopped = False
        """Whether the server ended the process, rather than a tool or the system."""

    @property
    def alive(self) -> bool:
        return self.fault is None and not self._exit.done()

    def send(self, body: bytes) -> None:
        """Send a message that gets no answer."""
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

    async def request(self, body: bytes, limit_bytes: int = 0) -> bytes:
        """Send a request and return the body of its answer.

        The body may have `limit_bytes`; 0 means the usual limit. Raises ChildGone or
        ChildProtocolError.
        """
        if self.fault:
            raise self.fault
        self._limit = limit_bytes or self._usual_limit
        self._answer = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._connection, self._receive)
        self._throttle.call_started(self)
        try:
            self.send(body)
            if self.fault:
                raise self.fault
            return await self._answer
        finally:
            self._throttle.call_ended(self)

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the process so far; None if it has ended."""
        if self._pidfd < 0:
            return None
        try:
            self._clock = self._clock or _process_clock(self._pidfd)
            return time.clock_gettime(self._clock)
        except (OSError, ValueError):
            return None

    def pause(self) -> None:
        """Stop the process until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process continue."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End the process now; harmless if it has ended or was killed before."""
        if self._pidfd < 0:
            return
        self.stopped = not self._exit.done()
        self._signal(signal.SIGKILL)
        os.close(self._pidfd)
        self._pidfd = -1
        self._fail(ChildGone())

    @property
    def orphaned(self) -> bool:
        """Whether the zygote died before it could report how the process ended."""
        return self._exit.done() and self._exit.exception() is not None

    async def ended(self, wait_s: float = _EXIT_S) -> Exit | None:
        """Return how the process ended, as the zygote reported it; None if it did not in time."""
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
            self._fail(ChildProtocolError("bytes without a request"))
        else:
            self._buffer += part
            self._take_frame(self._answer)

    def _take_frame(self, answer: asyncio.Future[bytes]) -> None:
        if len(self._buffer) < 4:
            return
        (size,) = struct.unpack_from(">I", self._buffer)
        if size > self._limit:
            self._fail(ChildProtocolError("an answer over the size limit"))
        elif len(self._buffer) == 4 + size:
            answer.set_result(bytes(self._buffer[4:]))
            self._buffer.clear()
        elif len(self._buffer) > 4 + size:
            self._fail(ChildProtocolError("more than one answer"))

    def _fail(self, fault: ChildGone | ChildProtocolError) -> None:
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
