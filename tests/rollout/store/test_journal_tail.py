"""Following a journal that another process appends to."""

from pathlib import Path

import pytest

from envs.errors import StoreError
from rollout.store.journal import Journal, JournalTail, read_objects
from rollout.store.line_checks import with_checksum


def test_each_call_returns_only_new_complete_entries(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail, late = JournalTail(path), JournalTail(path)
    assert tail.read() == []
    with Journal(path) as journal:
        journal.append(['{"n": 1}', '{"n": 2}'], "two entries")
        assert tail.read() == [{"n": 1}, {"n": 2}]
        late.skip_to_end()
        third = with_checksum('{"n": 3}')
        with path.open("a") as file:
            file.write(third[:6])
        assert tail.read() == late.read() == []
        with path.open("a") as file:
            file.write(f"{third[6:]}\n")
    assert tail.read() == late.read() == [{"n": 3}]
    assert [row["n"] for row in read_objects(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["[1]", "no JSON"])
def test_a_line_that_is_not_an_object_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"n": 1}}\n{line}\n')
    with pytest.raises(StoreError, match=r"events\.jsonl:2: expected a JSON object, found b'"):
        read_objects(path)
    tail = JournalTail(path)
    tail.skip_to_end()
    path.write_text(path.read_text() + f"{line}\n")
    with pytest.raises(StoreError, match=r"events\.jsonl:3: expected a JSON object"):
        tail.read()


def test_a_changed_byte_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"n": 0}\n')  # of an older version
    with Journal(path) as journal:
        journal.append([f'{{"n": {n}, "text": "x"}}' for n in range(1, 4)], "entries")
    whole = path.read_bytes()
    assert [row["n"] for row in read_objects(path)] == [0, 1, 2, 3]
    assert {len(row) for row in read_objects(path)} == {1, 2}, "without the checksums"
    second = whole.index(b'"n": 2')
    for place, byte in ((second + 5, b"7"), (second - 4, b"0"), (second + 8, b"\0")):
        path.write_bytes(whole[:place] + byte + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"events\.jsonl.*line 3|events\.jsonl:[23]: "):
            read_objects(path)
    path.write_bytes(whole[:-5])  # an unfinished last line
    assert [row["n"] for row in read_objects(path)] == [0, 1, 2]
