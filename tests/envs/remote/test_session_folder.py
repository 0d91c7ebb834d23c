"""Folders of sessions go with their session, or with the next one if their process is killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from envs.remote.session_folder import session_folder

HOLD = """
import asyncio, sys
from envs.remote.session_folder import session_folder

async def hold():
    async with session_folder("unit-") as folder:
        print(folder, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(hold())
"""


def holder() -> tuple[subprocess.Popen[str], Path]:
    """Start a process that keeps a folder until its input ends; return both."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


async def test_what_a_killed_process_left_goes_with_the_next_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (killed, left), (alive, kept) = holder(), holder()
    (left / "deep").mkdir()
    (left / "deep" / "state").write_text("x")
    (tmp_path / "unit-of-somebody").mkdir()
    killed.kill()
    killed.wait(30)
    assert left.exists() and left.parent == kept.parent == tmp_path
    async with session_folder("unit-") as own:
        assert not left.exists()
        assert {Path(own).name, kept.name, "unit-of-somebody"} == {
            path.name for path in tmp_path.iterdir()
        }
    assert not Path(own).exists()
    alive.communicate(timeout=30)
    assert not kept.exists()
