"""Copies for reading commands: as far as needed, up to date, never a half state."""

import shutil
from pathlib import Path

import pytest

from cluster.cli.mirrors import Needs
from envs.errors import MissingError, StoreError
from rollout.mirror import copies
from rollout.mirror.address import parse_address as parse
from rollout.mirror.copies import fetch_copy, read_copy_record, runs_at
from rollout.mirror.head import DATA, HEAD, Head, read_head, write_head
from rollout.mirror.place import Place
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from tests.rollout.mirror.mirrored_run import (
    RUN,
    check_invariants,
    go_on,
    mirror_all,
    new_run,
    place_in,
    uploader,
)


def everything(path: str) -> bool:
    return True


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path)


def test_a_copy_follows_its_mirror(tmp_path: Path, place: Place) -> None:
    cache = tmp_path / "cache"
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        for until in (1, 4, 5):
            go_on(run, until)
            mirror_all(upload)
            copy = fetch_copy(place, cache, everything)
            check_invariants(RunReader(copy.path), until)
        assert copy.path.name == "unit"
        shutil.rmtree(run.layout.checkpoints / "000002")
        mirror_all(upload)
        mirror_all(upload)
        copy = fetch_copy(place, cache, everything)
        assert not (copy.path / "checkpoints" / "000002" / "complete").exists()


def test_only_what_a_command_needs_is_fetched(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_run(tmp_path / "run") as run:
        go_on(run, 2)
        (run.path / "log.txt").write_text("said\n")
        mirror_all(uploader(run, place))
    read, asked = Place.read, list[str]()

    def noted(self: Place, key: str) -> bytes | None:
        asked.append(key.removeprefix(f"{DATA}/").split("/")[0])
        return read(self, key)

    monkeypatch.setattr(Place, "read", noted)
    status = fetch_copy(place, tmp_path / "cache", Needs.STATUS.wants).path
    assert {"episodes", "ledger", "index", "log.txt"}.isdisjoint(asked)
    assert [row.step for row in RunReader(status).metrics()] == [1, 2]
    assert (status / "checkpoints" / "000002" / "complete").exists()
    assert not (status / "checkpoints" / "000002" / "rank-0.bin").exists()
    asked.clear()
    fetch_copy(place, tmp_path / "cache", Needs.LOG.wants)
    assert sorted(set(asked)) == ["log.txt", HEAD, "writer.json"]
    asked.clear()
    fetch_copy(place, tmp_path / "cache", Needs.EPISODES.wants)
    assert {"episodes", "ledger", "index"} <= set(asked)
    assert "checkpoints" not in asked and "metrics" not in asked, "it is there already"


def test_a_damaged_part_is_refused_by_name_and_leaves_the_copy_as_it_was(
    tmp_path: Path, place: Place
) -> None:
    cache = tmp_path / "cache"
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        go_on(run, 2)
        mirror_all(upload)
        before = RunReader(fetch_copy(place, cache, everything).path)
        go_on(run, 4)
        mirror_all(upload)
        (key,) = (key for key in place.sizes(DATA) if "ledger" in key and key in _keys(place))
        place.write(key, (place.read(key) or b"")[:-3])
        with pytest.raises(
            StoreError, match=r"ledger/events.jsonl/.* is damaged: expected \d+ byt"
        ):
            fetch_copy(place, cache, everything)
        assert before.ledger().last_step == 2
        place.delete([key])
        with pytest.raises(StoreError, match="which the head lists, found nothing there"):
            fetch_copy(place, cache, everything)


def _keys(place: Place) -> set[str]:
    head = read_head(place)
    assert head is not None
    return head.keys()


def test_a_mirror_that_moves_on_during_a_fetch_is_fetched_again(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        go_on(run, 2)
        mirror_all(upload)
        read_first = copies.read_head

        def then_move_on(place: Place) -> Head | None:
            head = read_first(place)
            if run.ledger.last_step == 2:
                for step in (3, 4, 5):
                    go_on(run, step)
                    mirror_all(upload)
            return head

        monkeypatch.setattr(copies, "read_head", then_move_on)
        check_invariants(RunReader(fetch_copy(place, tmp_path / "cache", everything).path), 5)


def test_another_run_in_the_same_place_is_a_copy_of_its_own(tmp_path: Path, place: Place) -> None:
    cache = tmp_path / "cache"
    with new_run(tmp_path / "run") as run:
        go_on(run, 2)
        mirror_all(uploader(run, place))
        fetch_copy(place, cache, everything)
    shutil.rmtree(tmp_path / "mirrors")
    other = RUN.model_copy(update={"created_at": 9.5})
    with RunDirectory.create(tmp_path / "other", "", other) as run:
        upload = uploader(run, place)
        upload.run = other
        mirror_all(upload)
        copy = fetch_copy(place, cache, everything)
    assert RunReader(copy.path).metrics() == []
    record = read_copy_record(RunLayout(copy.path))
    assert record is not None and record.created_at == 9.5 and not record.has_work


def test_a_place_without_a_mirror_names_those_below(tmp_path: Path, place: Place) -> None:
    with new_run(tmp_path / "run") as run:
        mirror_all(uploader(run, place))
    above = Place(parse(f"file://{tmp_path}/mirrors"))
    assert runs_at(above) == ["unit"]
    with pytest.raises(MissingError, match="is not a run but holds mirrors of runs: name one of"):
        fetch_copy(above, tmp_path / "cache", everything)
    with pytest.raises(MissingError, match=f"found no {HEAD} there"):
        fetch_copy(place.below("none"), tmp_path / "cache", everything)


def test_a_head_that_is_damaged_hostile_or_too_new_is_refused(tmp_path: Path, place: Place) -> None:
    with new_run(tmp_path / "run") as run:
        mirror_all(uploader(run, place))
    head = read_head(place)
    assert head is not None
    write_head(place, head.model_copy(update={"version": 9}))
    with pytest.raises(StoreError, match="a newer trialrun wrote it"):
        read_head(place)
    outside = head.model_dump_json().replace("run.json", "../../outside")
    for content in (b"", b'{"version": 1', outside.encode()):
        place.write(HEAD, content)
        with pytest.raises(StoreError, match=f"{HEAD}: expected the head of a mirror"):
            read_head(place)


def test_old_copies_leave_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "KEPT", 2)
    with new_run(tmp_path / "run") as run:
        for name in "abc":
            place = place_in(tmp_path).below(name)
            mirror_all(uploader(run, place))
            fetch_copy(place, tmp_path / "cache", everything)
    assert sorted(path.name for path in (tmp_path / "cache").glob("*/[a-z]")) == ["b", "c"]
