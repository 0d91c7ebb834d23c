"""Checkpoint folders: written under a temporary name, marked complete, then renamed."""

import json
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from envs.errors import ConfigError, LearnerError, MissingError
from learner.backends.backend import Backend

_MARKER = "complete"


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """Content of the marker file: which model and optimizer, and how many steps they made."""

    step: int
    optimizer_steps: int
    fingerprint: str
    world_size: int
    zero_stage: int
    optimizer: str


def save_checkpoint(backend: Backend, path: Path, record: CheckpointRecord) -> None:
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
    if backend.rank == 0:
        (partial / _MARKER).write_text(json.dumps(asdict(record)))
        replaced = _put_aside(path)
        partial.rename(path)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    backend.gather(None)


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


def load_checkpoint(backend: Backend, path: Path, expected: CheckpointRecord) -> CheckpointRecord:
    """Load the checkpoint at `path` and return its record; collective.

    `expected` describes the trainer that loads it. Raises MissingError where there is no
    checkpoint, LearnerError where it is incomplete, ConfigError for a different model, optimizer,
    number of ranks or ZeRO stage.
    """
    found = read_record(path)
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
    backend.load_state(path)
    return found


def read_record(path: Path) -> CheckpointRecord:
    """Return the marker of a checkpoint. Raises MissingError or LearnerError."""
    if not path.is_dir():
        raise MissingError(f"expected a checkpoint folder, found none at {path}")
    marker = path / _MARKER
    if not marker.is_file():
        raise LearnerError(
            f"expected a complete checkpoint, found no file {_MARKER} in {path}: use an older one"
        )
    return CheckpointRecord(**json.loads(marker.read_text()))
