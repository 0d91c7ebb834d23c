"""What a mirror holds is a consistent older state of the run, whatever happens in between."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from envs.errors import InfraError
from rollout.episode_schema import to_batch
from rollout.mirror import upload as uploading
from rollout.mirror.head import DATA, HEAD, read_head
from rollout.mirror.place import Place
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from tests.rollout.conftest import lease_in, make_episode
from tests.rollout.mirror.mirrored_run import (
    check_invariants,
    fetch,
    go_on,
    mirror_all,
    new_run,
    place_in,
    save_checkpoint,
    uploader,
)


def steps_there(place: Place) -> list[int]:
    head = read_head(place)
    assert head is not None
    names = (file.path.split("/") for file in head.files)
    return sorted({int(name[1]) for name in names if name[0] == "checkpoints"})


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != "mirror.json"
    }


@pytest.mark.parametrize("part", [500, 8 * 2**20])
def test_a_mirror_grows_with_its_run_and_is_the_same_to_the_byte(
    tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "GROWING_PART", part)
    monkeypatch.setattr(uploading, "WHOLE_PART", part)
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        for until in range(1, 6):
            go_on(run, until)
            run.annotate(until, pa.table({"episode": ["e"], "advantage": [0.5]}))
            assert upload.behind()
            mirror_all(upload)
            assert not upload.behind()
            check_invariants(fetch(place, tmp_path), until)
        (run.path / "log.txt").write_text("a line\n")
        (run.path / "model").mkdir()
        (run.path / "model" / "config.json").write_text("{}")
        mirror_all(upload)
        assert content_of(fetch(place, tmp_path).layout.root) == content_of(run.path)
    head = read_head(place)
    assert head is not None
    upload.clean()
    upload.clean()
    assert set(place.sizes(DATA)) == head.keys(), "and nothing else is stored"


def test_a_new_state_sends_only_what_is_new(tmp_path: Path) -> None:
    place, sent = place_in(tmp_path), list[int]()
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        upload.throttle = sent.append
        go_on(run, 2)
        save_checkpoint(run.layout, 3, 300_000)
        mirror_all(upload)
        assert sum(sent) > 300_000
        sent.clear()
        mirror_all(upload)
        assert sent == []
        run.record_metrics(3, {"loss": 0.1})
        mirror_all(upload)
        assert 0 < sum(sent) < 2_000
        sent.clear()
        again = uploader(run, place, "t2")
        again.throttle = sent.append
        mirror_all(again)
        assert sent == [], "a later process sends nothing that is there"


def test_what_is_read_between_two_appends_is_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on whenever the upload looks at a file."""
    place, dice = place_in(tmp_path), random.Random(3)
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        look, made, left, busy = Path.stat, 0, 0, False

        def look_after_more(self: Path, **given: bool) -> os.stat_result:
            nonlocal made, left, busy
            if self.is_relative_to(run.path) and not busy and left and dice.random() < 0.1:
                busy, made, left = True, made + 1, left - 1
                go_on(run, made, every=1)
                busy = False
            return look(self, **given)

        for _ in range(6):
            left = 4
            with monkeypatch.context() as patched:
                patched.setattr(Path, "stat", look_after_more)
                mirror_all(upload)
            reader = fetch(place, tmp_path)
            state = reader.ledger()
            stored = {(row.episode, row.attempt) for row in reader.episodes()}
            ended = {(n, e.lease.attempt) for n, e in state.entries.items() if e.state != "leased"}
            assert ended <= stored, "the ledger speaks of no episode that is not there"
            assert max(steps_there(place), default=0) <= state.last_step
            assert max((row.step for row in reader.metrics()), default=0) <= state.last_step
    assert made > 10


