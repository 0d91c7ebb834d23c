"""Files of shared memory with weights."""

import os
from pathlib import Path

import pytest

from envs.errors import WeightSyncError
from rollout.weights.files import WeightFiles


def folder_in(directory: Path) -> Path:
    return directory / f"trialrun-weights-{os.getuid()}"


def test_weights_are_for_their_user_alone(tmp_path: Path) -> None:
    folder_in(tmp_path).mkdir(mode=0o755)
    files = WeightFiles(tmp_path, 64)
    assert [file.path.stat().st_mode & 0o777 for file in files.both] == [0o600, 0o600]
    assert {file.path.parent for file in files.both} == {folder_in(tmp_path)}
    assert folder_in(tmp_path).stat().st_mode & 0o777 == 0o700
    files.close()
    assert not [*folder_in(tmp_path).iterdir()]


def test_files_of_a_writer_that_is_gone_are_removed(tmp_path: Path) -> None:
    running = WeightFiles(tmp_path, 64)
    left = folder_in(tmp_path) / "policy-gone-0"
    left.write_bytes(b"0" * 64)
    WeightFiles(tmp_path, 64).close()
    assert {*folder_in(tmp_path).iterdir()} == {file.path for file in running.both}
    running.close()


def test_what_lies_under_such_a_name_stops_no_start(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = folder_in(tmp_path)
    (folder / "policy-folder").mkdir(parents=True)
    (folder / "policy-link").symlink_to(victim)
    (folder / "policy-loop").symlink_to(folder / "policy-loop")
    os.mkfifo(folder / "policy-pipe")
    WeightFiles(tmp_path, 64).close()
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "file", "of another"])
def test_a_folder_that_is_not_this_users_is_refused(tmp_path: Path, kind: str) -> None:
    folder, elsewhere = folder_in(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        folder.symlink_to(elsewhere)
    elif kind == "file":
        folder.touch()
    elif os.getuid():
        pytest.skip("only root can make a folder of another user")
    else:
        folder.mkdir()
        os.chown(folder, 12_345, -1)
    with pytest.raises(WeightSyncError, match="trialrun-weights-"):
        WeightFiles(tmp_path, 64)
    assert not [*elsewhere.iterdir()]
