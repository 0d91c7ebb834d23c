"""Copies of mirrors on this machine, for commands that read runs: fetched as far as needed.

A copy is a run directory without a writer. Each command brings the files that it reads to the
mirror's newest state; files are replaced one by one and in one piece, in an order in which a reader
at that moment sees what it would see of a running run.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.errors import DeadlineError, MissingError
from rollout.mirror.claim import CLAIM, RESOLUTION_S, read_claim
from rollout.mirror.download import PartGoneError, fetch_files
from rollout.mirror.head import HEAD, Head, MirroredFile, read_head
from rollout.mirror.place import Place
from rollout.store.journal import make_folder, replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.shared_files import read_bytes

KEPT = 32
"""Copies that stay in the cache: the ones that were used last."""
_LOCK_S = 600.0
_POLL_S = 0.2
_TRIES = 4
"""How often a fetch begins again because the mirror has a newer head meanwhile."""


class CopyRecord(BaseModel):
    """What a copy is of, and what it holds: the file `layout.mirror_copy`, written last."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    address: str
    run: str
    created_at: float
    at: float
    """When the writer took this state, in Unix seconds of its own clock."""
    live: bool
    """Whether a writer claimed the mirror when the copy was made."""
    has_work: bool = True
    """Whether the run has recorded anything: an episode, a step, a checkpoint."""
    files: tuple[MirroredFile, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy on this machine."""

    path: Path
    record: CopyRecord


def fetch_copy(place: Place, cache: Path, wanted: Callable[[str], bool]) -> Copy:
    """Return a copy in the folder `cache` whose `wanted` files are the mirror's newest state.

    Raises MissingError where there is no mirror, StoreError for a damaged one, DeadlineError
    where another command holds the copy for long, and InfraError.
    """
    key = hashlib.sha256(place.address.with_options.encode()).hexdigest()[:16]
    path = cache / key / place.address.name
    make_folder(path.parent)
    with _alone(path.parent / ".lock"):
        for tries_left in reversed(range(_TRIES)):
            head = read_head(place)
            if head is None:
                raise MissingError(_nothing_at(place))
            try:
                copy = _update(place, head, path, wanted)
            except PartGoneError:
                if not tries_left:
                    raise
            else:
                os.utime(path)
                _remove_old(cache)
                return copy
    raise AssertionError("unreachable")


def read_copy_record(layout: RunLayout) -> CopyRecord | None:
    """Return what the copy of a mirror says of itself; None for a run directory that is none."""
    try:
        return CopyRecord.model_validate_json(read_bytes(layout.mirror_copy))
    except (FileNotFoundError, ValidationError):
        return None


def runs_at(place: Place) -> list[str]:
    """Return the names of the runs mirrored directly below `place`. Raises InfraError."""
    return [name for name in place.folders() if place.size(f"{name}/{HEAD}") is not None]


def _update(place: Place, head: Head, path: Path, wanted: Callable[[str], bool]) -> Copy:
    layout = RunLayout(path)
    before = read_copy_record(layout)
    if before is not None and (before.run, before.created_at) != (head.run, head.created_at):
        shutil.rmtree(path)
        before = None
    had = {file.path: file for file in before.files} if before else {}
    now = head.by_path
    for gone in sorted(had.keys() - now.keys(), reverse=True):  # `complete` before the rest
        (path / gone).unlink(missing_ok=True)
    for folder in layout.folders:
        make_folder(folder)
    fetch_files(place, head, path, wanted, had)
    held = tuple(
        now[name] if wanted(name) else had[name]
        for name in sorted(now)
        if wanted(name) or name in had
    )
    record = CopyRecord(
        address=place.address.with_options,
        run=head.run,
        created_at=head.created_at,
        at=head.at,
        live=_is_live(place),
        has_work=head.has_work,
        files=held,
    )
    replace_file(layout.mirror_copy, record.model_dump_json().encode())
    return Copy(path, record)


def _is_live(place: Place) -> bool:
    """Whether a writer has renewed its claim in time, by the clock of this machine: the storage's
    own would need a write, and who reads may not.
    """
    record, written_at = read_claim(place), place.written_at(CLAIM)
    if record is None or written_at is None or record.released:
        return False
    return abs(time.time() - written_at) <= record.lease_s + RESOLUTION_S


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one command at a time change a copy. Raises DeadlineError."""
    with lock.open("w") as file:
        until = time.monotonic() + _LOCK_S
        while not _locked(file.fileno()):
            if time.monotonic() > until:
                raise DeadlineError(f"another command has held {lock} for {_LOCK_S:g} s")
            time.sleep(_POLL_S)
        yield


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there: files are replaced in one piece all the same
        return True
    return True


def _remove_old(cache: Path) -> None:
    copies = [path for path in cache.glob("*/*") if RunLayout(path).mirror_copy.exists()]
    for path in sorted(copies, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        with suppress(OSError):
            shutil.rmtree(path.parent)


def _nothing_at(place: Place) -> str:
    names = runs_at(place)
    inner = ", ".join(str(place.address.below(name)) for name in names[:8])
    if inner:
        return f"{place} is not a run but holds mirrors of runs: name one of {inner}"
    return (
        f"expected the mirror of a run at {place}, found no {HEAD} there: check the address, and "
        "that the run was started with this mirror.url"
    )
