"""Connections before the token: how long a head may be and take, and how many there may be."""

import asyncio
import contextlib

import httpx
import psutil
import pytest

from envs.server import connection_limits
from envs.server.client import ToolClient
from envs.server.connection_limits import HEAD_BYTES, ConnectionLimits
from tests.envs.server.tool_serving import CONFIG, TOKEN, TOOLS, Served, serving

DEADLINE_S = 20
BEARER = f"authorization: Bearer {TOKEN}\r\n"


async def dial(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", served.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the server ends the connection."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def test_a_head_without_end_is_cut_off_and_held_nowhere() -> None:
    async with serving() as served, asyncio.timeout(DEADLINE_S):
        before = psutil.Process().memory_info().rss
        reader, writer = await dial(served)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 * 2**20 and not reader.at_eof():
                writer.write(b"x-padding: " + b"x" * 65_536 + b"\r\n")
                sent += 65_536
                await writer.drain()
        await ended(reader)
        assert sent < 64 * 2**20
        assert psutil.Process().memory_info().rss - before < 32 * 2**20
        writer.close()


async def test_a_head_that_is_too_long_is_refused_though_it_came_at_once() -> None:
    async with serving() as served, asyncio.timeout(DEADLINE_S):
        reader, writer = await dial(served)
        lines = "".join(f"x-{number}: {'x' * 100}\r\n" for number in range(HEAD_BYTES // 100))
        head = f"GET /health HTTP/1.1\r\nhost: localhost\r\n{BEARER}{lines}\r\n"
        writer.write(head.encode())
        answer = await ended(reader)
        assert answer.split()[1] in (b"400", b"431")
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: loc"])
async def test_a_head_that_does_not_come_ends_the_connection(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_S", 0.2)
    async with serving(limits=ConnectionLimits(1_000)) as served, asyncio.timeout(DEADLINE_S):
        reader, writer = await dial(served)
        writer.write(sent)
        for _ in range(10):  # a byte now and then does not help
            await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                writer.write(b"x" if sent else b"")
        assert await ended(reader) == b""
        writer.close()


async def test_the_deadline_is_for_heads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_S", 0.2)
    async with serving(limits=ConnectionLimits(1_000)) as served, asyncio.timeout(DEADLINE_S):
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}) as http:
            for _ in range(2):
                assert (await http.get(f"{served.address}/health")).status_code == 200
                await asyncio.sleep(0.5)  # an admitted connection may rest between requests
        client = ToolClient(served.address, CONFIG, TOKEN)
        session = await client.open_session(TOOLS, 1, "trial")
        await asyncio.sleep(0.5)
        assert served.host.knows(session.id)
        await session.close()
        await client.close()


async def test_unknown_clients_make_way_for_known_ones() -> None:
    limits = ConnectionLimits(64)
    async with serving(limits=limits) as served, asyncio.timeout(DEADLINE_S):
        client = ToolClient(served.address, CONFIG, TOKEN)
        early = await client.open_session(TOOLS, 1, "trial")
        idle = [await dial(served) for _ in range(200)]
        late = ToolClient(served.address, CONFIG, TOKEN)
        session = await late.open_session(TOOLS, 2, "trial")
        gone = [ended(reader) for reader, _ in idle[: 200 - limits.most_unknown]]
        assert set(await asyncio.gather(*gone)) == {b""}
        assert limits.known == 2
        for each in (early, session):
            await each.close()
        for each in (client, late):
            await each.close()
        for _, writer in idle:
            writer.close()
        while limits.known:
            await asyncio.sleep(0.01)


async def test_descriptors_are_kept_back_from_clients_too() -> None:
    limits = ConnectionLimits(8)
    assert (limits.most_unknown, limits.most_known) == (2, 4)
    async with serving(limits=limits) as served, asyncio.timeout(DEADLINE_S):
        one = httpx.Limits(max_keepalive_connections=1, max_connections=1)
        headers = {"authorization": f"Bearer {TOKEN}"}
        clients = [httpx.AsyncClient(headers=headers, limits=one) for _ in range(5)]
        answers = [await client.get(f"{served.address}/health") for client in clients]
        assert [answer.status_code for answer in answers] == [200] * 4 + [503]
        assert answers[4].headers["retry-after"] == "1"
        await clients[0].aclose()
        while limits.known == 4:
            await asyncio.sleep(0.01)
        assert (await clients[4].get(f"{served.address}/health")).status_code == 200
        for client in clients:
            await client.aclose()


async def test_a_refused_client_cannot_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(limits=ConnectionLimits(1_000)) as served, asyncio.timeout(DEADLINE_S):
        reader, writer = await dial(served)
        head = "POST /calls HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 100\r\n\r\n".encode())
        answer = await ended(reader)  # the body never comes
        assert answer.startswith(b"HTTP/1.1 401")
        writer.close()
