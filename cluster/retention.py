"""Which checkpoints stay on disk."""

import shutil
from pathlib import Path


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the `count` newest whole checkpoints of `folder`; unfinished ones are left
    alone.
    """
    whole = sorted(
        path for path in folder.iterdir() if path.name.isdigit() and (path / "complete").exists()
    )
    for path in whole[:-count]:
        shutil.rmtree(path)
