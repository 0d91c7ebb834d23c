"""Files of shared memory with weights."""

import os
from pathlib import Path

from rollout.weights.files import WeightFiles


def test_weights_are_for_their_user_alone(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path, 64)
    assert [file.path.stat().st_mode & 0o777 for file in files.both] == [0o600, 0o600]
    files.close()


def test_what_others_leave_under_such_a_name_stops_no_start(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "trialrun-weights-folder").mkdir()
    (tmp_path / "trialrun-weights-link").symlink_to(victim)
    (tmp_path / "trialrun-weights-loop").symlink_to(tmp_path / "trialrun-weights-loop")
    os.mkfifo(tmp_path / "trialrun-weights-pipe")
    WeightFiles(tmp_path, 64).close()
    assert victim.read_text() == "mine"
