"""Digests of a checkpoint's files, and the signature of the user who made it.

A checkpoint is a pickle of several gigabytes. Its marker holds the digest of every file, so that
one that was damaged or swapped is found before it is read, and a signature of that list. A file is
hashed in pieces, by as many threads as this process has cores: the hash of the pieces' hashes.
"""

import hashlib
import hmac
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from envs.errors import LearnerError

MARKER = "complete"
"""The file that says that a checkpoint is complete, and what it is."""
_PIECE = 64 * 2**20
_BLOCK = 2**20
_THREADS = 8
_CONTEXT = b"trialrun checkpoint\n"


@dataclass(frozen=True, slots=True)
class Signing:
    """How checkpoints are signed, and which ones are loaded."""

    keys: tuple[bytes, ...] = ()
    """Keys of the user for this run: the first signs. Without one, nothing is signed or checked."""
    accepted: frozenset[str] = frozenset()
    """SHA-256 of markers that the user has accepted although none of `keys` has signed them."""

    def sign(self, text: bytes) -> str:
        """Return the signature of a marker's content; empty without a key."""
        return _mac(self.keys[0], text) if self.keys else ""

    def check(self, path: Path, marker: bytes, text: bytes, signature: str) -> None:
        """Raise LearnerError unless the checkpoint at `path` is the user's: `marker` is its marker
        file, which says that `signature` is that of `text`.
        """
        if not self.keys or hashlib.sha256(marker).hexdigest() in self.accepted:
            return
        # Of a text with other than ASCII characters, compare_digest raises TypeError.
        given = signature.encode()
        if any(hmac.compare_digest(_mac(key, text).encode(), given) for key in self.keys):
            return
        found = "another signature" if signature else "no signature"
        raise LearnerError(
            f"expected a checkpoint of your own at {path}, found {found}: it is a pickle, and "
            "loading one that somebody made to harm you could run code. Remove its folder and "
            "resume from an older one, or add --trust-run if you trust who made it"
        )


UNSIGNED = Signing()
"""Nothing is signed, and whose a checkpoint is does not matter; its digests do."""


def file_digests(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Return the digests of the files `names` below `folder`, which are relative paths."""
    return {name: _digest(folder / name) for name in names}


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files below `folder` by relative path."""
    return {name: (folder / name).stat().st_size for name in _names(folder)}


def check_digests(folder: Path, expected: Mapping[str, str], more: Collection[str] = ()) -> None:
    """Check that files below `folder` have the digests `expected`, and that there are no `more`.

    Raises LearnerError, which names the first that differs.
    """
    for name, digest in expected.items():
        try:
            if _digest(folder / name) != digest:
                raise _damaged(folder / name, "has other content than when it was written")
        except OSError as error:
            raise _damaged(folder / name, f"cannot be read ({error.strerror})") from error
    if more:
        raise _damaged(folder / min(more), "was added later")


def _damaged(path: Path, why: str) -> LearnerError:
    return LearnerError(
        f"the checkpoint file {path} {why}. Remove its checkpoint and resume from an older one, or "
        "restore the file from a copy"
    )


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _damaged(path, "is no plain file")
        # NFS keeps removed files that are open somewhere.
        if path.is_file() and path.name != MARKER and not path.name.startswith(".nfs"):
            yield path.relative_to(folder).as_posix()


def _digest(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        starts = range(0, max(size, 1), _PIECE)
        with ThreadPoolExecutor(min(len(starts), len(os.sched_getaffinity(0)), _THREADS)) as pool:
            pieces = list(pool.map(partial(_piece, fd), starts))
    finally:
        os.close(fd)
    return hashlib.sha256(f"{size} ".encode() + b"".join(pieces)).hexdigest()


def _piece(fd: int, start: int) -> bytes:
    found, end = hashlib.sha256(), start + _PIECE
    buffer = memoryview(bytearray(_BLOCK))
    while start < end and (count := os.preadv(fd, [buffer[: end - start]], start)):
        found.update(buffer[:count])
        start += count
    return found.digest()


def _mac(key: bytes, text: bytes) -> str:
    return hmac.new(key, _CONTEXT + text, hashlib.sha256).hexdigest()
