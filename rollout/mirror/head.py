"""The head of a mirror, `mirror.json`: the one object that says what the mirror holds.

Files of the run are cut into parts, and a part's name holds its place in the file, its size and the
digest of its content. So a part never changes, and is never written over. The head lists the
parts of a consistent state of the run, and is replaced in one piece after all of them are there:
whoever reads the head sees that state, whatever happens during an upload. What the head does
not list does not exist: parts of an upload that was cut off are removed later.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from envs.errors import StoreError
from rollout.mirror.place import Place
from rollout.store.run_layout import RunInfo

HEAD = "mirror.json"
DATA = "data"
"""Folder of all parts."""
HEAD_VERSION = 1
_WORK = ("ledger/", "episodes/", "metrics/", "checkpoints/", "model/", "teacher/")


class Part(NamedTuple):
    """A piece of a file: its size in bytes, and the XXH3 digest (128 bits) of its content."""

    size: int
    digest: str


class MirroredFile(BaseModel):
    """A file of the run; its parts in order are its content."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    """Relative to the run directory, with slashes."""
    parts: tuple[Part, ...]

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if not path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
            raise ValueError(f"expected a path inside of the run directory, found {path!r}")
        return path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(part.size for part in self.parts)

    def part_keys(self) -> Iterator[str]:
        """Yield the key of every part, in order."""
        start = 0
        for part in self.parts:
            yield part_key(self.path, start, part)
            start += part.size


class Head(BaseModel):
    """What a mirror holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = HEAD_VERSION
    run: str
    """Id of the run, as in its `run.json`."""
    created_at: float
    """When the run was created, as there; with the id, it tells one run from another."""
    sequence: int
    """How many states the mirror has had."""
    at: float
    """When the writer took this state, in Unix seconds of its own clock."""
    token: str
    """Of the writer that made this state."""
    files: tuple[MirroredFile, ...]

    @property
    def by_path(self) -> dict[str, MirroredFile]:
        """The files by path."""
        return {file.path: file for file in self.files}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def has_work(self) -> bool:
        """Whether the run had recorded anything: an episode, a step, a checkpoint."""
        return any(file.size and file.path.startswith(_WORK) for file in self.files)

    def keys(self) -> set[str]:
        """Return the keys of all parts."""
        return {key for file in self.files for key in file.part_keys()}

    def is_of(self, run: RunInfo) -> bool:
        """Whether this is a state of `run`."""
        return (self.run, self.created_at) == (run.run, run.created_at)


def part_key(path: str, start: int, part: Part) -> str:
    """Return the key of the part of `path` that begins at byte `start`."""
    return f"{DATA}/{path}/{start:015d}-{part.size}-{part.digest}"


def part_of(content: bytes) -> Part:
    """Return what describes `content`."""
    return Part(len(content), xxhash.xxh3_128_hexdigest(content))


def read_head(place: Place) -> Head | None:
    """Return the head of the mirror at `place`; None where there is no mirror.

    Raises StoreError for one that is damaged, or that a newer trialrun wrote, and InfraError.
    """
    content = place.read(HEAD)
    if content is None:
        return None
    try:
        head = Head.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(
            f"{place}/{HEAD}: expected the head of a mirror, found "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if head.version > HEAD_VERSION:
        raise StoreError(
            f"{place}/{HEAD}: expected version {HEAD_VERSION} or older, found {head.version}: a "
            "newer trialrun wrote it; read it with that version"
        )
    return head


def write_head(place: Place, head: Head) -> None:
    """Replace the head: from now on the mirror is what it says. Raises InfraError."""
    place.write(HEAD, head.model_dump_json().encode())


def check_identity(place: Place, head: Head, run: RunInfo) -> None:
    """Raise StoreError where the mirror holds another run than `run`."""
    if not head.is_of(run):
        raise StoreError(
            f"{place} is the mirror of another run (id {head.run!r}, created at "
            f"{head.created_at:.0f}) than this one (id {run.run!r}, created at "
            f"{run.created_at:.0f}): choose another run.name or mirror.url, or remove that mirror"
        )


def check_lineage(place: Place, mirrored: bytes, local: bytes) -> None:
    """Raise StoreError where the run directory is not the one that the mirror is a state of, or a
    continuation of it; both are given by their `manifest.jsonl`, which every writer continues.
    """
    if local.startswith(mirrored):
        return
    if mirrored.startswith(local):
        what = "was continued elsewhere, from its mirror, and this directory is older"
    else:
        what = "has two histories: it was continued here and, from its mirror, elsewhere"
    raise StoreError(
        f"the run mirrored at {place} {what}: move this directory away and resume, which restores "
        "the run from the mirror; or choose another mirror.url to go on from this directory"
    )
