"""`signature.json`: whether a run directory is the work of this user, or came from somebody else.

A recipe can start programs, and a checkpoint is a pickle. So whoever opens a run signs, with a
secret key of their own, what later commands take from the directory: its recipes, its description,
who wrote it, and checkpoints that carry no signature of their own. Nothing else is signed: episodes
and metrics are data, and have checksums.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rollout.store.journal import replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.shared_files import read_bytes

_CONTEXT = b"trialrun run directory\n"


class Origin(StrEnum):
    """Whose run a directory holds."""

    OWN = "own"
    """Signed with a key of this user, and as it was signed."""
    UNSIGNED = "unsigned"
    """This user's files, without a signature: of an older version, or made without a key."""
    FOREIGN = "foreign"
    """Signed with another key, changed since, or another user's files."""


class RunSignature(BaseModel):
    """Content of `signature.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    files: dict[str, str]
    """SHA-256 of the recipes, of `run.json` and of `writer.json`, by name."""
    checkpoints: dict[str, str] = {}
    """SHA-256 of the marker of each checkpoint that the user has accepted as it was, by folder."""
    mac: str = ""
    """HMAC-SHA-256 of all the others."""

    def mac_under(self, key: bytes) -> str:
        """Return the HMAC of the signature under `key`."""
        content = self.model_dump(exclude={"mac"})
        text = _CONTEXT + json.dumps(content, sort_keys=True).encode()
        return hmac.new(key, text, hashlib.sha256).hexdigest()


def write_signature(layout: RunLayout, keys: Sequence[bytes], *, accept: bool) -> None:
    """Sign the run with the first of `keys`.

    `accept` says that the user answers for all recipes and checkpoints that are there; otherwise
    only `config.toml`, and what was signed before, is signed. Raises StoreError, OSError.
    """
    before = read_signature(layout, keys)
    known = set(before.files.values()) if before is not None else set[str]()
    files = {
        path.name: digest
        for path in _signed_files(layout)
        if (digest := digest_of(path))
        and (accept or digest in known or not path.name.startswith("config-until-"))
    }
    checkpoints = dict(before.checkpoints) if before is not None else {}
    if accept:
        checkpoints = {
            marker.parent.name: digest
            for marker in sorted(layout.checkpoints.glob("*/complete"))
            if (digest := digest_of(marker))
        }
    signature = RunSignature(files=files, checkpoints=checkpoints)
    signed = signature.model_copy(update={"mac": signature.mac_under(keys[0])})
    replace_file(layout.signature, signed.model_dump_json(indent=1).encode())


def read_signature(layout: RunLayout, keys: Sequence[bytes]) -> RunSignature | None:
    """Return the signature of a run that was made with one of `keys`; None where there is none."""
    try:
        signature = RunSignature.model_validate_json(read_bytes(layout.signature))
    except (OSError, ValidationError):
        return None
    # Of a text with other than ASCII characters, compare_digest raises TypeError.
    given = signature.mac.encode()
    made = [signature.mac_under(key).encode() for key in keys]
    return signature if any(hmac.compare_digest(given, mac) for mac in made) else None


def origin_of(layout: RunLayout, keys: Sequence[bytes]) -> Origin:
    """Return whose run a directory holds; `keys` are those of this user for this run."""
    signature = read_signature(layout, keys)
    if signature is not None:
        signed = (layout.config_toml, layout.run_json)
        whole = all(signature.files.get(path.name) == digest_of(path) for path in signed)
        return Origin.OWN if whole else Origin.FOREIGN
    if layout.signature.exists() or layout.signature.is_symlink():
        return Origin.FOREIGN
    try:
        owners = {path.lstat().st_uid for path in (layout.root, layout.run_json)}
    except OSError:
        return Origin.FOREIGN
    return Origin.UNSIGNED if owners == {os.geteuid()} else Origin.FOREIGN


def vouches_for(layout: RunLayout, keys: Sequence[bytes], path: Path) -> bool:
    """Whether one of `keys` has signed the file `path` of a run as it is now."""
    signature = read_signature(layout, keys)
    return signature is not None and signature.files.get(path.name) == digest_of(path)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a small file, in hexadecimal; empty where there is no plain file."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError:
        return ""


def _signed_files(layout: RunLayout) -> Iterator[Path]:
    yield from (layout.config_toml, layout.run_json, layout.writer)
    yield from sorted(layout.root.glob("config-until-*.toml"))