def test_a_half_line_of_a_journal_stays_out(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        go_on(run, 1)
        with run.layout.metrics.open("ab") as file:
            file.write(b'{"step": 2, "lo')
        mirror_all(uploader(run, place))
        fetched = fetch(place, tmp_path)
        assert fetched.layout.metrics.read_bytes().endswith(b"}\n")
        assert [row.step for row in fetched.metrics()] == [1]


def test_an_older_checkpoint_goes_when_a_newer_one_is_complete_there(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        for step in (1, 2):
            save_checkpoint(run.layout, step)
        mirror_all(upload)
        assert steps_there(place) == [1, 2]
        save_checkpoint(run.layout, 3)
        for step in (1, 2):
            shutil.rmtree(run.layout.checkpoints / f"{step:06d}")
        upload.commit()
        assert steps_there(place) == [2], "3 is not there yet"
        mirror_all(upload)
        assert steps_there(place) == [3]
        mirror_all(upload)
        assert not [key for key in place.sizes(DATA) if "000002" in key]
        (run.path / "model").mkdir()
        (run.path / "model" / "config.json").write_text("{}")
        shutil.rmtree(run.layout.checkpoints / "000003")
        upload.commit()
        assert steps_there(place) == [3]
        mirror_all(upload)
        assert steps_there(place) == [], "the exported model takes its place, as in SFT"


def test_a_checkpoint_that_retention_removes_while_it_is_sent_is_sent_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "WHOLE_PART", 1_000)
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        folder = save_checkpoint(run.layout, 1, 10_000)
        content = (folder / "rank-0.bin").read_bytes()
        sent: list[int] = []

        def remove_after_three(nbytes: int) -> None:
            sent.append(nbytes)
            if len(sent) == 3:
                shutil.rmtree(folder)

        upload.throttle = remove_after_three
        assert upload.send_bundles() == 1
        assert len(sent) == 11
        keys = sorted(key for key in place.sizes(DATA) if "rank-0" in key)
        assert b"".join(place.read(key) or b"" for key in keys) == content


def test_a_checkpoint_that_was_made_again_replaces_the_one_before(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        upload = uploader(run, place)
        save_checkpoint(run.layout, 2)
        mirror_all(upload)
        folder = save_checkpoint(run.layout, 2)
        upload.commit()
        assert steps_there(place) == [], "the old one is of another history"
        mirror_all(upload)
        fetched = fetch(place, tmp_path).layout
        weights = "rank-0.bin"
        assert (fetched.checkpoints / "000002" / weights).read_bytes() == (
            folder / weights
        ).read_bytes()
    folder = save_checkpoint(run.layout, 2)
    later = uploader(run, place, "t2")
    later.commit()
    assert steps_there(place) == [], "also for a process that did not send the old one"


class Cut(InfraError):
    pass


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the storage fail after so many writes; it leaves half of the object behind."""

    def install(writes: int) -> None:
        left = writes
        write = Place.write

        def failing(self: Place, key: str, content: bytes, *more: object) -> None:
            nonlocal left
            if not left:
                raise Cut("the storage is gone")
            left -= 1
            write(self, key, content)

        monkeypatch.setattr(Place, "write", failing)

    return install


@pytest.mark.parametrize("writes", range(0, 12, 2))
def test_an_upload_that_is_cut_off_anywhere_leaves_the_state_before(
    tmp_path: Path,
    writes: int,
    cut_off: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        go_on(run, 2)
        upload = uploader(run, place)
        mirror_all(upload)
        before = fetch(place, tmp_path)
        go_on(run, 4)
        cut_off(writes)
        with pytest.raises(Cut):
            mirror_all(upload)
            upload.place.write("end", b"")
            raise Cut  # everything was written
        monkeypatch.undo()
        found = fetch(place, tmp_path)
        if read_head(place) != upload.head or found.ledger().last_step == 2:
            assert content_of(found.layout.root) == content_of(before.layout.root)
        mirror_all(uploader(run, place, "t2"))
        check_invariants(fetch(place, tmp_path), 4)


def test_a_storage_that_was_emptied_is_filled_again(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        go_on(run, 2)
        upload = uploader(run, place)
        mirror_all(upload)
        shutil.rmtree(tmp_path / "mirrors")
        for _ in range(2):
            upload.commit()
            upload.send_bundles()
        upload.commit()
        check_invariants(fetch(place, tmp_path), 2)
        assert steps_there(place) == [2]


def test_parts_that_no_head_lists_are_removed_by_the_next_process(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        go_on(run, 2)
        mirror_all(uploader(run, place))
        stray = f"{DATA}/checkpoints/000009/rank-0.bin/000000000000000-3-abc"
        place.write(stray, b"abc")
        mirror_all(uploader(run, place, "t2"))
        head = read_head(place)
        assert head is not None
        assert set(place.sizes(DATA)) == head.keys()


def test_a_part_that_was_stored_cut_short_is_sent_again(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        go_on(run, 2)
        mirror_all(uploader(run, place))
        head = read_head(place)
        assert head is not None
        for key in filter(lambda key: "/metrics/" in key, head.keys()):
            place.write(key, b"{")
        mirror_all(uploader(run, place, "t2"))
        check_invariants(fetch(place, tmp_path), 2)


def test_the_teacher_of_an_sft_run_and_its_tool_traffic_are_mirrored(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run, new_run(run.layout.teacher) as teacher:
        go_on(teacher, 1)
        run.layout.tool_traffic.mkdir()
        (run.layout.tool_traffic / "a.traffic").write_bytes(b"calls")
        with new_run(run.path / "collected") as other:
            go_on(other, 1)
            mirror_all(uploader(run, place))
        fetched = fetch(place, tmp_path).layout
        assert (fetched.tool_traffic / "a.traffic").read_bytes() == b"calls"
        check_invariants(RunReader(fetched.teacher), 1)
        assert not (fetched.root / "collected").exists(), "it has a mirror of its own"


def test_private_files_of_a_run_directory_stay_there(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with new_run(tmp_path / "run") as run:
        run.layout.requests.mkdir()
        for name in ("mirror.json", ".mirror-claim", ".nfs000012", "requests/1.json"):
            (run.path / name).write_text("{}")
        mirror_all(uploader(run, place))
    head = read_head(place)
    assert head is not None
    names = {file.path.split("/")[0] for file in head.files}
    assert names <= {
        "run.json",
        "config.toml",
        "manifest.jsonl",
        "control.jsonl",
        "ledger",
        "metrics",
    }


def test_a_run_that_is_restored_goes_on_to_the_end(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    run = new_run(tmp_path / "run")
    go_on(run, 3)
    leases = [lease_in("g000003", index) for index in range(4)]
    run.ledger.lease(leases)
    run.append(to_batch([make_episode(lease=leases[0])]))
    mirror_all(uploader(run, place))
    run.close()
    shutil.rmtree(run.path)
    reader = fetch(place, tmp_path)
    with RunDirectory.open(reader.layout.root) as again:
        again.recover(2)
        go_on(again, 6)
    check_invariants(RunReader(reader.layout.root), 6)
    assert (RunLayout(reader.layout.root).run_json).exists()
    assert place.size(HEAD)
