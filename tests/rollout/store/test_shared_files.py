"""What network filesystems do differently: stale handles, late bytes, repeated requests."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from envs.errors import StoreError
from rollout.episode_schema import to_batch
from rollout.store import shared_files
from rollout.store.journal import Journal, JournalTail, replace_file, whole_lines
from rollout.store.line_checks import with_checksum
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from rollout.store.shared_files import again_if_stale, read_bytes, remove_folder, remove_left_overs
from tests.rollout.conftest import make_episode

RUN = RunInfo(run="unit", seed=0, created_at=0.0)


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """So many further opens give a stale handle."""
    left, opened = [0], os.open

    def open_stale(path: Any, flags: int, *given: Any, **named: Any) -> int:
        if left[0] and not flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path, flags, *given, **named)

    monkeypatch.setattr(os, "open", open_stale)
    monkeypatch.setattr(shared_files, "_PAUSE_S", 0.0)
    return left


def test_a_stale_handle_is_opened_again_wherever_a_run_is_read(
    tmp_path: Path, stale: list[int]
) -> None:
    with RunDirectory.create(tmp_path / "run", "[run]\n", RUN) as run:
        run.append(to_batch([make_episode()]))
        run.record_metrics(1, {"loss": 1.0})
        reader = RunReader(run.path)
        for read in (
            reader.episodes,
            lambda: reader.episode("e0"),
            reader.metrics,
            reader.ledger,
            lambda: reader.info,
            lambda: reader.recipe,
        ):
            stale[0] = 2
            read()
            assert stale == [0]
        assert [row.episode for row in reader.episodes()] == ["e0"]
        stale[0] = 100
        with pytest.raises(StoreError, match="stale file handle, 6 times"):
            reader.metrics()


def test_another_error_is_not_tried_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def read() -> bytes:
        calls.append(1)
        raise PermissionError

    with pytest.raises(PermissionError):
        again_if_stale(read, tmp_path)
    assert calls == [1]
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_bytes_that_are_not_visible_yet_are_read_later(tmp_path: Path) -> None:
    """A reader on another node sees the new length before the new content."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b"\0" * 9)
    tail = JournalTail(path)
    assert tail.read() == [{"n": 1}]
    assert whole_lines(path) == b'{"n": 1}\n'
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n')
    assert tail.read() == [{"n": 2}]


def test_episodes_that_are_not_visible_yet_are_read_later(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", "", RUN) as run:
        run.append(to_batch([make_episode("e0")]))
        (segment,) = run.layout.episodes.iterdir()
        before = segment.stat().st_size
        run.append(to_batch([make_episode("e1")]))
        whole = segment.read_bytes()
        reader = RunReader(run.path)
        for shown in (before, before + 100):
            segment.write_bytes(whole[:shown] + b"\0" * (len(whole) - shown))
            assert [row.episode for row in reader.episodes()] == ["e0"]
        segment.write_bytes(whole)
        assert [row.episode for row in reader.episodes()] == ["e0", "e1"]
        assert reader.episode("e1").lease.episode == "e1"


def test_zero_bytes_that_a_crash_left_are_cut_off_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b"\0" * 40)
    with Journal(path) as journal:
        journal.append(['{"n": 2}'], "a line")
    second = with_checksum('{"n": 2}')
    assert path.read_text() == f'{{"n": 1}}\n{second}\n'
    path.write_bytes(b'{"n": 1}\n' + b"\0" * 40 + b'{"n": 3}\n')
    with pytest.raises(StoreError, match="zero bytes at offset 9 and text after them"):
        Journal(path)
    assert path.read_bytes().endswith(b'{"n": 3}\n'), "nothing is thrown away"


def test_a_rename_that_was_done_and_is_asked_for_again_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def done_twice(self: Path, target: Path) -> Path:
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", done_twice)
    replace_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"

    def lost(self: Path, target: Path) -> Path:
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(Path, "replace", lost)
    with pytest.raises(StoreError, match="Its previous content is intact"):
        replace_file(tmp_path / "a.json", b"newer")
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_a_folder_is_gone_at_once_whatever_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "000001"
    checkpoint.mkdir()
    (checkpoint / "complete").write_text("{}")
    (checkpoint / ".nfs0001").write_text("open on some node")
    unlink = os.unlink

    def busy(path: Any, **given: Any) -> None:
        if str(path).endswith(".nfs0001"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        unlink(path, **given)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", busy)
        remove_folder(checkpoint)
        assert not checkpoint.exists()
        assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [True]
    remove_folder(checkpoint)
    remove_left_overs(tmp_path)
    assert list(tmp_path.iterdir()) == []
