"""Tool sets in sandboxed sessions: classes with state, compiled code, seeds, import profiles."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import ConfigError, SandboxError
from envs.sandbox import compile as sandbox_compile
from envs.sandbox.compile import SOURCE_LIMIT_BYTES, CompiledTools, ToolCompiler
from envs.sandbox.plan import package_folder
from envs.sandbox.process import Child, ChildProtocolError
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=5)
BANK = """
import dataclasses

@dataclasses.dataclass
class Booking:
    name: "str"
    amount: int

class Bank:
    def __init__(self):
        self._balances = {"ada": 100}
        self._bookings = []

    def balance(self, name):
        return self._balances[name]

    def withdraw(self, name, amount):
        if amount > self._balances[name]:
            raise ValueError(f"only {self._balances[name]} left")
        self._balances[name] -= amount
        self._bookings.append(Booking(name, amount))
        return self._balances[name]

    def bookings(self):
        return [dataclasses.asdict(booking) for booking in self._bookings]

def fee():
    return 2
"""


def named(**tools: tuple[str, str]) -> ToolSet:
    """Return a set of tools by name; each is a source and the function's name in it."""
    return ToolSet(
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in tools),
        sources=tuple(source for source, _ in tools.values()),
        functions=tuple(function for _, function in tools.values()),
    )


def methods(source: str, *functions: str) -> ToolSet:
    """Return one tool per function of one source, each named after it."""
    return named(**{name.rpartition(".")[2]: (source, name) for name in functions})


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[SandboxPool]:
    pool = SandboxPool(CONFIG)
    await pool.start()
    yield pool
    await pool.close()


async def opened(pool: SandboxPool, tools: ToolSet, seed: int = 1) -> SandboxSession:
    session = SandboxSession(pool, tools, seed)
    await session.start()
    return session


async def text(session: SandboxSession, tool: str, /, **arguments: object) -> str:
    return (await session.call(tool, json.dumps(arguments))).text


class TestClasses:
    async def test_bank_keeps_its_state_in_its_session(self, pool: SandboxPool) -> None:
        bank = methods(BANK, "Bank.balance", "Bank.withdraw", "Bank.bookings", "fee")
        trial, execution = await opened(pool, bank), await opened(pool, bank)
        assert await text(trial, "withdraw", name="ada", amount=100) == "0"
        assert await text(trial, "withdraw", name="ada", amount=1) == "ValueError: only 0 left"
        assert await text(trial, "balance", name="ada") == "0"
        assert await text(trial, "bookings") == '[{"name": "ada", "amount": 100}]'
        assert await text(trial, "fee") == "2"
        assert await text(execution, "balance", name="ada") == "100"

    async def test_equal_sources_are_one_module(self, pool: SandboxPool) -> None:
        shared = "log = []\ndef put(x):\n    log.append(x)\ndef get():\n    return log\n"
        session = await opened(pool, named(a=(shared, "put"), b=(shared, "get")))
        await session.call("a", '{"x": 1}')
        assert await text(session, "b") == "[1]"
        apart = await opened(pool, named(a=(shared, "put"), b=(shared + "#", "get")))
        await apart.call("a", '{"x": 1}')
        assert await text(apart, "b") == "[]"

    async def test_state_is_gone_after_the_process_ended(self, pool: SandboxPool) -> None:
        source = BANK + "\ndef die():\n    import os\n    os._exit(1)\n"
        bank = methods(source, "Bank.balance", "Bank.withdraw", "die")
        session = await opened(pool, bank)
        await text(session, "withdraw", name="ada", amount=60)
        await session.call("die", "{}")
        assert await text(session, "balance", name="ada") == "100"

    async def test_a_class_that_cannot_be_made_or_lacks_the_method(self, pool: SandboxPool) -> None:
        source = """
made = 0
class Picky:
    def __init__(self):
        global made
        made += 1
        if made == 1:
            raise ValueError("not yet")
    def ask(self):
        return made
class Two:
    def __init__(self, x): pass
"""
        tools = methods(source, "Picky.ask", "Picky.tell", "Two.go", "None.such")
        session = await opened(pool, tools)
        assert await text(session, "ask") == "ValueError: not yet"
        assert await text(session, "ask") == "2"
        assert "defines no method tell of class Picky" in await text(session, "tell")
        assert "missing 1 required positional argument" in await text(session, "go")
        assert "defines no class None" in await text(session, "such")


