"""Sandboxed sessions: answers, state, and what happens when processes die."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError
from envs.sandbox.inside.child import cut
from envs.sandbox.inside.modules import error_text
from envs.sandbox.inside.values import as_text
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

ROOT = Path(__file__).resolve().parents[3]
ANY_KERNEL = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=10)
PROFILE = """
    json re math datetime calendar csv io binascii unicodedata itertools string collections
    statistics fractions decimal zoneinfo dataclasses heapq bisect random hashlib uuid textwrap
"""
COUNTER = """
import random
count = 0
print("loading", count)
def bump(step=1):
    global count
    count += step
    return count
def draw():
    return random.random()
def die():
    import os
    os._exit(7)
"""


def tool_set(source: str, *functions: str) -> ToolSet:
    """Return a set of one tool per function, each with `source` for itself."""
    return ToolSet(
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in functions),
        sources=(source,) * len(functions),
        functions=functions,
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[SandboxPool]:
    pool = SandboxPool(ANY_KERNEL)
    await pool.start()
    yield pool
    await pool.close()


async def opened(pool: SandboxPool, tools: ToolSet, seed: int = 1) -> SandboxSession:
    session = SandboxSession(pool, tools, seed)
    await session.start()
    return session


@pytest.mark.asyncio(loop_scope="module")
class TestSession:
    async def test_state_lasts_for_the_session_and_no_longer(self, pool: SandboxPool) -> None:
        tools = tool_set(COUNTER, "bump")
        first = await opened(pool, tools)
        texts = [(await first.call("bump", '{"step": 2}')).text for _ in range(3)]
        assert texts == ["2", "4", "6"]
        second = await opened(pool, tools)
        assert (await second.call("bump", "{}")).text == "1"

    async def test_equal_seeds_draw_equal_numbers(self, pool: SandboxPool) -> None:
        tools = tool_set(COUNTER, "draw")
        sessions = [await opened(pool, tools, seed) for seed in (5, 5, 6)]
        draws = [(await session.call("draw", "{}")).text for session in sessions]
        assert draws[0] == draws[1] != draws[2]

    async def test_tools_have_namespaces_of_their_own(self, pool: SandboxPool) -> None:
        twins = ToolSet(
            tools=tuple(ToolSpec(name=n, description="", parameters={}) for n in ("f", "g", "f")),
            sources=("x = 1\ndef f(): return x", "def f(): return x", "def f(): return 'twin'"),
            functions=("f", "f", "f"),
        )
        session = await opened(pool, twins)
        assert (await session.call("f", "{}")).text == "1"
        assert (await session.call("g", "{}")).text == "NameError: name 'x' is not defined"

    async def test_wrong_arguments_are_told_without_a_traceback(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set(COUNTER, "bump"))
        answer = await session.call("bump", '{"stride": 2}')
        assert answer.status is AnswerStatus.TOOL_ERROR
        assert answer.text == "TypeError: bump() got an unexpected keyword argument 'stride'"

    async def test_odd_numbers_arrive_as_written(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set("def same(x): return x", "same"))
        assert (await session.call("same", '{"x": 1e999}')).text == "Infinity"
        assert (await session.call("same", '{"x": 123456789012345678901}')).text.endswith("901")
        assert (await session.call("same", '{"x": "\\ud800"}')).text == "?"
        huge = await session.call("same", '{"x": ' + "9" * 5_000 + "}")
        assert huge.status is AnswerStatus.TOOL_ERROR

    async def test_source_that_fails_to_load_spoils_only_its_own_tool(
        self, pool: SandboxPool
    ) -> None:
        tools = ToolSet(
            tools=tuple(ToolSpec(name=n, description="", parameters={}) for n in "abcd"),
            sources=("def a(: pass", "1/0\ndef b(): 1", "import sys\nsys.exit()", COUNTER),
            functions=("a", "b", "c", "bump"),
        )
        session = await opened(pool, tools)
        texts = [(await session.call(name, "{}")).text for name in "abcd"]
        assert "could not be loaded: SyntaxError" in texts[0]
        assert "could not be loaded: ZeroDivisionError" in texts[1]
        assert "could not be loaded: SystemExit" in texts[2]
        assert texts[3] == "1"

    async def test_missing_function_and_unknown_tool(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set("other = 1", "missing"))
        assert "defines no function missing" in (await session.call("missing", "{}")).text
        answer = await session.call("nobody", "{}")
        assert answer.status is AnswerStatus.TOOL_ERROR
        assert answer.text == "unknown tool 'nobody'; known: missing"

    async def test_dead_child_restarts_from_the_initial_state(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set(COUNTER, "bump", "die"))
        await session.call("bump", "{}")
        answer = await session.call("die", "{}")
        assert answer.status is AnswerStatus.TOOL_ERROR
        assert "exit code 7" in answer.text
        assert "starts again from the beginning" in answer.text
        assert (await session.call("bump", "{}")).text == "1"

    async def test_who_keeps_ending_children_waits_longer_each_time(
        self, pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = await opened(pool, tool_set(COUNTER, "bump", "die"))
        waits: list[float] = []
        sleep = asyncio.sleep

        async def remembered(seconds: float) -> None:
            waits.append(seconds)
            await sleep(seconds)

        monkeypatch.setattr(asyncio, "sleep", remembered)
        for _ in range(5):
            await session.call("die", "{}")
        assert waits == [0.0, 0.25, 0.5, 1.0]

    async def test_session_closed_while_it_waits_takes_no_child(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set(COUNTER, "die"))
        for _ in range(2):
            await session.call("die", "{}")
        waiting = asyncio.create_task(session.call("die", "{}"))
        await asyncio.sleep(0)
        session.close()
        assert (await waiting).status is AnswerStatus.INFRA_ERROR

    async def test_tools_come_after_whoever_else_wants_the_core(self, pool: SandboxPool) -> None:
        assert pool.zygote_pid
        zygote = psutil.Process(pool.zygote_pid)
        family = [zygote, *zygote.children(recursive=True)]
        assert len(family) > 1
        assert {process.nice() for process in family} == {min(19, psutil.Process().nice() + 5)}

    async def test_nobody_is_made_more_important_than_it_was(self) -> None:
        """Ray's workers are nice already: what they start must not overtake them."""
        turns = "import os; from envs.sandbox import confine as s; os.nice(15); "
        script = f"{turns}s.use_short_time_slices(5); print(os.getpriority(os.PRIO_PROCESS, 0))"
        found = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await found.communicate()
        assert int(said) == 19

    async def test_calls_at_once_run_one_after_the_other(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set(COUNTER, "bump"))
        answers = await asyncio.gather(*(session.call("bump", "{}") for _ in range(20)))
        assert [answer.text for answer in answers] == [str(n) for n in range(1, 21)]

    async def test_closed_session_answers_infrastructure_error(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set("def wait():\n    while True: pass", "wait"))
        running = asyncio.create_task(session.call("wait", "{}"))
        await asyncio.sleep(0)
        session.close()
        assert (await running).status is AnswerStatus.INFRA_ERROR

    async def test_kernel_books_cpu_time(self, pool: SandboxPool) -> None:
        session = await opened(pool, tool_set("def work(): return sum(range(10**6))", "work"))
        answer = await session.call("work", "{}")
        assert 0 < answer.cpu_seconds <= answer.seconds

    async def test_profile_can_be_imported(self, pool: SandboxPool) -> None:
        source = f"def f(): return [__import__(name).__name__ for name in {PROFILE.split()}]"
        session = await opened(pool, tool_set(source, "f"))
        assert json.loads((await session.call("f", "{}")).text) == PROFILE.split()

    async def test_lazy_imports_of_the_library_work(self, pool: SandboxPool) -> None:
        source = """
import datetime, zoneinfo
def f():
    day = datetime.datetime.strptime("11 July 1302", "%d %B %Y")
    zone = zoneinfo.ZoneInfo("UTC")
    return [day.isoformat(), "ß".encode("idna").decode(), str(zone), "é".encode("utf-16").hex()]
"""
        session = await opened(pool, tool_set(source, "f"))
        assert (
            await session.call("f", "{}")
        ).text == '["1302-07-11T00:00:00", "ss", "UTC", "fffee900"]'


