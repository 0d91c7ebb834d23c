"""Which checkpoints there are, and which stay on disk."""

import math
import shutil
from pathlib import Path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where in `folder` the checkpoint of `step` lies."""
    return folder / f"{step:06d}"


def keep_newest(folder: Path, count: int, most: float = math.inf) -> None:
    """Remove all but the `count` newest whole checkpoints of `folder` up to step `most`; those of
    later steps and unfinished ones are left alone.
    """
    for path in whole_checkpoints(folder, most)[:-count]:
        shutil.rmtree(path)


def newest_checkpoint(folder: Path, most: float = math.inf) -> Path | None:
    """Return the whole checkpoint of the highest step in `folder`, up to step `most`."""
    return max(whole_checkpoints(folder, most), default=None)


def whole_checkpoints(folder: Path, most: float = math.inf) -> list[Path]:
    """Return the checkpoints of `folder` that were written to their end, oldest first."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.isdigit() and int(path.name) <= most and (path / "complete").exists()
    )
