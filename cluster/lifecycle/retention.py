"""Which checkpoints exist, and which stay on disk."""

import math
from pathlib import Path

from rollout.store.run_layout import is_number
from rollout.store.shared_files import remove_folder, remove_left_overs


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where in `folder` the checkpoint of `step` lies."""
    return folder / f"{step:06d}"


def keep_newest(folder: Path, count: int, most: float = math.inf) -> None:
    """Remove all but the `count` newest complete checkpoints of `folder` up to step `most`; those
    of later steps and incomplete ones stay.
    """
    remove_left_overs(folder)
    for path in whole_checkpoints(folder, most)[:-count]:
        remove_folder(path)


def newest_checkpoint(folder: Path, most: float = math.inf) -> Path | None:
    """Return the complete checkpoint of the highest step in `folder`, up to step `most`."""
    return max(whole_checkpoints(folder, most), default=None)


def whole_checkpoints(folder: Path, most: float = math.inf) -> list[Path]:
    """Return the complete checkpoints of `folder`, oldest first."""
    return sorted(
        path
        for path in folder.iterdir()
        if is_number(path.name) and int(path.name) <= most and (path / "complete").exists()
    )