async def test_killed_zygote_is_an_infrastructure_error_and_is_replaced() -> None:
    pool = SandboxPool(ANY_KERNEL)
    await pool.start()
    session = await opened(pool, tool_set("def wait():\n    while True: pass", "wait"))
    running = asyncio.create_task(session.call("wait", "{}"))
    await asyncio.sleep(0)
    zygote_pid = pool.zygote_pid
    assert zygote_pid
    os.kill(zygote_pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        answers = [await running, await session.call("wait", "{}")]
    assert {answer.status for answer in answers} == {AnswerStatus.INFRA_ERROR}
    fresh = await opened(pool, tool_set(COUNTER, "bump"))
    assert (await fresh.call("bump", "{}")).text == "1"
    assert pool.zygote_pid != zygote_pid
    await pool.close()
    with pytest.raises(SandboxError, match="closed"):
        await pool.acquire()


async def test_a_zygote_that_hangs_is_replaced() -> None:
    pool = SandboxPool(ANY_KERNEL, silent_s=0.5)
    await pool.start()
    zygote_pid = pool.zygote_pid
    assert zygote_pid
    zygote = psutil.Process(zygote_pid)
    # With namespaces, the fork server is the first process of its own namespace.
    family = [zygote, *zygote.children(recursive=True)]
    for process in family:
        process.suspend()
    async with asyncio.timeout(20):
        with pytest.raises(SandboxError, match=r"answered nothing for 0\.5 s"):
            while True:  # idle children first, which are stopped and die with it
                (await pool.acquire()).kill()
        fresh = await opened(pool, tool_set(COUNTER, "bump"))
        assert (await fresh.call("bump", "{}")).text == "1"
    assert pool.zygote_pid != zygote_pid
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 10)
    assert not alive
    await pool.close()


