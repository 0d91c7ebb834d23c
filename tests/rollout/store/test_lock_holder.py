"""Two writers on two nodes are kept apart without flock, by a file that the writer touches."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.errors import StoreError
from rollout.episode_schema import to_batch
from rollout.store import lock_holder
from rollout.store.lock_holder import Holder, on_shared_filesystem, seen
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.store.run_lock import is_written, take_lock, wait_for_silent_writer
from tests.rollout.conftest import make_episode

ROOT = Path(__file__).parents[3]
RUN = RunInfo(run="unit", seed=0, created_at=0.0)
SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int how) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
WRITER = """
import sys
from pathlib import Path
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
path = Path(sys.argv[1])
run = RunDirectory.create(path, "", RunInfo(run="unit", seed=0, created_at=0.0))
print(run.lock_warning, flush=True)
sys.stdin.read()
run.close()
"""


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    (tmp_path / "run").mkdir()
    return RunLayout(tmp_path / "run")


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount table by which the tests' folder is NFS; flock works, as far as this node."""
    table = tmp_path / "mounts"
    table.write_text(
        "1 0 0:1 / / rw - ext4 /dev/sda rw\n"
        f"2 1 0:2 / {str(tmp_path).replace(' ', chr(92) + '040')} rw shared:1 - nfs4 host:/x rw\n"
    )
    monkeypatch.setattr(lock_holder, "_MOUNTS", table)


def other(layout: RunLayout, lease_s: float, silent_s: float = 0.0) -> Path:
    """The file of a writer on another node."""
    path = layout.lock_holder(1)
    holder = Holder(host="elsewhere", pid=7, started="1", place="boot/ns", lease_s=lease_s)
    path.write_text(holder.text())
    if silent_s:
        past = path.stat().st_mtime - silent_s
        os.utime(path, (past, past))
    return path


def test_a_shared_filesystem_is_known_by_its_type(tmp_path: Path, on_nfs: None) -> None:
    assert on_shared_filesystem(tmp_path)
    assert not on_shared_filesystem(Path("/"))


def instead_of_sleep(monkeypatch: pytest.MonkeyPatch, does: Callable[[float], object]) -> None:
    """Let `does` stand for every sleep of this thread; others sleep as they did."""
    really, here = time.sleep, threading.current_thread()

    def sleep(seconds: float) -> None:
        (does if threading.current_thread() is here else really)(seconds)

    monkeypatch.setattr(time, "sleep", sleep)


@pytest.mark.usefixtures("on_nfs")
def test_flock_that_works_is_not_relied_on_between_nodes(layout: RunLayout) -> None:
    """NFS with `nolock` or `local_lock=flock` gives every node its own lock."""
    lock = take_lock(layout)
    assert layout.lock_holders() == [1]
    assert seen(layout, 1).holder.pid == os.getpid()
    lock.release()
    assert not is_written(layout)


@pytest.mark.usefixtures("on_nfs")
def test_a_writer_on_another_node_that_lives_is_refused_at_its_next_sign(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = other(layout, 60.0)
    assert is_written(layout)

    def touched(seconds: float) -> None:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))

    instead_of_sleep(monkeypatch, touched)
    with pytest.raises(StoreError, match="found process 7 on elsewhere: stop it or wait for it"):
        take_lock(layout)
    assert wait_for_silent_writer(layout)


@pytest.mark.usefixtures("on_nfs")
def test_a_writer_on_another_node_that_fell_silent_is_replaced_after_its_lease(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = list[float]()
    other(layout, 60.0)

    now = lock_holder._server_now_ns
    monkeypatch.setattr(
        lock_holder, "_server_now_ns", lambda folder: now(folder) + 20 * 10**9 * len(waited)
    )
    instead_of_sleep(monkeypatch, waited.append)
    lock = take_lock(layout)
    assert 3 <= len(waited) <= 4
    assert layout.lock_holders() == [2]
    lock.release()
    other(layout, 60.0, silent_s=100.0)
    assert not is_written(layout)


@pytest.mark.usefixtures("on_nfs")
def test_who_was_replaced_writes_nothing_more(tmp_path: Path) -> None:
    """It was stopped for longer than its lease, and another node took over."""
    run = RunDirectory.create(tmp_path / "run", "", RUN)
    run.append(to_batch([make_episode("e0")]))
    layout = run.layout
    mine = seen(layout, 1).holder
    elsewhere = Holder(host="elsewhere", pid=9, started="2", place="boot/ns", lease_s=60.0)
    layout.lock_holder(2).write_text(elsewhere.text())
    layout.lock_holder(1).unlink()
    run._lock.lease._touched_at -= 1_000  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="was taken over by process 9 on elsewhere"):
        run.append(to_batch([make_episode("e1")]))
    with pytest.raises(StoreError, match="taken over"):
        run.record_metrics(1, {"loss": 0.0})
    assert mine.pid == os.getpid()
    run.close()
    assert layout.lock_holders() == [2], "the file of the other stays"
    assert seen(layout, 2).holder == elsewhere


@pytest.mark.usefixtures("on_nfs")
def test_a_writer_touches_its_file(layout: RunLayout) -> None:
    lock = take_lock(layout, lease_s=0.3)
    first = seen(layout, 1).touched_ns
    deadline = time.monotonic() + 20
    while seen(layout, 1).touched_ns == first:
        assert time.monotonic() < deadline
    lock.release()


@pytest.mark.usefixtures("on_nfs")
def test_the_same_host_name_in_another_namespace_is_another_place(layout: RunLayout) -> None:
    """Containers may share a name; the process table of one does not show those of another."""
    holder = Holder(
        host=socket.gethostname(), pid=os.getpid(), started="1", place="boot/other", lease_s=60.0
    )
    layout.lock_holder(1).write_text(holder.text())
    assert is_written(layout)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_two_processes_whose_flock_really_fails(tmp_path: Path, name: str) -> None:
    library = tmp_path / "shim.so"
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "shim.c"], check=True, timeout=60
    )
    environ = {**os.environ, "LD_PRELOAD": str(library), "FLOCK_ERRNO": str(getattr(errno, name))}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    layout = RunLayout(tmp_path / "run")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    with start() as first:
        assert first.stdout is not None
        assert "has no locks (flock)" in first.stdout.readline()
        assert is_written(layout)
        code = WRITER.replace("RunDirectory.create", "(lambda path, *_: RunDirectory.open(path))")
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run")],
            cwd=ROOT,
            env=environ,
            text=True,
            input="",
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert f"found process {first.pid} on " in second.stderr
        first.kill()
    assert not is_written(layout), "on the same host a killed writer is known to have ended"
    take_lock(layout).release()
