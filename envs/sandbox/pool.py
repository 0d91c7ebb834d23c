"""A pool of forked children that are ready to become sessions."""

import asyncio
import resource
import weakref
from collections import deque
from collections.abc import Callable
from typing import get_args

from envs.config import IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError
from envs.sandbox.compile import CompiledTools, ToolCompiler
from envs.sandbox.cpu_throttle import ThrottleTiming
from envs.sandbox.gate import check_gate
from envs.sandbox.isolation import IsolationReport
from envs.sandbox.link import SILENT_S, ZygoteLink, ZygoteMessage
from envs.sandbox.oom import OomWatch, kernel_kills
from envs.sandbox.plan import IDLE_CHILDREN, MOST_IDLE_CHILDREN, isolation_report
from envs.sandbox.process import Child
from envs.tools import ToolSet

_SPAWN_S = 30.0
_FORKS_AT_ONCE = 64
"""Most children requested at once; more requests and answers would fill the control socket."""
_HITS_TO_SHRINK = 512
"""Sessions opened in a row without waiting for a fork, after which the pool shrinks."""
_DESCRIPTORS_PER_SESSION = 2
_OTHER_DESCRIPTORS = 1_024


class SandboxPool:
    """Idle children, forked by a zygote that is replaced when it dies or hangs.

    The number of idle children doubles whenever a session had to wait for a fork, and halves after
    many sessions that did not. `strongest` is the level to try first, `throttle_timing` sets when
    calls are throttled, `oom_kills` counts, and a zygote that owes children and sends nothing for
    `silent_s` hangs; tests pass others than the defaults.
    """

    def __init__(
        self,
        config: ToolServerConfig,
        strongest: IsolationLevel = "namespaces",
        throttle_timing: ThrottleTiming | None = None,
        oom_kills: Callable[[], int | None] = kernel_kills,
        silent_s: float = SILENT_S,
    ) -> None:
        self.oom = OomWatch(oom_kills)
        """Whether the kernel killed processes for want of memory."""
        self._config = config
        self._strongest: IsolationLevel = strongest
        self._throttle_timing = throttle_timing
        self._silent_s = silent_s
        self._link: ZygoteLink | None = None
        self._report: IsolationReport | None = None
        self._idle: deque[Child] = deque()
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._children: weakref.WeakSet[Child] = weakref.WeakSet()
        self._compiler = ToolCompiler(self.acquire, config.call_timeout_s, config.session_cpu_s)
        self._wanted = IDLE_CHILDREN
        self._hits = 0
        self._starting = asyncio.Lock()
        self._closed = False

    @property
    def config(self) -> ToolServerConfig:
        return self._config

    @property
    def report(self) -> IsolationReport | None:
        """The achieved isolation; None while no zygote is running."""
        return self._report if self._link and self._link.alive else None

    @property
    def isolation(self) -> str:
        """Summary of the report; empty while no zygote is running."""
        report = self.report
        return report.summary if report else ""

    @property
    def zygote_pid(self) -> int | None:
        return self._link.pid if self._link else None

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def forks_pending(self) -> int:
        """Children that were requested from the zygote and are not delivered yet."""
        return self._link.pending if self._link else 0

    @property
    def calls_throttled(self) -> int:
        """Long CPU-bound calls that are throttled in favour of short ones."""
        return self._link.throttle.calls_throttled if self._link else 0

    async def start(self) -> None:
        """Start the zygote.

        Raises IsolationError (the required level is not available, or a self-test probe succeeded),
        ConfigError or SandboxError.
        """
        _raise_descriptor_limit(self._config.max_sessions)
        self._top_up(await self._living_link())

    async def acquire(self) -> Child:
        """Return a child that was never used before. Raises SandboxError or IsolationError."""
        while self._idle:
            child = self._idle.popleft()
            if child.alive:
                self._note_hit()
                return child
            child.kill()
        link = await self._living_link()
        self._wanted = min(2 * self._wanted, MOST_IDLE_CHILDREN)
        self._hits = 0
        return await self._next_child(link)

    async def compiled(self, tool_set: ToolSet) -> CompiledTools:
        """Return the code of a tool set. Raises SandboxError or IsolationError."""
        return await self._compiler.compiled(tool_set)

    async def ready(self, tool_set: ToolSet) -> tuple[CompiledTools, Child]:
        """Return the code of a tool set, and a child for its session that has run no tool code.

        Raises SandboxError or IsolationError.
        """
        self.oom.look()
        tools = await self._compiler.compiled(tool_set)
        return tools, self._compiler.take_child(tool_set) or await self.acquire()

    async def close(self) -> None:
        """End the zygote, and with it every child."""
        self._closed = True
        for child in list(self._children):
            child.kill()
        self._idle.clear()
        if self._link:
            await self._link.close()

    async def _living_link(self) -> ZygoteLink:
        async with self._starting:
            if self._closed:
                raise SandboxError("the sandbox is closed: open a session on another tool server")
            if self._link is None or not self._link.alive:
                if self._link:
                    await self._link.close()
                self._link = await self._new_link()
            return self._link

    async def _new_link(self) -> ZygoteLink:
        link, ready = await ZygoteLink.start(
            self._config, self._strongest, self._deliver, self._throttle_timing, self._silent_s
        )
        try:
            self._report = self._judge(ready)
            if self._report.level != "none":
                child = await self._next_child(link)
                try:
                    await check_gate(child, self._report)
                finally:
                    child.kill()
        except BaseException:
            await link.close()
            raise
        return link

    def _judge(self, ready: ZygoteMessage) -> IsolationReport:
        required = self._config.isolation.required
        levels = get_args(IsolationLevel)
        if levels.index(ready.level) > levels.index(required):
            reasons = "; ".join(f"{name}: {why}" for name, why in ready.refusals.items())
            raise IsolationError(
                f"expected isolation {required}, found that this kernel gives {ready.level} "
                f"({reasons}); allow user namespaces or Landlock, or set tools.isolation.required "
                "to a weaker level"
            )
        return isolation_report(self._config, ready.level, ready.landlock, ready.refusals)

    async def _next_child(self, link: ZygoteLink) -> Child:
        child: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(child)
        try:
            self._top_up(link)
            async with asyncio.timeout(_SPAWN_S):
                return await child
        except TimeoutError as error:
            raise SandboxError(
                f"no child was forked within {_SPAWN_S:g} s; open a new session"
            ) from error
        except asyncio.CancelledError:
            # The child may have arrived in the same turn of the event loop: pass it on.
            if child.done() and not child.cancelled() and not child.exception():
                self._deliver(child.result())
            raise
        finally:
            child.cancel()

    def _deliver(self, delivered: Child | SandboxError) -> None:
        """Give a forked child, or the error in its place, to the longest-waiting caller.

        Callers do not own the forks they caused: any child suits any caller, so the next child goes
        to the caller that has waited longest, and the pool keeps the surplus.
        """
        self._assign(delivered)
        link = self._link
        if isinstance(delivered, SandboxError) and link and not link.alive:
            # A dead zygote answers no further request, so nothing else would wake these callers.
            while self._waiting:
                self._assign(delivered)
        # A request asks for at most _FORKS_AT_ONCE children, so callers may wait for a later one.
        # Waiting until half of these are delivered keeps the zygote busy with few messages.
        if self._waiting and link and link.alive and link.pending < _FORKS_AT_ONCE // 2:
            self._top_up(link)

    def _assign(self, delivered: Child | SandboxError) -> None:
        """Give `delivered` to the first caller that still waits, else to the idle children."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.done():
                continue
            if isinstance(delivered, SandboxError):
                waiting.set_exception(delivered)
            else:
                self._children.add(delivered)
                waiting.set_result(delivered)
            return
        if isinstance(delivered, SandboxError):
            return  # the next call of acquire meets the same failure and raises it
        if self._closed:
            delivered.kill()
            return
        self._children.add(delivered)
        self._idle.append(delivered)

    def _note_hit(self) -> None:
        """Count a session that did not wait; shrink the pool after many, and refill it."""
        self._hits += 1
        if self._hits == _HITS_TO_SHRINK:
            self._hits = 0
            self._wanted = max(self._wanted // 2, IDLE_CHILDREN)
        if self._link and self._link.alive and len(self._idle) < self._wanted * 3 // 4:
            self._top_up(self._link)

    def _top_up(self, link: ZygoteLink) -> None:
        """Request the missing children in one message. Raises SandboxError."""
        missing = len(self._waiting) + self._wanted - len(self._idle) - link.pending
        missing = min(missing, _FORKS_AT_ONCE - link.pending)
        if missing > 0 and not self._closed:
            link.request(missing)


def _raise_descriptor_limit(sessions: int) -> None:
    """Raise the limit of descriptors to that of `sessions`, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _DESCRIPTORS_PER_SESSION * sessions + _OTHER_DESCRIPTORS
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
