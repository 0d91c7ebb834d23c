"""What a child's replies can do to the server that reads them."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, ToolServerConfig
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec

MALFORMED = {
    "many unknown keys": "(b'{' + b','.join(b'\"%d\":0' % n for n in range(39_000)) + b'}')",
    "the keys of an answer": "json.dumps({'number': 1, 'status': 'ok', 'text': 'x' * 99_999,"
    " 'truncated': False, 'seconds': 0.0, 'cpu_seconds': 0.0}).encode()",
    "deep lists": "b'[' * 300_000",
    "a status that is none": "frame(b'x' * 60_000, status=2)",
    "flags that are none": "frame(b'x' * 60_000, flags=2)",
    "the number of another call": "frame(b'x' * 60_000, number=7)",
    "no text": "frame(b'\\xff' * 60_000)",
    "a text over the limit": "frame(b'x' * 300_000)",
    "more than one": "frame(b'x') * 9_000",
    "less than one": "frame(b'x' * 9, size=10)",
}
SOURCE = """
import json, os, struct, time
def frame(text=b"", number=1, status=0, flags=0, size=None):
    size = len(text) if size is None else size
    return struct.pack(">IIBBQQ", size, number, status, flags, 0, 0) + text
def old(body):
    return struct.pack(">I", len(body)) + body
"""
_SERVER_CPU_S = 0.1
"""Much more than the server needs to refuse one frame, and less than to parse one."""


def tool_set(code: str) -> ToolSet:
    source = f"{SOURCE}\ndef way():\n    {code}\n"
    spec = ToolSpec(name="way", description="", parameters={})
    return ToolSet(tools=(spec,), sources=(source,), functions=("way",))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[SandboxPool]:
    config = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=5)
    pool = SandboxPool(config)
    await pool.start()
    yield pool
    await pool.close()


async def answer(pool: SandboxPool, code: str) -> ToolAnswer:
    session = SandboxSession(pool, tool_set(code), seed=1)
    await session.start()
    found = await session.call("way", "{}")
    session.close()
    return found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("way", [way for way in MALFORMED if way != "less than one"])
async def test_a_malformed_frame_costs_the_server_nothing(pool: SandboxPool, way: str) -> None:
    for body in (MALFORMED[way], f"old({MALFORMED[way]})"):
        code = f"body = {body}; os.write(3, body); time.sleep(60)"
        before = time.process_time()
        found = await answer(pool, code)
        assert found.status is AnswerStatus.TOOL_ERROR
        assert "broke its connection" in found.text
        assert time.process_time() - before < _SERVER_CPU_S


@pytest.mark.asyncio(loop_scope="module")
async def test_half_a_frame_is_an_answer_that_never_comes(pool: SandboxPool) -> None:
    code = f"os.write(3, {MALFORMED['less than one']}); os._exit(0)"
    assert (await answer(pool, code)).status is AnswerStatus.TOOL_ERROR


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_comes_in_few_pieces(pool: SandboxPool) -> None:
    crumbs = "[(os.write(3, bytes([b])), time.sleep(5e-3)) for b in frame(b'x' * 400)]"
    found = await answer(pool, crumbs)
    assert "too many pieces" in found.text
    halves = "body = frame(b'x' * 4_000); os.write(3, body[:99]); time.sleep(0.01); "
    found = await answer(pool, halves + "os.write(3, body[99:]); os._exit(0)")
    assert (found.status, len(found.text)) == (AnswerStatus.OK, 4_000)


@pytest.mark.asyncio(loop_scope="module")
async def test_times_are_no_longer_than_the_call(pool: SandboxPool) -> None:
    huge = "os.write(3, struct.pack('>IIBBQQ', 2, 1, 0, 1, 2**64 - 1, 2**64 - 1) + b'[]')"
    began = time.monotonic()
    found = await answer(pool, f"{huge}; os._exit(0)")
    assert found.truncated
    assert max(found.seconds, found.cpu_seconds) <= time.monotonic() - began


@pytest.mark.asyncio(loop_scope="module")
async def test_large_and_odd_texts_arrive_whole(pool: SandboxPool) -> None:
    limit = pool.config.reply_limit_bytes
    for code, text in (
        ("return '\\0' * 65_536", "\0" * limit),
        ("return 'é' * 99_999", "é" * (limit // 2)),
        ("return '\\ud800x'", "?x"),
        ("return ''", ""),
    ):
        found = await asyncio.wait_for(answer(pool, code), 20)
        assert (found.status, found.text) == (AnswerStatus.OK, text)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_tool_that_says_it_took_no_time_is_not_believed(pool: SandboxPool) -> None:
    late = "time.sleep(0.5); os.write(3, struct.pack('>IIBBQQ', 2, 1, 0, 0, 0, 0) + b'[]')"
    assert (await answer(pool, late)).seconds > 0.45
    assert (await answer(pool, "return 1")).seconds < 0.45


@pytest.mark.asyncio(loop_scope="module")
async def test_the_wait_for_a_new_process_is_the_time_of_the_tool_that_ended_its_own(
    pool: SandboxPool,
) -> None:
    session = SandboxSession(pool, tool_set("os._exit(0)"), seed=1)
    await session.start()
    seconds = [(await session.call("way", "{}")).seconds for _ in range(4)]
    session.close()
    assert seconds[2] > 0.25
    assert seconds[3] > 0.5