class TestCompilation:
    async def test_hostile_sources_cost_only_their_tools(self, pool: SandboxPool) -> None:
        pid = pool.zygote_pid
        tools = named(
            huge=("x = 1 #" + "x" * SOURCE_LIMIT_BYTES, "x"),
            deep=("(" * 50_000 + ")" * 50_000, "x"),
            memory=("x = (" + "1," * 1_000_000 + ")", "x"),
            surrogate=("def f(): return '\ud800'", "f"),
            null=("x = '\0'", "x"),
            well=("def well():\n    return 'well'", "well"),
        )
        session = await opened(pool, tools)
        assert "a source of at most 4194304 bytes" in await text(session, "huge")
        for name in ("deep", "surrogate", "null"):
            assert (await session.call(name, "{}")).status is AnswerStatus.TOOL_ERROR, name
        assert await text(session, "well") == "well"
        assert pool.zygote_pid == pid

    async def test_bomb_is_stopped_and_remembered(self) -> None:
        hasty = SandboxPool(CONFIG.model_copy(update={"call_timeout_s": 0.4}))
        await hasty.start()
        # constant folding multiplies strings up to a limit: many of them take seconds
        bomb = "x = [" + ",".join(f"('a' * 4000, 'b' * 4000, {n})" for n in range(60_000)) + "]"
        tools = named(bomb=(bomb, "x"), well=("def well(): return 1", "well"))
        first = await opened(hasty, tools)
        error = await text(first, "bomb")
        assert "could not be loaded" in error
        assert await text(first, "well") == "1"
        known = await hasty.compiled(tools)
        second = await opened(hasty, tools)
        assert await text(second, "bomb") == error
        assert await hasty.compiled(tools) is known, "compiled again"
        await hasty.close()

    async def test_each_tool_set_is_compiled_once(self, pool: SandboxPool) -> None:
        children: list[Child] = []

        async def acquire() -> Child:
            children.append(await pool.acquire())
            return children[-1]

        compiler = ToolCompiler(acquire, 5, 20)
        tools = named(a=("def f(): return 1", "f"), b=("def f(: pass", "f"))
        codes = await asyncio.gather(*(compiler.compiled(tools) for _ in range(5)))
        assert len(children) == 1
        assert not children[0].alive, "a child that met an error is thrown away"
        assert all(code is codes[0] for code in codes)
        assert codes[0].functions == ((0, "f"), (1, "f"))
        assert codes[0].errors[1].startswith("SyntaxError")

    async def test_who_compiled_a_small_tool_set_is_its_first_session(
        self, pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        children: list[Child] = []

        async def acquire() -> Child:
            children.append(await pool.acquire())
            return children[-1]

        compiler = ToolCompiler(acquire, 5, 20)
        small = named(a=("def f(): return 1", "f"))
        await compiler.compiled(small)
        assert compiler.take_child(small) is children[0] and children[0].alive
        assert compiler.take_child(small) is None, "given once"
        children[0].kill()

        large = named(a=("def f(): return 1 #" + "x" * 65_536, "f"))
        await compiler.compiled(large)
        assert compiler.take_child(large) is None and not children[1].alive

        monkeypatch.setattr(sandbox_compile, "_SPARE_S", 0.01)
        other = named(a=("def f(): return 2", "f"))
        await compiler.compiled(other)
        while children[2].alive:
            await asyncio.sleep(0.01)
        assert compiler.take_child(other) is None, "nobody came for it"

    async def test_sessions_after_the_first_have_children_of_their_own(
        self, pool: SandboxPool
    ) -> None:
        tools = named(note=("seen = []\ndef note(x):\n    seen.append(x)\n    return seen", "note"))
        sessions = await asyncio.gather(*(opened(pool, tools, seed) for seed in range(4)))
        texts = [await text(session, "note", x=n) for n, session in enumerate(sessions)]
        assert texts == ["[0]", "[1]", "[2]", "[3]"]
        for session in sessions:
            session.close()

    async def test_a_child_that_compiled_answers_within_the_usual_limit(
        self, pool: SandboxPool
    ) -> None:
        child = await pool.acquire()
        request = json.dumps({"compile": 0, "limit": 2**22}).encode()
        await child.request(request + b"\nx = 1", 0, 2**22)
        with pytest.raises(ChildProtocolError, match="over the size limit"):
            await child.request(request + b"\nx = " + repr("x" * 2**21).encode(), 0)
        child.kill()

    async def test_a_tool_set_is_compiled_within_its_cpu_seconds(self, pool: SandboxPool) -> None:
        source = f"x = [{'a.b(c),' * 20_000}]\ndef f(): pass\n"
        tools = named(**{f"f{n}": (f"# {n}\n{source}", "f") for n in range(12)})
        compiled = await ToolCompiler(pool.acquire, 30, 0.5).compiled(tools)
        assert 0 not in compiled.errors
        assert "its tool set used up 0.5 CPU seconds" in compiled.errors[11]

    async def test_failed_sandbox_is_not_remembered(self, pool: SandboxPool) -> None:
        broken = True

        async def acquire() -> Child:
            if broken:
                raise SandboxError("no child")
            return await pool.acquire()

        compiler = ToolCompiler(acquire, 5, 20)
        tools = named(a=("def f(): return 1", "f"))
        with pytest.raises(SandboxError, match="no child"):
            await compiler.compiled(tools)
        broken = False
        assert isinstance(await compiler.compiled(tools), CompiledTools)

    async def test_first_call_is_quicker_with_code_than_with_source(
        self, pool: SandboxPool
    ) -> None:
        """Compared inside one session, where neither scheduling nor the fork counts."""
        functions = [f"def f{n}(x):\n    return [y + {n} for y in x if y]" for n in range(400)]
        source = "\n".join(functions)
        measure = f"""
import marshal, time
SOURCE = {source!r}
def measure():
    began = time.perf_counter()
    code = compile(SOURCE, "s", "exec")
    compiled = time.perf_counter()
    dumped = marshal.dumps(code)
    start = time.perf_counter()
    marshal.loads(dumped)
    return (compiled - began) / (time.perf_counter() - start)
"""
        session = await opened(pool, named(measure=(measure, "measure")))
        assert float(await text(session, "measure")) > 5


async def test_seed_sets_random_and_nothing_else_differs(pool: SandboxPool) -> None:
    source = "import random\ndef draw(): return [random.random(), hash('text'), list({'b', 'a'})]"
    first, again, other = [
        json.loads(await text(await opened(pool, named(draw=(source, "draw")), seed), "draw"))
        for seed in (2**70, 2**70, 7)
    ]
    assert first == again
    assert first[0] != other[0]
    assert first[1:] == other[1:]
    assert pool.report
    assert pool.report.hash_seed == 0


async def test_numpy_profile() -> None:
    pytest.importorskip("numpy")
    isolation = IsolationConfig(required="seccomp", imports="numpy")
    pool = SandboxPool(CONFIG.model_copy(update={"isolation": isolation}))
    await pool.start()
    source = """
import numpy as np
from numpy.linalg import solve
def work():
    x = np.ones((120, 120)) + np.eye(120)
    y = solve(x @ x, np.arange(120.0))
    spectrum = np.abs(np.fft.fft(y))
    return [float(y[0]), float(spectrum.sum()), float(np.random.rand())]
def scipy():
    import scipy
"""
    tools = methods(source, "work", "scipy")
    texts = [await text(await opened(pool, tools, seed), "work") for seed in (5, 5, 2**40)]
    drawn = [json.loads(line)[2] for line in texts]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "ModuleNotFoundError" in await text(await opened(pool, tools), "scipy")
    assert "imports=numpy" in pool.isolation
    await pool.close()


async def test_missing_package_of_a_profile_is_a_config_error() -> None:
    assert importlib.util.find_spec("not_installed_anywhere") is None
    with pytest.raises(ConfigError, match=r"expected the package not_installed_anywhere"):
        package_folder("not_installed_anywhere")
