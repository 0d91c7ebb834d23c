"""A session's process as the server sees it: requests and answers on one socket, and its exit."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from envs.errors import SandboxError
from envs.sandbox.cpu_throttle import CallWatch
from envs.sandbox.inside.frames import FAILED, REPLY, REQUEST, TRUNCATED

_EXIT_S = 2.0
_PROCESS_GROUP = 4
"""Flag of pidfd_send_signal(2), since Linux 6.9: the signal goes to the whole process group."""
_CHUNK = 65_536
_PIECES, _PIECE_BYTES = 64, 1_024
"""A reply may come in that many pieces, and in one more for so many bytes: who sends single bytes
would wake the server for each.
"""


class ChildGone(Exception):
    """The child's end of the socket closed."""


class ChildProtocolError(Exception):
    """The child sent bytes that a correct child never sends."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended.

    `code` is the exit code, or the negative number of a signal; `cpu_s` are CPU seconds as the
    kernel counted them; `over` says that the sandbox ended it for too many files.
    """

    code: int
    cpu_s: float
    over: bool = False

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def out_of_cpu(self) -> bool:
        """Whether the kernel ended it at its limit of CPU seconds."""
        return self.code == -signal.SIGXCPU

    def __str__(self) -> str:
        return f"exit code {self.code}" if self.code >= 0 else signal.Signals(-self.code).name


class Reply(NamedTuple):
    """What a child answered; the times are its own word."""

    failed: bool
    truncated: bool
    wall_s: float
    cpu_s: float
    text: bytes


class Child:
    """One forked, locked-down process.

    Signals go to its pidfd, so they can never reach another process that reuses its number. Frames
    are as in `inside/frames.py`. Each request gets exactly one answer. Other bytes from the child
    are a fault, after which nothing more is read from it. The event loop watches the socket only
    from the first request on; idle children cost it nothing.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_buffer",
        "_clock",
        "_connection",
        "_exit",
        "_flags",
        "_limit",
        "_loop",
        "_number",
        "_paused",
        "_pidfd",
        "_pieces",
        "_unsent",
        "_usual_limit",
        "_watched",
        "_watches",
        "cpu_seen_s",
        "fault",
        "stopped",
    )

    def __init__(
        self,
        connection: socket.socket,
        pidfd: int,
        exit_: asyncio.Future[Exit],
        limit_bytes: int,
        watches: Sequence[CallWatch],
        *,
        leads_group: bool = False,
    ) -> None:
        """`leads_group`: it leads a process group, whose members are signalled with it."""
        connection.setblocking(False)
        self._connection = connection
        self._pidfd = pidfd
        self._exit = exit_
        self._limit = self._usual_limit = limit_bytes
        self._watches = watches
        self._flags = _PROCESS_GROUP if leads_group else 0
        self._paused = False
        self._clock: int | None = None
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._number = self._pieces = 0
        self._answer: asyncio.Future[Reply] | None = None
        self.cpu_seen_s = 0.0
        """CPU seconds of the process when they were measured last."""
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
        frame = REQUEST.pack(len(body)) + body
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

    async def request(self, body: bytes, number: int, limit_bytes: int = 0) -> Reply:
        """Send a request and return its answer, which must have the same `number`.

        The text may have `limit_bytes`; 0 means the usual limit. Raises ChildGone or
        ChildProtocolError.
        """
        if self.fault:
            raise self.fault
        self._limit = limit_bytes or self._usual_limit
        self._number, self._pieces = number, 0
        self._answer = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._connection, self._receive)
        if self._paused:
            self.resume()
        for watch in self._watches:
            watch.call_started(self)
        try:
            self.send(body)
            if self.fault:
                raise self.fault
            return await self._answer
        finally:
            for watch in self._watches:
                watch.call_ended(self)

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the process so far; None if it has ended."""
        if self._pidfd < 0:
            return None
        try:
            self._clock = self._clock or _process_clock(self._pidfd)
            self.cpu_seen_s = time.clock_gettime(self._clock)
        except (OSError, ValueError):
            return None
        return self.cpu_seen_s

    def pause(self) -> None:
        """Stop the process, with all of its threads, until `resume`."""
        self._paused = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process continue."""
        self._paused = False
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                signal.pidfd_send_signal(self._pidfd, number, None, self._flags)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._flags:
                    raise
                self._flags = 0  # a kernel that cannot signal groups
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
            self._pieces += 1
            self._take_frame(self._answer)

    def _take_frame(self, answer: asyncio.Future[Reply]) -> None:
        length = len(self._buffer)
        if length >= REPLY.size:
            size, number, status, flags, wall_ns, cpu_ns = REPLY.unpack_from(self._buffer)
            if size > self._limit:
                self._fail(ChildProtocolError("an answer over the size limit"))
            elif number != self._number or status > FAILED or flags > TRUNCATED:
                self._fail(ChildProtocolError("a malformed answer"))
            elif length > REPLY.size + size:
                self._fail(ChildProtocolError("more than one answer"))
            elif length == REPLY.size + size:
                text = bytes(self._buffer[REPLY.size :])
                self._buffer.clear()
                times = wall_ns / 1e9, cpu_ns / 1e9
                answer.set_result(Reply(status == FAILED, flags == TRUNCATED, *times, text))
        if not answer.done() and self._pieces > _PIECES + length // _PIECE_BYTES:
            self._fail(ChildProtocolError("an answer in too many pieces"))

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
