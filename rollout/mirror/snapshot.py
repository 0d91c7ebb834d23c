"""Which files of a run directory belong to its mirror, in an order that makes them consistent.

A writer adds an episode to its segment before the ledger says that it is finished, and a step to
the ledger before its checkpoint appears. A reader that takes sizes in the opposite order,
checkpoints first and segments last, has in each file at least what the earlier ones speak of.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rollout.store.run_layout import RunLayout, is_number

_GROWS = (".jsonl", ".arrows", ".txt")
MARKER = "complete"
"""The file that makes a folder a complete checkpoint."""
_PRIVATE = ("requests", "checkpoints", "model", "mirror.json")
"""Of one place alone, or mirrored as bundles."""
_LAST = ("index", "episodes")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of the run directory at one moment."""

    path: str
    """Relative to the run directory."""
    size: int
    stamp: tuple[int, int, int]
    """Size, time of change and inode: with the same stamp, the content is the same."""
    grows: bool
    """Whether it is only ever appended to; else it is replaced in one piece."""


def complete_bundles(layout: RunLayout) -> list[Path]:
    """Return the folders that appear complete by a rename: checkpoints, oldest first, and the
    exported model.
    """
    checkpoints = sorted(
        (path for path in _items(layout.checkpoints) if is_number(path.name)),
        key=lambda path: int(path.name),
    )
    found = [path for path in checkpoints if (path / MARKER).exists()]
    return [*found, layout.model] if layout.model.is_dir() else found


def find_files(layout: RunLayout) -> list[FoundFile]:
    """Return all other files of the run, in an order that is consistent (see the module)."""
    root = layout.root
    # A step's ledger event is written before its metrics.
    early = [layout.metrics, layout.ledger, layout.manifest, layout.control]
    paths = [path for path in early if path.exists()]
    late: list[Path] = []
    for item in _items(root):
        if item.name in _PRIVATE or (item.is_dir() and not _is_ours(layout, item)):
            continue
        inside = [item] if item.is_file() else sorted(_files(item))
        (late if item.name in _LAST else paths).extend(p for p in inside if p not in early)
    late.sort(key=lambda path: path.suffix == ".arrows")  # an index line comes after its episode
    found = (_described(path, root) for path in (*paths, *late))
    files = [file for file in found if file is not None]
    if RunLayout(layout.teacher).run_json.exists():
        inner = find_files(RunLayout(layout.teacher))
        name = layout.teacher.name
        files += [FoundFile(f"{name}/{f.path}", f.size, f.stamp, f.grows) for f in inner]
    return files


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return what changes whenever a file's content does."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_ours(layout: RunLayout, folder: Path) -> bool:
    """Whether a folder is part of the run; a run in a folder of its own has a mirror of its own."""
    return folder in (*layout.folders, layout.tool_traffic)


def _described(path: Path, root: Path) -> FoundFile | None:
    try:
        status = path.stat()
    except OSError:  # replaced or removed at this moment
        return None
    relative = path.relative_to(root).as_posix()
    grows = path.suffix in _GROWS or path.parent.name == RunLayout(root).tool_traffic.name
    return FoundFile(relative, status.st_size, stamp_of(status), grows)


def _files(folder: Path) -> Iterator[Path]:
    for item in _items(folder):
        if item.is_dir():
            yield from _files(item)
        else:
            yield item


def _items(folder: Path) -> list[Path]:
    """Return what is in a folder, without hidden files: locks, drafts and `.nfs` left-overs."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
