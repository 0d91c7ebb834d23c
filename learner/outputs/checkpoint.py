"""Checkpoint folders: written under a temporary name, marked complete, then renamed."""

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from envs.errors import ConfigError, LearnerError, MissingError
from learner.backends.backend import Backend
from learner.signing import (
    MARKER,
    UNSIGNED,
    Signing,
    check_digests,
    file_digests,
    file_sizes,
)


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """Content of the marker file: which model and optimizer, and how many steps they made."""

    step: int
    optimizer_steps: int
    fingerprint: str
    world_size: int
    zero_stage: int
    optimizer: str
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of the checkpoint's files, by relative path; empty in older checkpoints."""
    signature: str = ""
    """Of the user who made it, over all the others."""

    @property
    def signed_text(self) -> bytes:
        """What the signature is of."""
        return json.dumps(asdict(replace(self, signature="")), sort_keys=True).encode()


_RECORD = TypeAdapter(CheckpointRecord)


def save_checkpoint(
    backend: Backend, path: Path, record: CheckpointRecord, signing: Signing = UNSIGNED
) -> None:
    """Write a checkpoint to `path`, replacing an existing one; collective.

    `path` keeps its old content until the rename at the end.
    """
    partial = path.with_name(f"{path.name}.partial")
    if backend.rank == 0:
        _remove(partial)
        partial.mkdir(parents=True)
    backend.gather(None)
    backend.save_state(partial)
    backend.gather(None)
    files = _digests(backend, partial)
    if backend.rank == 0:
        record = replace(record, files=files)
        record = replace(record, signature=signing.sign(record.signed_text))
        (partial / MARKER).write_text(json.dumps(asdict(record)))
        replaced = _put_aside(path)
        partial.rename(path)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    backend.gather(None)


def _digests(backend: Backend, folder: Path) -> dict[str, str]:
    """Return the digests of all files of `folder`, of which each rank hashes its share; collective.

    A rank on another node may not see all of a file yet that another rank has written.
    """
    shares = _shares(backend.gather(file_sizes(folder)))
    parts = backend.gather(file_digests(folder, shares[backend.rank]))
    return dict(sorted((name, digest) for part in parts for name, digest in part.items()))


def _check(backend: Backend, folder: Path, expected: Mapping[str, str]) -> None:
    """Check the files of `folder`, of which each rank looks at its share; collective.

    Raises LearnerError on every rank where one differs.
    """
    shares = _shares(backend.gather(file_sizes(folder)))
    found, seen = "", {name for share in shares for name in share}
    mine = {n: d for n, d in expected.items() if n in shares[backend.rank] or n not in seen}
    try:
        check_digests(folder, mine, more=seen - expected.keys())
    except LearnerError as error:
        found = str(error)
    for said in backend.gather(found):
        if said:
            raise LearnerError(said)


def _shares(seen: Sequence[Mapping[str, int]]) -> list[set[str]]:
    """Return for each rank the files that it hashes, of the sizes that each has `seen`: about as
    many bytes each, and only files of which a rank sees as much as any.
    """
    shares, bytes_of = [set[str]() for _ in seen], [0] * len(seen)
    largest: dict[str, int] = {}
    for sizes in seen:
        for name, size in sizes.items():
            largest[name] = max(size, largest.get(name, 0))
    for name, size in sorted(largest.items(), key=lambda item: (-item[1], item[0])):
        able = [rank for rank, sizes in enumerate(seen) if sizes.get(name) == size]
        rank = min(able, key=bytes_of.__getitem__)
        shares[rank].add(name)
        bytes_of[rank] += size
    return shares


def _remove(path: Path) -> None:
    """Remove a folder; its name is free afterwards, whatever the file system keeps of it (NFS keeps
    removed files that are open somewhere).
    """
    aside = _put_aside(path)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _put_aside(path: Path) -> Path | None:
    """Rename a folder to a hidden name; return that, or None where there is no folder."""
    if not path.exists():
        return None
    aside = path.with_name(f".{path.name}.removed-{secrets.token_hex(4)}")
    path.rename(aside)
    return aside


def load_checkpoint(
    backend: Backend, path: Path, expected: CheckpointRecord, signing: Signing = UNSIGNED
) -> CheckpointRecord:
    """Load the checkpoint at `path` and return its record; collective.

    `expected` describes the trainer that loads it. Raises MissingError where there is no
    checkpoint, LearnerError where it is incomplete, damaged or somebody else's, ConfigError for a
    different model, optimizer, number of ranks or ZeRO stage.
    """
    found = read_record(path, signing)
    for field, advice in (
        ("fingerprint", "start from the model that the checkpoint was made with"),
        ("optimizer", "set the optimizer it was made with"),
        ("zero_stage", "set the stage it was made with"),
        ("world_size", "set learner.ranks to it, or export the model and start from that"),
    ):
        old, new = getattr(found, field), getattr(expected, field)
        if old != new:
            raise ConfigError(
                f"expected a checkpoint with {field} {new}, found {old} in {path}: {advice}"
            )
    if found.files:
        _check(backend, path, found.files)
    backend.load_state(path)
    return found


def read_record(path: Path, signing: Signing = UNSIGNED) -> CheckpointRecord:
    """Return the marker of a checkpoint. Raises MissingError or LearnerError."""
    if not path.is_dir():
        raise MissingError(f"expected a checkpoint folder, found none at {path}")
    marker = path / MARKER
    if marker.is_symlink() or not marker.is_file():
        raise LearnerError(
            f"expected a complete checkpoint, found no file {MARKER} in {path}: use an older one"
        )
    content = marker.read_bytes()
    try:
        found = _RECORD.validate_json(content)
    except ValidationError as error:
        raise LearnerError(
            f"expected the marker of a checkpoint in {marker}, found "
            f"{' '.join(str(error).split())[:200]}: use an older checkpoint"
        ) from error
    signing.check(path, content, found.signed_text, found.signature)
    return found
