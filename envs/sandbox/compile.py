"""Compiles tool sets, each once in a separate child; sessions get code instead of source.

The server never reads the code. It comes from a process that untrusted source may have taken over,
and goes only to processes that would have run the same source anyway.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from envs.errors import SandboxError
from envs.sandbox.process import Child, ChildGone, ChildProtocolError
from envs.tools import ToolSet

SOURCE_LIMIT_BYTES = 4 * 2**20
_CODE_LIMIT_BYTES = 8 * 2**20
"""Largest code of one tool set."""
_CACHED_BYTES = 64 * 2**20
_CACHED_TOOL_SETS = 1_024
_SMALL_BYTES = 65_536
"""Largest total source whose compilation leaves hardly a trace in the memory of its process."""
_SPARE_S = 1.0
_CRASHES = 2
"""Number of sources that may crash the compiler before the rest of their tool set is refused."""
_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class CompiledTools:
    """A compiled tool set; `errors` maps modules to the reason why they could not be compiled."""

    functions: tuple[tuple[int, str], ...]
    """Module number and function name of each tool; equal sources are one module."""
    codes: tuple[bytes, ...]
    errors: dict[int, str]
    frame: bytes
    """The body of the start request, without the seed."""

    @classmethod
    def of(
        cls,
        functions: tuple[tuple[int, str], ...],
        codes: list[bytes],
        errors: dict[int, str],
        beside: Mapping[str, object] | None = None,
    ) -> "CompiledTools":
        """`beside` is the rest of the request: `setup`, `modules` and `files`, see ToolSet."""
        request = {
            "functions": functions,
            "sizes": [len(code) for code in codes],
            "errors": errors,
            **(beside or {}),
        }
        line = json.dumps(request)
        return cls(
            functions, tuple(codes), errors, b"\n".join((line[1:].encode(), b"".join(codes)))
        )

    def start(self, seed: int) -> bytes:
        """Return the request that makes a child a session of these tools.

        The frame is built once per tool set; the seed is put in front of its JSON.
        """
        return b'{"seed": %d, %b' % (seed, self.frame)


def module_numbers(tool_set: ToolSet) -> dict[str, int]:
    """Return the number of each source of a tool set; equal sources are one module."""
    sources = dict.fromkeys((*tool_set.sources, *tool_set.modules.values()))
    return {source: number for number, source in enumerate(sources)}


def _beside(tool_set: ToolSet, numbers: Mapping[str, int]) -> dict[str, object]:
    """Return what a session needs beside the code of its tools."""
    found: dict[str, object] = {"setup": tool_set.setup} if tool_set.setup else {}
    if tool_set.modules:
        found["modules"] = {name: numbers[text] for name, text in tool_set.modules.items()}
        found["files"] = tool_set.files
    return found


class ToolCompiler:
    """Compiles each tool set once, and caches the code of the most recently used ones.

    `acquire` returns fresh children; compiling one source may take `timeout_s` seconds, and all of
    a tool set `cpu_s` CPU seconds. A child that compiled a small tool set without errors has run
    none of its code, so it may become the first session of that tool set. This saves a fork.
    """

    def __init__(
        self, acquire: Callable[[], Awaitable[Child]], timeout_s: float, cpu_s: float
    ) -> None:
        self._acquire = acquire
        self._timeout_s = timeout_s
        self._cpu_s = cpu_s
        self._cached: OrderedDict[str, CompiledTools] = OrderedDict()
        self._bytes = 0
        self._running: dict[str, asyncio.Task[CompiledTools]] = {}
        self._spare: dict[str, Child] = {}

    async def compiled(self, tool_set: ToolSet) -> CompiledTools:
        """Return the code of `tool_set`. Raises SandboxError or IsolationError."""
        digest = tool_set.digest
        if digest in self._cached:
            self._cached.move_to_end(digest)
            return self._cached[digest]
        if digest not in self._running:
            task = asyncio.create_task(self._compile(tool_set))
            self._running[digest] = task
            task.add_done_callback(lambda done: self._keep(digest, done))
        return await asyncio.shield(self._running[digest])

    def take_child(self, tool_set: ToolSet) -> Child | None:
        """Return the child that has just compiled `tool_set`, if it is as good as a fresh one.

        Each such child is returned only once.
        """
        child = self._spare.pop(tool_set.digest, None)
        return child if child and child.alive else None

    def _spare_child(self, digest: str, child: Child) -> None:
        """Keep `child` for a second, for the session that waits for the code."""

        def give_up() -> None:
            if self._spare.get(digest) is child:
                del self._spare[digest]
                child.kill()

        self._spare[digest] = child
        asyncio.get_running_loop().call_later(_SPARE_S, give_up)

    def _keep(self, digest: str, done: asyncio.Task[CompiledTools]) -> None:
        del self._running[digest]
        if done.cancelled() or done.exception():
            return
        self._cached[digest] = done.result()
        self._bytes += len(done.result().frame)
        while self._bytes > _CACHED_BYTES or len(self._cached) > _CACHED_TOOL_SETS:
            _, oldest = self._cached.popitem(last=False)
            self._bytes -= len(oldest.frame)

    async def _compile(self, tool_set: ToolSet) -> CompiledTools:
        numbers = module_numbers(tool_set)
        run = _Run(self._acquire, self._timeout_s, self._cpu_s)
        try:
            for number, source in enumerate(numbers):
                await run.add(number, source)
            if child := run.clean_child(sum(map(len, numbers))):
                self._spare_child(tool_set.digest, child)
        finally:
            run.end()
        pairs = zip(tool_set.sources, tool_set.functions, strict=True)
        functions = tuple((numbers[source], name) for source, name in pairs)
        return CompiledTools.of(functions, run.codes, run.errors, _beside(tool_set, numbers))


class _Run:
    """The compilation of one tool set; a child that crashes or times out is replaced."""

    def __init__(
        self, acquire: Callable[[], Awaitable[Child]], timeout_s: float, cpu_s: float
    ) -> None:
        self._acquire = acquire
        self._timeout_s = timeout_s
        self._cpu_s = self._cpu_left_s = cpu_s
        self._child: Child | None = None
        self._crashes = 0
        self._left = _CODE_LIMIT_BYTES
        self.codes: list[bytes] = []
        self.errors: dict[int, str] = {}

    def end(self) -> None:
        if self._child:
            self._child.kill()
            self._child = None

    def clean_child(self, size: int) -> Child | None:
        """Hand over the child if nothing failed and the sources are at most _SMALL_BYTES."""
        if self._crashes or self.errors or size > _SMALL_BYTES:
            return None
        child, self._child = self._child, None
        return child

    async def add(self, number: int, source: str) -> None:
        """Compile module `number`. Raises SandboxError if the sandbox itself failed."""
        code, error = b"", ""
        text = source.encode("utf-8", "surrogatepass")
        if len(text) > SOURCE_LIMIT_BYTES:
            error = f"expected a source of at most {SOURCE_LIMIT_BYTES} bytes, found {len(text)}"
        elif self._crashes >= _CRASHES:
            error = f"not compiled: {_CRASHES} other sources of its tool set crashed the compiler"
        elif self._cpu_left_s <= 0:
            error = f"not compiled: its tool set used up {self._cpu_s:g} CPU seconds"
        else:
            code, error = await self._ask(number, text)
        self.codes.append(code)
        self._left -= len(code)
        if error:
            self.errors[number] = error

    async def _ask(self, number: int, text: bytes) -> tuple[bytes, str]:
        child = self._child = self._child or await self._acquire()
        before_s = child.cpu_seen_s
        try:
            return await self._asked(child, number, text)
        finally:
            child.cpu_s()
            self._cpu_left_s -= child.cpu_seen_s - before_s

    async def _asked(self, child: Child, number: int, text: bytes) -> tuple[bytes, str]:
        line = json.dumps({"compile": number, "limit": self._left})
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await child.request(line.encode() + b"\n" + text, number, self._left)
        except TimeoutError:
            error = f"the compiler was stopped after {self._timeout_s:g} s"
        except ChildProtocolError as fault:
            error = f"the compiler broke its connection ({fault})"
        except ChildGone:
            ended = await child.ended(_GRACE_S)
            # Without a report the zygote may live: the kernel takes long to end a large process.
            if child.orphaned or (ended and ended.killed):
                raise SandboxError(
                    "the sandbox ended while it compiled the tools; open a new session"
                ) from None
            error = f"the compiler ended ({ended or 'without a report'})"
        else:
            if not reply.failed:
                return reply.text, ""
            return b"", reply.text.decode("utf-8", "replace") or "without a reason"
        self._crashes += 1
        self.end()
        return b"", error
