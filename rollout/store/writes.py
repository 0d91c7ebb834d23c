"""The writes of one run directory, in the order in which they are added, on a thread of their own.

Whoever has an event loop must not wait for a disk: a full page cache or a slow network file system
holds a write back for seconds. The order is what makes a run directory readable after a kill, so
there is one queue and one thread.
"""

import asyncio
import copy
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from envs.errors import DeadlineError, StoreError

QUEUED = 256
"""Episodes that wait for the thread at most; further ones wait outside of the queue."""
STUCK_S = 600.0
"""Seconds without the end of any write after which the disk counts as lost."""

_WAKE_EVERY = 16

Write = Callable[[], None]


class Writes:
    """Carries out writes one after the other.

    Before `start` the caller itself does, and its error is raised at once. Afterwards a thread
    does, and the first write that fails is the last: later ones are left out, and whoever waits for
    one of them, or adds one, gets its error. So what is on the disk is always a beginning of what
    was added, without gaps. Everything but the writes runs in the thread of the event loop.
    """

    def __init__(self, place: Path, stuck_s: float = STUCK_S, guard: Write = lambda: None) -> None:
        """`guard` raises StoreError before a write where the run is another process's now."""
        self._place = place
        self._stuck_s = stuck_s
        self._guard = guard
        self._queue: SimpleQueue[Write | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = asyncio.Semaphore(QUEUED)
        self._added = 0
        self._done = 0
        """Writes carried out; only the thread changes it."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        """How many writes must be done before a future is."""
        self._error: Exception | None = None
        self._raised = False
        self._closed = False

    @property
    def queued(self) -> int:
        """Writes that were added and are not done."""
        return self._added - self._done

    def start(self) -> None:
        """Write on the thread from now on, for callers in the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is self._loop and self._thread is not None:
            return
        self.flush()  # a loop before this one may have left writes
        self._loop, self._room = loop, asyncio.Semaphore(QUEUED)
        self._waiting.clear()
        if self._thread is None:
            # A daemon, so that a disk that hangs does not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name="run-writer", daemon=True)
            self._thread.start()

    def add(self, write: Write) -> None:
        """Carry out `write` after all that were added before; it may be carried out later.

        Raises its error before `start`, and the first error of an earlier write afterwards.
        """
        if self._closed:
            raise StoreError(f"expected an open run directory, found {self._place} closed")
        if self._thread is None:
            self._guard()
            write()
            return
        self._check()
        self._added += 1
        self._queue.put(write)

    async def carry_out(self, write: Write) -> None:
        """Add `write` when the queue has room, and return when it is done.

        Raises its error or that of an earlier write, and DeadlineError where the disk hangs.
        """
        self.start()
        async with self._room:
            self.add(write)
            await self._reach(self._added)

    def now(self, write: Write) -> None:
        """Carry out `write` after all others before returning. Raises its error."""
        self.add(write)
        self.flush()

    def flush(self) -> None:
        """Return when everything that was added is done; blocks. Raises as `carry_out`."""
        if self._thread is not None:
            self._settle_blocking()
            self._check()

    def close(self) -> None:
        """Carry out what was added, and end the thread; nothing can be added any more.

        Raises DeadlineError where that hangs.
        """
        self._closed = True
        if self._thread is None:
            return
        self._settle_blocking()
        self._queue.put(None)
        self._thread.join(self._stuck_s)
        self._thread = None

    def check_reported(self) -> None:
        """Raise the error of a write if no caller has got it."""
        if not self._raised:
            self._check()

    async def _reach(self, count: int) -> None:
        """Wait until `count` writes are done."""
        if self._done < count and self._error is None:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((count, reached))
            done_before = -1
            while not reached.done() and self._done != done_before:
                done_before = self._done
                await asyncio.wait({reached}, timeout=self._stuck_s)
            if not reached.done():
                self._error = self._error or self._hangs()
        if self._done < count:
            self._check()

    def _settle_blocking(self) -> None:
        passed = threading.Event()
        self._queue.put(passed)
        done_before = -1
        while not passed.is_set() and self._done != done_before:
            done_before = self._done
            passed.wait(self._stuck_s)
        if not passed.is_set():
            self._error = self._error or self._hangs()
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            self._raised = True
            # A copy, because every raise adds its place to the traceback.
            raise copy.copy(self._error) from self._error

    def _hangs(self) -> DeadlineError:
        return DeadlineError(
            f"no write to {self._place} came to its end within {self._stuck_s:g} s: the disk or "
            "network file system hangs. What was written before is intact; resume the run when it "
            "answers again"
        )

    def _settle(self) -> None:
        while self._waiting and (self._error is not None or self._waiting[0][0] <= self._done):
            _, reached = self._waiting.popleft()
            if not reached.done():  # else its caller was cancelled
                reached.set_result(None)

    # On the thread

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            if isinstance(write, threading.Event):
                write.set()
            elif self._error is None:
                self._carry_out(write)
            if self._queue.empty() or self._done % _WAKE_EVERY == 0:
                self._wake()

    def _carry_out(self, write: Write) -> None:
        try:
            self._guard()
            write()
        except Exception as error:  # whatever it is, the callers on the loop must get it
            self._error = error
        else:
            self._done += 1

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits in it
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._settle)