async def test_hundreds_of_sessions_open_at_once() -> None:
    pool = SandboxPool(ANY_KERNEL)
    await pool.start()
    sessions = await asyncio.gather(*(opened(pool, tool_set(COUNTER, "bump")) for _ in range(150)))
    answers = await asyncio.gather(*(session.call("bump", "{}") for session in sessions))
    assert [answer.text for answer in answers] == ["1"] * 150
    await pool.close()


async def test_child_has_no_descriptor_but_its_own() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_200)]
    try:  # the zygote's control socket gets a high number
        pool = SandboxPool(ANY_KERNEL)
        await pool.start()
    finally:
        for descriptor in crowd:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    source = """
import os
def open_ones():
    numbers = []
    for number in range(5_000):
        try:
            os.write(number, b"")
            numbers.append(number)
        except OSError as error:
            if error.errno != 9:
                numbers.append(number)
    return numbers
"""
    session = await opened(pool, tool_set(source, "open_ones"))
    assert (await session.call("open_ones", "{}")).text == "[0, 1, 2, 3]"
    await pool.close()


@pytest.mark.parametrize("strongest", get_args(IsolationLevel)[:3])
async def test_level_is_reported_and_a_weaker_one_than_required_refused(
    strongest: IsolationLevel,
) -> None:
    pool = SandboxPool(ANY_KERNEL, strongest)
    await pool.start()
    levels = get_args(IsolationLevel)
    assert pool.report
    assert levels.index(pool.report.level) >= levels.index(strongest)
    assert pool.isolation.startswith(f"{pool.report.level}/compute landlock=")
    await pool.close()
    if strongest != "namespaces":
        strict = SandboxPool(
            ToolServerConfig(isolation=IsolationConfig(required="namespaces")), strongest
        )
        with pytest.raises(IsolationError, match="expected isolation namespaces"):
            await strict.start()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 machine code")
@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("b'\\xb8\\x27\\0\\0\\0\\x0f\\x05\\xc3'", True),  # mov eax, 39 (getpid); syscall; ret
        (
            "b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3'",
            False,
        ),  # mov eax, 20 (i386 getpid); int 0x80; ret
        ("b'\\xb8\\x27\\0\\0\\x40\\x0f\\x05\\xc3'", False),  # the x32 number of getpid
    ],
    ids=["x86-64", "i386", "x32"],
)
def test_other_gates_into_the_kernel_kill(code: str, *, allowed: bool) -> None:
    script = f"""
import ctypes, mmap
from envs.sandbox import confine as sandbox_confine
from envs.sandbox import syscalls as sandbox_syscalls
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write({code})
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
sandbox_confine.drop_privileges()
sandbox_confine.SyscallFilter("x86_64", sandbox_syscalls.ZYGOTE_RULES).install()
function()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=20
    )
    assert ended.returncode == (0 if allowed else -signal.SIGSYS), ended.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, None, True]}, '{"a": [1, null, true]}'),
        ({"b", "a"}, '["a", "b"]'),
        ({(1, 2): 3}, '{"[1, 2]": 3}'),
        ("é" * 3, "ééé"),
    ],
)
def test_values_as_text(value: object, text: str) -> None:
    assert as_text(value) == text


def test_text_is_cut_between_characters() -> None:
    assert cut("ééé", 6) == ("ééé".encode(), False)
    assert cut("ééé", 5) == ("éé".encode(), True)
    assert cut("abcdef", 3) == (b"abc", True)
    assert error_text(ValueError("why")) == "ValueError: why"
    assert error_text(KeyError()) == "KeyError"
