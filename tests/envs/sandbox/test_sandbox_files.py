"""Scratch folders: what a session may do in its own, and what is left of it afterwards."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, SandboxProfile, ToolServerConfig
from envs.errors import IsolationError, SandboxError
from envs.sandbox.janitor import empty_folder
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[3]
NOTES = """
import os, pathlib, shutil, sqlite3, tempfile

class Notes:
    def write(self, name, text):
        pathlib.Path(name).write_text(text)
        return sorted(os.listdir())

    def read(self, name):
        return pathlib.Path(name).read_text()

    def where(self):
        return [os.getcwd(), os.environ["HOME"], tempfile.gettempdir()]

    def tree(self):
        with tempfile.TemporaryDirectory() as folder:
            inner = pathlib.Path(folder) / "a" / "b"
            inner.mkdir(parents=True)
            (inner / "x").write_text("x")
            shutil.copyfile(inner / "x", inner / "y")
            (inner / "y").rename(pathlib.Path(folder) / "z")
            names = sorted(path.name for path in pathlib.Path(folder).rglob("*"))
        return [names, os.path.exists(folder)]

    def database(self):
        with sqlite3.connect("notes.db") as rows:
            rows.execute("create table notes (text)")
            rows.execute("insert into notes values ('kept')")
        return sqlite3.connect("notes.db").execute("select text from notes").fetchall()

    def fill(self, files, mib):
        written = 0
        try:
            for number in range(files):
                with open(f"fill{number}", "wb") as file:
                    for _ in range(mib * 16):
                        written += file.write(bytes(2**16))
        except OSError as error:
            return [written, error.strerror]
        return [written, ""]

    def crowd(self):
        for number in range(10**6):
            try:
                open(f"empty{number}", "w").close()
            except OSError as error:
                return [number, error.strerror]

    def probe(self, expression):
        try:
            eval(expression)
        except OSError as error:
            return error.strerror
        return "got through"

    def hostile(self):
        os.mkdir("closed", 0)
        for number in range(50):
            os.mkdir(f"full{number}")
            open(f"full{number}/file", "w").close()
        folder = os.open(".", os.O_RDONLY)
        for _ in range(60):
            os.mkdir("n" * 200, dir_fd=folder)
            inner = os.open("n" * 200, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.getcwd()
"""
METHODS = ["write", "read", "where", "tree", "database", "fill", "crowd", "probe", "hostile"]
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in METHODS),
    sources=(NOTES,) * len(METHODS),
    functions=tuple(f"Notes.{name}" for name in METHODS),
)
REFUSED = {
    "open('/etc/passwd')": "No such file or directory|Permission denied",
    "open('../other', 'w')": "Permission denied|Read-only file system",
    "os.listdir('..')": "Permission denied",
    "os.listdir('/')": "Permission denied",
    "os.symlink('/', 'link')": "Operation not permitted",
    "os.link('mine', 'link')": "Operation not permitted",
    "os.chmod('mine', 0o777)": "Operation not permitted",
    "os.utime('mine')": "Operation not permitted",
    "os.chown('mine', 0, 0)": "Operation not permitted",
    "os.setxattr('mine', 'user.x', b'1')": "Operation not permitted",
    "os.mkfifo('fifo')": "Operation not permitted",
    "os.mknod('node')": "Operation not permitted",
    "os.chdir('/')": "Operation not permitted",
    "os.truncate('mine', 0)": "Operation not permitted",
    "os.execv('mine', ['mine'])": "Operation not permitted",
    "__import__('fcntl').fcntl(3, 8, os.getpid())": "Operation not permitted",
    "__import__('fcntl').fcntl(3, 10, 9)": "Operation not permitted",
    # The machine's /dev/null: its locks reach other sessions, and so do those of a copy.
    "__import__('fcntl').lockf(1, 6)": "Operation not permitted",
    "os.dup(0)": "Operation not permitted",
}
ALLOWED = ("__import__('fcntl').lockf(open('mine', 'w'), 6)", "os.dup(os.open('mine', 0))")


def config(
    profile: SandboxProfile, required: IsolationLevel = "landlock", **settings: int
) -> ToolServerConfig:
    isolation = IsolationConfig(required=required, profile=profile, scratch_mib=2)
    return ToolServerConfig(isolation=isolation, call_timeout_s=10).model_copy(update=settings)


PLACES = [("files", "namespaces"), ("files", "landlock"), ("files+quota", "namespaces")]


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=PLACES, ids="-".join)
async def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SandboxPool]:
    profile, strongest = request.param
    pool = SandboxPool(config(profile), strongest)
    try:
        await pool.start()
    except IsolationError as error:
        pytest.skip(str(error))
    yield pool
    await pool.close()


async def opened(pool: SandboxPool) -> SandboxSession:
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    return session


async def value(session: SandboxSession, tool: str, /, **arguments: object) -> Any:
    answer = await session.call(tool, json.dumps(arguments))
    assert answer.status is AnswerStatus.OK, answer
    return json.loads(answer.text) if answer.text[0] in "[{" else answer.text


async def test_session_works_with_files_of_its_own(pool: SandboxPool) -> None:
    first, second = await opened(pool), await opened(pool)
    assert await value(first, "write", name="note", text="mine") == ["note"]
    assert await value(first, "read", name="note") == "mine"
    assert (await second.call("read", '{"name": "note"}')).text.startswith("FileNotFoundError")
    places = await value(first, "where")
    assert len(set(places)) == 1
    other = await second.call("read", json.dumps({"name": f"{places[0]}/note"}))
    assert other.text.startswith("PermissionError")
    assert await value(first, "tree") == [["a", "b", "x", "z"], False]
    assert await value(first, "database") == [["kept"]]


@pytest.mark.parametrize("expression", REFUSED)
async def test_everything_else_is_refused(pool: SandboxPool, expression: str) -> None:
    session = await opened(pool)
    await value(session, "write", name="mine", text="")
    assert await value(session, "probe", expression=expression) in REFUSED[expression].split("|")
    session.close()


@pytest.mark.parametrize("expression", ALLOWED)
async def test_own_files_are_locked_and_their_descriptors_copied(
    pool: SandboxPool, expression: str
) -> None:
    session = await opened(pool)
    await value(session, "write", name="mine", text="")
    assert await value(session, "probe", expression=expression) == "got through"
    session.close()


async def test_file_size_is_bounded(pool: SandboxPool) -> None:
    session = await opened(pool)
    filled = await value(session, "fill", files=1, mib=3)
    assert filled in ([2 * 2**20, "File too large"], [2 * 2**20, "No space left on device"])
    session.close()


async def test_hostile_tree_is_removed(pool: SandboxPool) -> None:
    session = await opened(pool)
    folder = str(await value(session, "hostile"))
    session.close()
    if pool.report and pool.report.level == "landlock":
        async with asyncio.timeout(10):
            while Path(folder).exists():
                await asyncio.sleep(0.02)
    assert await value(await opened(pool), "write", name="x", text="") == ["x"]


async def test_server_folder_is_removed_with_the_pool() -> None:
    pool = SandboxPool(config("files"), "landlock")
    await pool.start()
    places = await value(await opened(pool), "where")
    folder = Path(places[0]).parent
    assert folder.parent == Path(tempfile.gettempdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    await pool.close()
    assert not folder.exists()


async def test_nothing_but_an_empty_folder_is_left_of_a_killed_server() -> None:
    script = """
import asyncio, os, sys
from tests.envs.sandbox.test_sandbox_files import config, opened, value
from envs.sandbox.session import SandboxPool

async def main():
    pool = SandboxPool(config("files"), "landlock")
    await pool.start()
    sessions = [await opened(pool) for _ in range(6)]
    print(os.path.dirname([await value(one, "hostile") for one in sessions][0]), flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script), cwd=ROOT, stdout=subprocess.PIPE
    )
    folder = Path((await server.communicate())[0].decode().strip())
    assert server.returncode == -signal.SIGKILL
    async with asyncio.timeout(60):
        while list(folder.iterdir()):
            await asyncio.sleep(0.02)
    folder.rmdir()


