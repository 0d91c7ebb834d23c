"""The weight manifest: what a receiver expects, and where a published version lies."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from envs.errors import WeightSyncError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Drawn at every start of a kernel."""


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """One tensor of a flat buffer; `dtype` is torch's name without the prefix (`float32`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the buffer, aligned to 64."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """What a receiver accepts: tensors in Hugging Face names, in order, in one buffer."""

    slots: tuple[TensorSlot, ...]

    @property
    def nbytes(self) -> int:
        """Size of the buffer, in bytes."""
        return max((slot.offset + slot.nbytes for slot in self.slots), default=0)

    @property
    def digest(self) -> str:
        """Hash of names, dtypes and shapes; sender and receiver compare it before a byte moves."""
        text = "\n".join(f"{s.name} {s.dtype} {s.shape} {s.offset}" for s in self.slots)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def of(cls, tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> "WeightLayout":
        """Lay `(name, dtype, shape, nbytes)` out one after the other, each aligned to 64 bytes."""
        slots: list[TensorSlot] = []
        offset = 0
        for name, dtype, shape, nbytes in tensors:
            slots.append(TensorSlot(name, dtype, shape, offset, nbytes))
            offset += -(-nbytes // 64) * 64
        return cls(tuple(slots))


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in memory: who can read it."""

    node: str
    """Ray's id of a node that sees it."""
    folder: str
    """Equal for all that see the same folder: containers may share one, nodes do not."""

    @classmethod
    def of(cls, directory: str, node: str) -> "Place":
        """Return the place of `directory` as seen by this process, which runs on `node`.

        Raises WeightSyncError where it is no folder.
        """
        try:
            status = os.stat(directory)
        except OSError as error:
            raise WeightSyncError(f"cluster.shm_dir {directory}: {error.strerror}") from error
        return cls(node, f"{_BOOT_ID.read_text().strip()} {status.st_dev} {status.st_ino}")


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """A published policy version: where its bytes lie and how to check them.

    `transport` is `shm` (path is a file that every worker of the node maps), `nccl` or `cuda_ipc`
    (path is empty: the bytes move between devices). `checksum` is a 64-bit hash over the buffer,
    as an unsigned hexadecimal string; empty for device transports.
    """

    version: int
    layout: WeightLayout
    transport: str
    path: str
    checksum: str
    handles: str = ""
    """`cuda_ipc`: the sender's device buffers, one handle per slot, pickled, in base64."""
    place: Place | None = None
    """`shm`: where `path` is a path; None where there is only one such place."""


def checksum(buffer: memoryview) -> str:
    """Return the 64-bit xxh3 hash of `buffer` in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(buffer)
