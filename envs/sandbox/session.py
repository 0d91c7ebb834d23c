"""Sandboxed sessions as the tool server sees them: live tools in a child process.

Not covered, at any level:
- bugs of the kernel, because tools make system calls directly; and timing and cache side channels;
- the sum over sessions: CPU, memory and, with profile `files`, disk are limited only per session or
  per file (`files+quota` limits a session's scratch); if memory runs out, the kernel kills tools
  first;
- the tools of one session against each other: they share a process on purpose;
- the code of the tool set: each of its sessions can read the code and everything in it.

At level `landlock` with profile `files`, a tool can learn by `stat` whether a path exists. Level
`none` keeps only the limits: tool code has all rights of the server's user.

Equal seeds and calls give equal answers only for tools that use neither the clock, nor
`os.urandom`, nor the name of their scratch folder. The seed sets `random` and `numpy.random`. The
hash seed is the zygote's and the same for all sessions, because a forked interpreter cannot change
it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel

from envs.errors import IsolationError, SandboxError, SandboxFullError
from envs.sandbox.inside.child import STATE, STATE_LIMIT_BYTES
from envs.sandbox.isolation import FIRST_PAUSE_S, LONGEST_PAUSE_S
from envs.sandbox.pool import SandboxPool
from envs.sandbox.process import Child, ChildGone, ChildProtocolError, Exit, Reply
from envs.tools import STATE_CALL, AnswerStatus, ToolAnswer, ToolSet

_GRACE_S = 0.5
_SHORTEST_LOOK_S = 0.01
_DOUBT_S = 0.1
"""A child is believed that its tool took so much less time than the server saw: a tool that hangs
could say that it took none, and the time would be the infrastructure's.
"""
_RESTARTED = "the tool's state starts again from the beginning"


class _Request(BaseModel):
    number: int
    tool: int
    arguments: str


class SandboxSession:
    """Live tools in one child; after the child's end, the next call starts from the initial state.

    Calls run one after the other. A session whose children keep ending waits before it gets another
    one: 0.25 s at the second restart and twice as long each further time, at most 2 s, because a
    fork delays other sessions more than any call. If a child ends through no fault of a tool, the
    session is lost, and every call is answered with INFRA_ERROR.
    """

    def __init__(self, pool: SandboxPool, tool_set: ToolSet, seed: int) -> None:
        self._pool = pool
        self._tool_set = tool_set
        self._seed = seed
        self._indices: dict[str, int] = {STATE_CALL: STATE}
        for index, tool in enumerate(tool_set.tools):
            self._indices.setdefault(tool.name, index)
        self._child: Child | None = None
        self._cpu_spent = 0.0
        """CPU seconds of the children that have ended."""
        self._alive_at = 0.0
        """When the child was last known to live, in seconds of `time.monotonic`."""
        self._number = 0
        self._restart_pause_s = 0.0
        self._lost = ""
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Take a child for the session. Raises SandboxError or IsolationError."""
        tools, child = await self._pool.ready(self._tool_set)
        if self._lost:  # closed while this coroutine waited
            child.kill()
            raise SandboxError(self._lost)
        child.send(tools.start(self._seed))
        self._child, self._alive_at = child, time.monotonic()

    async def call(self, name: str, arguments: str) -> ToolAnswer:
        """Run one call until it ends, its time limit passes or its child dies.

        `arguments` is the JSON text of an object. Only the child parses it, so that hostile JSON
        costs the server nothing.
        """
        async with self._turn:
            if self._lost:
                return _answer(AnswerStatus.INFRA_ERROR, self._lost)
            if name not in self._indices:
                known = ", ".join(tool.name for tool in self._tool_set.tools) or "none"
                return _answer(AnswerStatus.TOOL_ERROR, f"unknown tool {name!r}; known: {known}")
            if self._cpu_spent >= self._pool.config.session_cpu_s:
                return self._out_of_cpu()
            try:
                return await self._ask(name, arguments)
            except (SandboxError, IsolationError) as error:
                self._lost = str(error)
                return _answer(AnswerStatus.INFRA_ERROR, self._lost)

    def close(self) -> None:
        """Kill the child; a running call is answered with INFRA_ERROR."""
        self._lost = "the session was closed; open a new one"
        if self._child:
            self._child.kill()
            self._child = None

    async def _ask(self, name: str, arguments: str) -> ToolAnswer:
        waited_s = 0.0 if self._child else await self._restart()
        child = self._child
        if child is None:
            raise SandboxError("the session was closed; open a new one")
        self._number += 1
        request = _Request(number=self._number, tool=self._indices[name], arguments=arguments)
        timeout_s = self._pool.config.call_timeout_s
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                with self._cpu_watched(child):
                    limit_bytes = STATE_LIMIT_BYTES if name == STATE_CALL else 0
                    body = request.model_dump_json().encode()
                    reply = await child.request(body, self._number, limit_bytes)
        except TimeoutError:
            await self._end(child)
            text = f"no answer within {timeout_s:g} s; the tool was stopped and {_RESTARTED}"
            return _answer(AnswerStatus.TIMEOUT, text, waited_s + timeout_s)
        except (ChildGone, ChildProtocolError) as fault:
            return await self._after_end(child, fault, waited_s + time.monotonic() - began)
        self._alive_at = time.monotonic()
        answer = await self._decoded(child, reply, self._alive_at - began)
        if waited_s:
            answer = answer.model_copy(update={"seconds": answer.seconds + waited_s})
        return answer

    @contextmanager
    def _cpu_watched(self, child: Child) -> Iterator[None]:
        """Kill `child` when the session has used up its CPU seconds; it has one thread.

        The kernel has the same limit for each child, but it does not know of those before.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            if timer is not None:
                child.cpu_s()
            left_s = self._pool.config.session_cpu_s - self._cpu_spent - child.cpu_seen_s
            if left_s <= 0:
                child.kill()
            else:
                timer = loop.call_later(max(left_s, _SHORTEST_LOOK_S), look)

        began = loop.time()
        look()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            if loop.time() - began > _SHORTEST_LOOK_S:
                child.cpu_s()

    async def _restart(self) -> float:
        """Take another child; return how long the session had to wait because its last one ended.

        That is the tool's own doing, and part of the time that its calls take.
        """
        pause_s = self._restart_pause_s
        self._restart_pause_s = min(2 * pause_s or FIRST_PAUSE_S, LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)
        if not self._lost:
            await self._start_when_there_is_room()
        return pause_s

    async def _start_when_there_is_room(self) -> None:
        until = time.monotonic() + self._pool.config.open_wait_s
        while True:
            try:
                return await self.start()
            except SandboxFullError:
                if self._lost or time.monotonic() > until:
                    raise
            await asyncio.sleep(FIRST_PAUSE_S)

    async def _decoded(self, child: Child, reply: Reply, elapsed: float) -> ToolAnswer:
        try:
            text = reply.text.decode()
        except UnicodeDecodeError:
            return await self._after_end(child, ChildProtocolError("a malformed answer"), elapsed)
        return ToolAnswer(
            status=AnswerStatus.TOOL_ERROR if reply.failed else AnswerStatus.OK,
            text=text,
            seconds=reply.wall_s if -_DOUBT_S < reply.wall_s - elapsed < 0 else elapsed,
            cpu_seconds=min(reply.cpu_s, elapsed),
            truncated=reply.truncated,
        )

    async def _after_end(
        self, child: Child, fault: ChildGone | ChildProtocolError, elapsed: float
    ) -> ToolAnswer:
        grace_s = _GRACE_S if isinstance(fault, ChildGone) else 0.0
        ended = await self._end(child, grace_s)
        if self._lost:
            return _answer(AnswerStatus.INFRA_ERROR, self._lost, elapsed)
        if isinstance(fault, ChildProtocolError):
            text = f"the tool broke its connection ({fault}); {_RESTARTED}"
            return _answer(AnswerStatus.TOOL_ERROR, text, elapsed)
        if child.orphaned:
            raise SandboxError("the sandbox's fork server died; open a new session")
        if self._cpu_spent >= self._pool.config.session_cpu_s:
            return self._out_of_cpu(elapsed)
        if ended is not None and ended.over:
            text = f"the session had too many files, or too much in them; {_RESTARTED}"
            return _answer(AnswerStatus.TOOL_ERROR, text, elapsed)
        # Whatever else kills a process is the tool's own doing: a tool that could call its death a
        # failure of the machine would have its wrong answers taken back.
        killed = ended is not None and ended.killed and not child.stopped
        if killed and self._pool.oom.moved_since(self._alive_at):
            raise SandboxError(
                "memory ran out, and the system killed the session's process; open a new session"
            )
        how = "closed its connection" if child.stopped or ended is None else str(ended)
        text = f"the tool ended its own process ({how}); {_RESTARTED}"
        return _answer(AnswerStatus.TOOL_ERROR, text, elapsed)

    def _out_of_cpu(self, elapsed: float = 0.0) -> ToolAnswer:
        limit_s = self._pool.config.session_cpu_s
        text = f"the session used up its {limit_s} CPU seconds; no tool answers any more"
        return _answer(AnswerStatus.TIMEOUT, text, elapsed)

    async def _end(self, child: Child, grace_s: float = 0.0) -> Exit | None:
        """Kill `child` unless it ends by itself within `grace_s`, and add up its CPU time.

        Returns how it ended; None if that is unknown: the zygote died, or the kernel takes long.
        """
        self._child = None
        ended = await child.ended(grace_s) if grace_s else None
        child.cpu_s()
        child.kill()
        ended = ended or await child.ended()
        self._cpu_spent += ended.cpu_s if ended else child.cpu_seen_s
        if ended and ended.out_of_cpu:  # the kernel counts in ticks, and may report a little less
            self._cpu_spent = max(self._cpu_spent, self._pool.config.session_cpu_s)
        return ended


def _answer(status: AnswerStatus, text: str, seconds: float = 0.0) -> ToolAnswer:
    return ToolAnswer(status=status, text=text, seconds=seconds)