async def test_quota_bounds_a_session_and_slots_are_reused_clean() -> None:
    pool = SandboxPool(config("files+quota", "namespaces", max_sessions=1), "namespaces")
    try:
        await pool.start()
    except IsolationError as error:
        pytest.skip(str(error))
    seen = set()
    for _ in range(80):  # more than there are slots
        session = await opened(pool)
        places = await value(session, "where")
        seen.add(places[0])
        assert await value(session, "write", name="left", text="behind") == ["left"]
        session.close()
    assert 1 < len(seen) <= 65
    crowded = await opened(pool)
    bytes_written, why = await value(crowded, "fill", files=50, mib=1)
    assert why == "No space left on device"
    assert 2**20 < bytes_written <= 2 * 2**20
    numerous = await opened(pool)
    files, why = await value(numerous, "crowd")
    assert why == "No space left on device"
    assert files < 1_000
    await pool.close()


async def test_no_slot_is_left_for_too_many_sessions() -> None:
    pool = SandboxPool(config("files+quota", "namespaces", max_sessions=1), "namespaces")
    try:
        await pool.start()
    except IsolationError as error:
        pytest.skip(str(error))
    sessions = []
    with pytest.raises(SandboxError, match="all scratch folders of this server are in use"):
        for _ in range(100):
            sessions.append(await opened(pool))
    assert len(sessions) in (64, 65), "one slot compiled the tools, and comes back"
    await pool.close()


async def test_profiles_that_the_level_cannot_keep_are_refused() -> None:
    with pytest.raises(IsolationError, match=r"expected level namespaces for profile files\+quota"):
        await SandboxPool(config("files+quota"), "landlock").start()
    with pytest.raises(IsolationError, match="expected Landlock ABI 2 or later"):
        await SandboxPool(config("files", "seccomp"), "seccomp").start()


async def test_emptying_follows_no_link_and_needs_no_permission(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside, inside / "a", inside / "a" / "b", inside / "a" / "b" / "c"):
        folder.mkdir()
    (outside / "kept").touch()
    (inside / "a" / "b" / "link").symlink_to(outside)
    (inside / "a" / "b" / "c" / "file").touch()
    (inside / "dangling").symlink_to("nowhere")
    os.chmod(inside / "a" / "b" / "c", 0)
    empty_folder(str(inside))
    assert not list(inside.iterdir())
    assert (outside / "kept").exists()
