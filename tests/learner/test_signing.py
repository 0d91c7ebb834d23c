"""Checkpoints whose files were damaged, swapped, or made by somebody else are not loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from envs.errors import LearnerError
from learner.outputs.checkpoint import CheckpointRecord, _shares, load_checkpoint, save_checkpoint
from learner.signing import UNSIGNED, Signing, file_digests

MINE = CheckpointRecord(4, 4, "mine", 1, 1, "adamw")
KEY = Signing((b"mine",))


class Folder:
    """A backend that keeps a few files; enough for what is around a checkpoint."""

    rank = 0
    loaded = False

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def save_state(self, path: Path) -> None:
        for name in ("state/rank_0.pt", "state/rank_1.pt", "latest"):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(name.encode() * 1000)

    def load_state(self, path: Path) -> None:
        self.loaded = True


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    backend: Any = Folder()
    save_checkpoint(backend, tmp_path / "000004", MINE, KEY)
    return tmp_path / "000004"


def load(path: Path, signing: Signing = KEY) -> Folder:
    backend: Any = Folder()
    assert load_checkpoint(backend, path, MINE, signing).step == 4
    return backend


def test_ones_own_checkpoint_is_loaded(saved: Path) -> None:
    assert load(saved).loaded
    assert load(saved, Signing((b"new", b"mine"))).loaded  # a job's key, and the user's


def _flip(path: Path) -> None:
    content = bytearray((path / "state/rank_1.pt").read_bytes())
    content[700] ^= 1
    (path / "state/rank_1.pt").write_bytes(content)


def _swap(path: Path) -> None:
    (path / "state/rank_1.pt").write_bytes((path / "state/rank_0.pt").read_bytes())


def _link(path: Path) -> None:
    (path / "state/rank_1.pt").unlink()
    (path / "state/rank_1.pt").symlink_to(path / "latest")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (_flip, "rank_1.pt has other content"),
    "swapped": (_swap, "rank_1.pt has other content"),
    "cut": (lambda path: (path / "latest").write_bytes(b""), "latest has other content"),
    "missing": (lambda path: (path / "latest").unlink(), "latest cannot be read"),
    "added": (lambda path: (path / "zero.pt").write_bytes(b"x"), "zero.pt was added later"),
    "a link": (_link, "rank_1.pt is no plain file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_not_as_it_was_is_named_before_anything_is_loaded(
    saved: Path, kind: str
) -> None:
    damage, message = DAMAGE[kind]
    damage(saved)
    backend: Any = Folder()
    with pytest.raises(LearnerError, match=message):
        load_checkpoint(backend, saved, MINE, UNSIGNED)
    assert not backend.loaded


def _edited(path: Path, **changes: object) -> None:
    marker = path / "complete"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | changes))


def test_a_checkpoint_of_somebody_else_needs_the_users_word(saved: Path) -> None:
    backend: Any = Folder()
    for change in ({"signature": ""}, {"signature": "0" * 64}, {"optimizer_steps": 5}):
        _edited(saved, **change)
        with pytest.raises(LearnerError, match=r"a checkpoint of your own.*--trust-run"):
            load_checkpoint(backend, saved, MINE, KEY)
    assert not backend.loaded
    accepted = frozenset({sha256((saved / "complete").read_bytes()).hexdigest()})
    assert load(saved, replace(KEY, accepted=accepted)).loaded
    _flip(saved)  # its digests count nevertheless
    with pytest.raises(LearnerError, match="other content"):
        load_checkpoint(backend, saved, MINE, replace(KEY, accepted=accepted))


def test_a_forged_list_of_files_needs_the_key(saved: Path) -> None:
    _flip(saved)
    names = list(json.loads((saved / "complete").read_text())["files"])
    _edited(saved, files=file_digests(saved, names))
    backend: Any = Folder()
    with pytest.raises(LearnerError, match="another signature"):
        load_checkpoint(backend, saved, MINE, KEY)


@pytest.mark.parametrize("signature", ["\u00e9", "0" * 63 + "\u0660"])
def test_a_signature_of_any_characters_is_another_one(saved: Path, signature: str) -> None:
    marker = json.loads((saved / "complete").read_text())
    (saved / "complete").write_text(json.dumps({**marker, "signature": signature}))
    with pytest.raises(LearnerError, match="another signature"):
        load(saved)


def test_checkpoints_of_older_versions_have_no_digests(saved: Path) -> None:
    marker = json.loads((saved / "complete").read_text())
    del marker["files"], marker["signature"]
    (saved / "complete").write_text(json.dumps(marker))
    assert load(saved, UNSIGNED).loaded


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": "x"}', "[" * 100_000])
def test_a_marker_that_is_none_is_named(saved: Path, content: str) -> None:
    (saved / "complete").write_text(content)
    backend: Any = Folder()
    with pytest.raises(LearnerError, match="the marker of a checkpoint"):
        load_checkpoint(backend, saved, MINE, UNSIGNED)


def test_ranks_share_the_work_and_one_that_sees_less_does_less(tmp_path: Path) -> None:
    backend: Any = Folder()
    backend.save_state(tmp_path)
    sizes = {"a": 10, "b": 10, "c": 20}
    assert sorted(map(len, _shares([sizes, sizes]))) == [1, 2]
    assert _shares([sizes, {"a": 10, "b": 3}]) == [{"b", "c"}, {"a"}]


def test_a_file_of_several_pieces_is_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(130 * 2**20)  # sparse
    whole = file_digests(tmp_path, ["big"])
    for place in (0, 64 * 2**20, 130 * 2**20 - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
        changed = file_digests(tmp_path, ["big"])
        assert changed != whole
        whole = changed
