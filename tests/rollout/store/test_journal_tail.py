"""Following a journal that another process appends to."""

from pathlib import Path

import pytest

from envs.errors import StoreError
from rollout.store.journal import Journal, JournalTail, read_objects


def test_each_call_returns_only_new_complete_entries(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail, late = JournalTail(path), JournalTail(path)
    assert tail.read() == []
    with Journal(path) as journal:
        journal.append(['{"n": 1}', '{"n": 2}'], "two entries")
        assert tail.read() == [{"n": 1}, {"n": 2}]
        late.skip_to_end()
        with path.open("a") as file:
            file.write('{"n"')
        assert tail.read() == late.read() == []
        with path.open("a") as file:
            file.write(": 3}\n")
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
