"""Segments whose bytes changed on the disk: a typed error or the right data, never other data."""

import random
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from envs.errors import StoreError
from rollout.episode_schema import to_batch
from rollout.store.segments import ROWS_PER_BATCH, SegmentReader, SegmentWriter
from tests.cluster.conftest import Numbered, canned, leases_of

EPISODES = 2 * ROWS_PER_BATCH + 3
MUTATIONS = 300


@pytest.fixture
def batch() -> pa.RecordBatch:
    task = Numbered().tasks("train", 0, 1)[0]
    return to_batch([canned(lease, task, 0, "worker-1") for lease in leases_of(task, EPISODES)])


@pytest.fixture
def segment(tmp_path: Path, batch: pa.RecordBatch) -> tuple[Path, Path]:
    writer = SegmentWriter(tmp_path, tmp_path, "000001")
    writer.append(batch)
    writer.close()
    return tmp_path / "000001.arrows", tmp_path / "000001.jsonl"


def read_all(segment: tuple[Path, Path]) -> list[str]:
    """Return all episodes as text, in which NaN is equal to itself."""
    reader = SegmentReader(*segment)
    reader.refresh()
    return [repr(reader.read(row).to_pylist()[0]) for row in reader.rows]


@pytest.mark.parametrize("damaged", [0, 1], ids=["segment", "index"])
def test_a_changed_byte_is_an_error_or_changes_nothing(
    segment: tuple[Path, Path], batch: pa.RecordBatch, damaged: int
) -> None:
    path, dice = segment[damaged], random.Random(damaged)
    whole, errors = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 4))):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        try:
            rows = read_all(segment)
        except StoreError:
            errors += 1
            continue
        # A damaged end looks like what a killed writer leaves, and costs only what lies behind it.
        assert rows == [repr(row) for row in batch.to_pylist()[: len(rows)]]
    if damaged == 0:  # without its index, a segment is scanned
        assert errors > MUTATIONS / 10, "most of the bytes matter"


def test_segments_without_checksums_are_checked_by_their_form(
    segment: tuple[Path, Path], batch: pa.RecordBatch
) -> None:
    index = segment[1]
    lines = [line.rpartition(', "crc"')[0] + "}" for line in index.read_text().splitlines()]
    index.write_text("".join(f"{line}\n" for line in lines))
    assert '"crc"' not in index.read_text()
    assert read_all(segment) == [repr(row) for row in batch.to_pylist()]
    whole, dice = segment[0].read_bytes(), random.Random(5)
    for _ in range(MUTATIONS):
        content = bytearray(whole)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        segment[0].write_bytes(content)
        with suppress(StoreError):
            read_all(segment)
