"""Two writers are kept apart, also where the file system has no flock."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig
from cluster.lifecycle.opening import Resume, check_run
from cluster.progress import QUIET
from envs.errors import StoreError, WeightSyncError
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind, RunLayout
from rollout.store.run_lock import RunLock, is_written, take_lock
from rollout.weights.files import WeightFiles

RUN = RunInfo(run="unit", seed=0, created_at=0.0)
NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture(params=NO_LOCKS, ids=errno.errorcode.get)
def lockless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose flock fails, as NFS without its lock service does."""

    def flock(fd: object, how: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def holder(path: Path, text: str) -> RunLayout:
    layout = RunLayout(path)
    path.mkdir(exist_ok=True)
    layout.lock_holder(3).write_text(text)
    return layout


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.usefixtures("lockless")
def test_without_flock_there_is_still_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDirectory.create(path, "", RUN) as run:
        assert is_written(run.layout)
        assert "has no locks (flock)" in run.lock_warning
        with pytest.raises(StoreError, match=f"found process {os.getpid()} on ") as caught:
            RunDirectory.open(path)
        assert f"remove {run.layout.lock_holder(1)}" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not is_written(RunLayout(path))
    with RunDirectory.open(path):
        pass


def test_with_flock_no_further_file_and_no_word(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", "", RUN) as run:
        assert run.lock_warning == ""
        assert run.layout.lock_holders() == []


@pytest.mark.usefixtures("lockless")
def test_a_killed_writer_of_this_host_holds_nothing(tmp_path: Path, ended: int) -> None:
    layout = holder(tmp_path / "run", f"{socket.gethostname()} {ended} 1\n")
    assert not is_written(layout)
    take_lock(layout).release()


@pytest.mark.usefixtures("lockless")
def test_a_process_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    layout = holder(tmp_path / "run", f"{socket.gethostname()} {os.getpid()} 1\n")
    take_lock(layout).release()


@pytest.mark.parametrize("text", ["elsewhere 1 1\n", "", "half"])
def test_what_this_host_cannot_know_is_taken_for_a_writer(tmp_path: Path, text: str) -> None:
    """With flock, too: another node may see the same file system without it."""
    layout = holder(tmp_path / "run", text)
    assert is_written(layout)
    with pytest.raises(StoreError, match="if that process has ended, remove"):
        take_lock(layout)
    layout.lock_holder(3).unlink()
    take_lock(layout).release()


@pytest.mark.usefixtures("lockless")
def test_of_many_that_start_at_once_one_writes(tmp_path: Path, ended: int) -> None:
    """All of them find the file of a process that was killed."""
    layout = holder(tmp_path / "run", f"{socket.gethostname()} {ended} 1\n")
    taken: list[RunLock] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        try:
            taken.append(take_lock(layout))
        except StoreError:
            return

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].release()
    assert layout.lock_holders() == [4]
    assert len(list(layout.root.iterdir())) == 2


@pytest.mark.usefixtures("lockless")
def test_a_run_is_created_said_and_resumed_without_flock(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"run": {"dir": str(tmp_path), "name": "unit"}})
    check_run(RunKind.TRAIN, config.path, config, Resume.NO).open(QUIET).close()
    check_run(RunKind.TRAIN, config.path, config, Resume.IF_PRESENT).open(QUIET).close()
    assert not is_written(RunLayout(config.path))


@pytest.mark.usefixtures("lockless")
def test_weights_need_a_folder_with_locks_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match=r"set cluster\.shm_dir to a folder in memory"):
        WeightFiles(tmp_path, 64)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_error_of_flock_is_not_taken_for_a_lack_of_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: object, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    tmp_path.joinpath("run").mkdir()
    with pytest.raises(OSError, match="Input/output error"):
        take_lock(RunLayout(tmp_path / "run"))
