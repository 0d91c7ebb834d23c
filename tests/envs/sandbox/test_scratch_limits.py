"""What one session's files can do to the others: nothing, or the server is full for a moment."""

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.config import IsolationConfig, IsolationLevel, SandboxProfile, ToolServerConfig
from envs.errors import IsolationError, SandboxFullError, ServerFullError
from envs.sandbox.janitor import is_over
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.server.client import ToolClient
from envs.server.tool_host import ToolHost
from envs.server.wire import OpenItem
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec
from tests.envs.server.tool_serving import TOKEN, serving

SOURCE = """
import os, time
def crowd(most=50_000, folders=False):
    made = 0
    try:
        while made < most:
            if folders:
                os.mkdir(f"folder-{made}")
            else:
                os.close(os.open(f"file-{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        return f"{made} {error.strerror}"
    time.sleep(2)
    return f"{made} all"
def fill(mib=64):
    try:
        for number in range(mib):
            with open(f"part-{number}", "wb") as file:
                file.write(bytes(2**20))
    except OSError as error:
        return error.strerror
    time.sleep(2)
    return "all"
def deep(most=50_000):
    here = os.open(".", os.O_RDONLY)
    for number in range(100):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    for number in range(most):
        os.close(os.open(f"file-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    time.sleep(2)
    return "all"
def note(text="kept"):
    with open("note", "a") as file:
        file.write(text)
    return open("note").read()
"""
NAMES = ("crowd", "fill", "deep", "note")
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in NAMES),
    sources=(SOURCE,) * len(NAMES),
    functions=NAMES,
)
MIB = 4
FILES = 256
"""Files that fit into a scratch of 4 MiB."""


def config(profile: SandboxProfile, **settings: int | float) -> ToolServerConfig:
    isolation = IsolationConfig(required="landlock", profile=profile, scratch_mib=MIB)
    return ToolServerConfig(isolation=isolation, call_timeout_s=10).model_copy(update=settings)


async def started(
    profile: SandboxProfile, level: IsolationLevel, **settings: int | float
) -> SandboxPool:
    pool = SandboxPool(config(profile, **settings), level)
    try:
        await pool.start()
    except IsolationError as error:
        pytest.skip(str(error))
    return pool


async def opened(pool: SandboxPool) -> SandboxSession:
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    return session


async def call(session: SandboxSession, tool: str, **arguments: object) -> ToolAnswer:
    return await session.call(tool, json.dumps(arguments))


@pytest.mark.parametrize("profile", ["files", "files+quota"])
async def test_with_namespaces_a_session_fills_only_its_own_scratch(
    profile: SandboxProfile,
) -> None:
    pool = await started(profile, "namespaces", max_sessions=8)
    neighbour, hostile = await opened(pool), await opened(pool)
    await call(neighbour, "note")
    for folders in (False, True):
        made, why = (await call(hostile, "crowd", folders=folders)).text.split(" ", 1)
        assert why == "No space left on device"
        assert int(made) < FILES
    assert (await call(await opened(pool), "fill")).text == "No space left on device"
    assert (await call(neighbour, "note")).text == "keptkept"
    assert (await call(await opened(pool), "note")).text == "kept"
    await pool.close()


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("crowd", {}), ("crowd", {"folders": True}), ("fill", {}), ("deep", {})],
    ids=["files", "folders", "bytes", "deep"],
)
async def test_elsewhere_a_session_with_too_much_is_ended(
    tool: str, arguments: dict[str, object]
) -> None:
    pool = await started("files", "landlock")
    neighbour, hostile = await opened(pool), await opened(pool)
    await call(neighbour, "note")
    answer = await call(hostile, tool, **arguments)
    assert answer.status is AnswerStatus.TOOL_ERROR, answer
    assert "too many files" in answer.text
    assert (await call(hostile, "note")).text == "kept", "it starts again, with an empty scratch"
    assert (await call(neighbour, "note")).text == "keptkept"
    deep = await call(await opened(pool), "deep", most=9)
    assert deep.text == "all", "deep is not too much"
    within = await call(neighbour, "crowd", most=FILES - 9)
    assert within.text == f"{FILES - 9} all"
    await pool.close()


async def test_without_a_free_scratch_the_server_is_full() -> None:
    pool = await started("files", "namespaces", max_sessions=1)
    sessions = [await opened(pool)]
    with pytest.raises(SandboxFullError, match="all scratch folders of this server are in use"):
        for _ in range(99):
            sessions.append(await opened(pool))
    asyncio.get_running_loop().call_later(0.5, sessions[-1].close)
    await sessions[0].call("deep", "{}")
    ended = await call(sessions[0], "note")
    assert ended.status is not AnswerStatus.INFRA_ERROR
    await pool.close()


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 12 MiB, where servers put their scratch folders."""
    folder = tempfile.mkdtemp(prefix="trialrun-small-disk-")  # the sandbox's user must get there
    command = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=1777", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        os.rmdir(folder)
        pytest.skip("no file system can be mounted here")
    os.chmod(folder, 0o755)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield Path(folder)
    subprocess.run(["umount", "-l", folder], check=True)
    os.rmdir(folder)


async def test_a_full_disk_refuses_sessions_as_a_full_server_does(small_disk: Path) -> None:
    host = ToolHost(config("files"), "landlock")
    try:
        await host.start()
    except IsolationError as error:
        pytest.skip(str(error))
    item = OpenItem(digest=TOOLS.digest, seed=1, purpose="trial")
    host.add_tool_sets({TOOLS.digest: TOOLS})
    (small_disk / "others").write_bytes(bytes(9 * 2**20))
    refused = [await host.open_session(item) for _ in range(99)][-1]  # idle processes are first
    assert refused.error is not None
    assert (refused.error.kind, refused.error.retry_after_s) == ("full", 1.0)
    assert "no room for a scratch folder" in refused.error.message
    (small_disk / "others").unlink()
    async with asyncio.timeout(20):  # a fork that failed before may still be told
        while (await host.open_session(item)).error is not None:
            await asyncio.sleep(0.05)
    await host.stop()


async def test_a_client_learns_that_the_server_is_full() -> None:
    settings = config("files", max_sessions=1, open_wait_s=0.1)
    try:
        async with serving(settings) as served:
            client = ToolClient(served.address, settings, TOKEN)
            session = await client.open_session(TOOLS, 1, "trial")
            with pytest.raises(ServerFullError):
                await client.open_session(TOOLS, 1, "trial")
            await session.close()
            await client.close()
    except IsolationError as error:
        pytest.skip(str(error))


def test_what_is_too_much(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "folder" / "inner" / f"file-{number}").write_bytes(bytes(4096))
    (tmp_path / "closed").mkdir(0)
    (tmp_path / "link").symlink_to("/")
    assert not is_over(str(tmp_path), 7, 2**20)
    assert is_over(str(tmp_path), 6, 2**20)
    assert is_over(str(tmp_path), 7, 8_192)
    with (tmp_path / "sparse").open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    assert not is_over(str(tmp_path), 8, 2**20), "holes take no room"
    assert not is_over(str(tmp_path / "nowhere"), 1, 1)
