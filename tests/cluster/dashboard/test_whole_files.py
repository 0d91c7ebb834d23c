"""Files that DuckDB reads by itself give the index that reading them piece by piece gives."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.dashboard.index import run_index
from cluster.dashboard.index.library import Library
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.index.whole_files import Unusual
from rollout.store.line_checks import all_are_whole, is_damaged, with_checksum
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind, RunLayout
from tests.cluster.dashboard.conftest import settings_for
from tests.cluster.dashboard.sample_run import CONFIG, write_group

ROWS = "SELECT * FROM episodes ORDER BY uid", "SELECT * FROM leases ORDER BY ALL"
ROWS += "SELECT * FROM drops ORDER BY ALL", "SELECT * FROM files ORDER BY ALL"


def lines_of(run: Path) -> list[Path]:
    return sorted((run / "index").glob("*.jsonl"))


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def without_checksums(run: Path) -> None:
    for path in (*lines_of(run), run / "ledger" / "events.jsonl"):
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line[:-24]}}}\n" for line in lines))


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def add(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def link(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".other"))
    path.unlink()
    path.symlink_to(path.with_suffix(".other"))


LEDGER = Path("ledger") / "events.jsonl"
TEXT = '{"event":"finished","episode":"g000000-00","attempt":"none"}'
CHANGES: dict[str, tuple[bool, Callable[[Path], object]]] = {
    "nothing": (True, lambda run: None),
    "a torn end of the newest lines": (True, lambda run: cut(lines_of(run)[-1], 0.7)),
    "a changed index line": (False, lambda run: change(lines_of(run)[1], b"answered", b"ansvered")),
    "a changed ledger line": (False, lambda run: change(run / LEDGER, b"task-", b"tusk-")),
    "a torn ledger": (False, lambda run: cut(run / LEDGER, 0.9)),
    "lines of another type": (False, lambda run: add(run / LEDGER, with_checksum(TEXT))),
    "lines of another segment": (
        False,
        lambda run: lines_of(run)[0].write_bytes(lines_of(run)[1].read_bytes()),
    ),
    "lines without checksums": (False, without_checksums),
    "no index lines": (False, lambda run: lines_of(run)[0].unlink()),
    "empty index lines": (False, lambda run: lines_of(run)[0].write_bytes(b"")),
    "an empty line": (False, lambda run: add(lines_of(run)[0], "")),
    "a link": (False, lambda run: link(lines_of(run)[0])),
    "a segment that was cut": (
        False,
        lambda run: cut(sorted((run / "episodes").glob("*.arrows"))[0], 0.5),
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a run of nine closed segments and an open one."""
    info = RunInfo(run="run", kind=RunKind.TRAIN, seed=1, created_at=1.0)
    path = tmp_path / "runs" / "run"
    with RunDirectory.create(path, CONFIG, info, segment_bytes=30_000) as run:
        names = [write_group(run, group) for group in range(10)]
        run.ledger.train(1, names[0])
    assert len(RunLayout(path).segments()) > 4
    return path


def index_of(run: Path, cache: Path) -> RunIndex:
    library = Library(settings_for(run.parent, cache))
    (found,) = library.runs()
    index = library.open(found)
    index.refresh()
    return index


@pytest.mark.parametrize("what", CHANGES)
def test_the_index_is_the_same_and_what_is_unusual_is_read_piece_by_piece(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    is_usual, apply = CHANGES[what]
    apply(run)
    fast = index_of(run, tmp_path / "fast")
    assert fast._directly == is_usual

    def refuse(*arguments: Any) -> None:
        raise Unusual

    monkeypatch.setattr(run_index, "take_whole", refuse)
    slow = index_of(run, tmp_path / "slow")
    assert not slow._directly
    for sql in ROWS:
        assert fast.rows(sql) == slow.rows(sql)
    assert sorted(map(repr, fast.damage)) == sorted(map(repr, slow.damage))


def test_after_a_roll_back_the_order_of_reading_matters(run: Path, tmp_path: Path) -> None:
    with RunDirectory.open(run) as opened:
        opened.ledger.roll_back(0)
    index = index_of(run, tmp_path / "cache")
    assert not index._directly
    assert index.rows("SELECT count(*) FROM episodes WHERE state = 'trained'") == [(0,)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"1", b"2", 1),
        lambda text: text.replace(b"\n", b"", 1),
        lambda text: text.replace(b"\n", b"\n\n", 1),
        lambda text: text[:-1],
        lambda text: text[:-5],
        lambda text: text + b"{}\n",
        lambda text: b"{}\n" + text,
        lambda text: text.replace(b'line_crc":"', b'line_crc":"g', 1),
        lambda text: text.replace(b'line_crc":"', b'line_crk":"', 1),
    ],
)
def test_all_lines_are_whole_only_if_each_one_is(change: Callable[[bytes], bytes]) -> None:
    text = "".join(with_checksum(f'{{"n": {n}}}') + "\n" for n in range(12)).encode()
    assert all_are_whole(text) and all_are_whole(b"")
    assert not any(map(is_damaged, text.splitlines()))
    assert not all_are_whole(change(text))
