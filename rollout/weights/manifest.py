"""The weight manifest: what a receiver expects, and where a published version lies."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from envs.errors import WeightSyncError

Transport = Literal["shm", "cuda_ipc"]
"""How weights reach an engine: files of shared memory, or device buffers on the same GPU."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Random; a kernel samples it once, when it starts."""


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
    """The tensors that a receiver accepts: in one buffer, in order, under Hugging Face names."""

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
    """A memory-backed folder, identified so that processes can tell whether they share it."""

    node: str
    """Ray's id of a node that has the folder."""
    folder: str
    """Equal for every process that sees the same folder. Containers of a host may share one."""

    @classmethod
    def of(cls, directory: str, node: str) -> "Place":
        """Return the place of `directory` as seen by this process, which runs on `node`.

        Raises WeightSyncError if it cannot be read.
        """
        try:
            status = os.stat(directory)
        except OSError as error:
            raise WeightSyncError(f"cluster.shm_dir {directory}: {error.strerror}") from error
        return cls(node, f"{_BOOT_ID.read_text().strip()} {status.st_dev} {status.st_ino}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """A published policy version: where its bytes lie and how to check them.

    With `shm`, `path` is a file that every worker of the node maps; with `cuda_ipc` it is empty,
    since the bytes stay on the device. `checksum` is a 64-bit hash of the buffer as an unsigned
    hexadecimal string; it is empty with `cuda_ipc`.
    """

    version: int
    layout: WeightLayout
    transport: Transport
    path: str
    checksum: str
    handles: str = ""
    """`cuda_ipc`: the sender's device buffers, one handle per slot, pickled, in base64."""
    place: Place | None = None
    """`shm`: where `path` can be opened; None if there is only one place."""
    sender: str = ""
    """Random id of the publisher: versions of one sender only grow, another one counts anew."""


def checksum(buffer: memoryview) -> str:
    """Return the 64-bit xxh3 hash of `buffer` in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(buffer)
