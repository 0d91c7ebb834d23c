"""The learner's side of a weight push: trained tensors become a published policy version."""

import base64
import fcntl
import mmap
import os
import pickle
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch.multiprocessing.reductions import reduce_tensor

from envs.errors import WeightSyncError
from rollout.weights import TensorSlot, WeightLayout, WeightManifest, checksum

NamedWeights = Iterable[tuple[str, torch.Tensor]]
_PREFIX = "trialrun-weights-"


class Publisher(Protocol):
    """Turns trained tensors, under their Hugging Face names, into a manifest that engines load."""

    def publish(self, version: int, named_weights: NamedWeights) -> WeightManifest:
        """Publish all of the layout's tensors. Raises WeightSyncError naming one that is wrong."""
        ...

    def close(self) -> None: ...


class SharedMemoryPublisher:
    """Writes versions into two files of `directory` (a tmpfs such as /dev/shm) in turn.

    The file of version v is written again when the second version after v is published: until then
    every receiver of v must have loaded it or given up. A receiver that is late finds a checksum
    that does not match. Tensors are cast to the layout's dtype.

    Each file is locked while its publisher lives, so a publisher that starts can tell the leftovers
    of a killed run, and removes them.
    """

    def __init__(self, directory: Path, layout: WeightLayout) -> None:
        _reclaim(directory)
        self._layout = layout
        run = secrets.token_hex(8)
        self._buffers: list[_Buffer] = []
        try:
            for index in range(2):
                self._buffers.append(_Buffer(directory / f"{_PREFIX}{run}-{index}", layout.nbytes))
        except OSError as error:
            self.close()
            raise WeightSyncError(
                f"expected room for two buffers of {layout.nbytes} bytes in {directory}, "
                f"found: {error}"
            ) from error
        self._next = 0

    def publish(self, version: int, named_weights: NamedWeights) -> WeightManifest:
        """Write `named_weights` and return where they lie; a failed call spoils no older one."""
        buffer = self._buffers[self._next]
        _fill([(slot, buffer.view(slot)) for slot in self._layout.slots], named_weights)
        self._next = 1 - self._next
        return WeightManifest(
            version, self._layout, "shm", str(buffer.path), checksum(buffer.bytes)
        )

    def close(self) -> None:
        """Remove the files; engines that still map one keep its memory until they let go."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()


class CudaIpcPublisher:
    """Copies versions into two buffers on `device` in turn; engines on the same GPU map them.

    Not exercised without a GPU. As with files, a buffer is written again two versions later.
    """

    def __init__(self, device: torch.device, layout: WeightLayout) -> None:
        self._device = device
        self._layout = layout
        self._buffers = [
            torch.empty(layout.nbytes, dtype=torch.uint8, device=device) for _ in range(2)
        ]
        self._next = 0

    def publish(self, version: int, named_weights: NamedWeights) -> WeightManifest:
        """Copy `named_weights` on the device and return handles to the copy."""
        buffer = self._buffers[self._next]
        views = [(slot, _typed(buffer, slot)) for slot in self._layout.slots]
        _fill(views, named_weights)
        torch.cuda.synchronize(self._device)
        gpu = str(torch.cuda.get_device_properties(self._device).uuid)
        handles = [{gpu: reduce_tensor(view)[1]} for _, view in views]
        self._next = 1 - self._next
        pickled = base64.b64encode(pickle.dumps(handles)).decode()
        return WeightManifest(version, self._layout, "cuda_ipc", "", "", pickled)

    def close(self) -> None:
        """Free the buffers once no engine maps them."""
        self._buffers.clear()
        torch.cuda.ipc_collect()


class WeightSender(Protocol):
    """Broadcasts device tensors to engines that are loading their manifest."""

    def send(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Return when every engine has received `weights`, which come in the layout's order."""
        ...

    def close(self) -> None: ...


class NcclPublisher:
    """Copies a version into a buffer on `device`; `sender` broadcasts it while engines load.

    The manifest is back before the broadcast has begun, for engines join it by loading. The next
    publication waits for it, `timeout_s` at most. Not exercised without two GPUs.
    """

    def __init__(
        self, device: torch.device, layout: WeightLayout, sender: WeightSender, timeout_s: float
    ) -> None:
        self._device = device
        self._layout = layout
        self._sender = sender
        self._timeout_s = timeout_s
        self._buffer = torch.empty(layout.nbytes, dtype=torch.uint8, device=device)
        self._thread = ThreadPoolExecutor(1, "weight-broadcast")
        self._sending: Future[None] | None = None

    def publish(self, version: int, named_weights: NamedWeights) -> WeightManifest:
        """Start the broadcast of `named_weights`. Raises WeightSyncError if the last one failed."""
        self._join()
        views = [(slot, _typed(self._buffer, slot)) for slot in self._layout.slots]
        _fill(views, named_weights)
        torch.cuda.synchronize(self._device)
        self._sending = self._thread.submit(self._send, [(s.name, view) for s, view in views])
        return WeightManifest(version, self._layout, "nccl", "", "")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._sender.close()

    def _send(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        with torch.cuda.device(self._device):
            self._sender.send(weights)

    def _join(self) -> None:
        sending, self._sending = self._sending, None
        if sending is None:
            return
        try:
            sending.result(self._timeout_s)
        except (RuntimeError, TimeoutError, ValueError) as error:
            raise WeightSyncError(
                f"expected the last broadcast to end within {self._timeout_s:g} s, found {error!r}"
            ) from error


class _Buffer:
    """One locked, mapped file of a fixed size."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.stat()  # a publisher that started at the same moment may just have removed it
            # takes the pages now: running out of memory is an error here, a SIGBUS later
            os.posix_fallocate(self._file.fileno(), 0, max(nbytes, 1))
            self._map = mmap.mmap(self._file.fileno(), max(nbytes, 1))
        except OSError:
            self._file.close()
            path.unlink(missing_ok=True)
            raise
        self._tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    @property
    def bytes(self) -> memoryview:
        return memoryview(self._map)

    def view(self, slot: TensorSlot) -> torch.Tensor:
        return _typed(self._tensor, slot)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()


def _typed(buffer: torch.Tensor, slot: TensorSlot) -> torch.Tensor:
    flat = buffer[slot.offset : slot.offset + slot.nbytes]
    return flat.view(getattr(torch, slot.dtype)).view(slot.shape)


@torch.no_grad()
def _fill(views: list[tuple[TensorSlot, torch.Tensor]], named_weights: NamedWeights) -> None:
    """Copy every tensor into its view. Raises WeightSyncError unless names and shapes match."""
    missing = {slot.name: (slot, view) for slot, view in views}
    for name, tensor in named_weights:
        if name not in missing:
            raise WeightSyncError(
                f"expected each tensor of the layout once, found {name} beyond that"
            )
        slot, view = missing.pop(name)
        if tuple(tensor.shape) != slot.shape:
            raise WeightSyncError(
                f"expected {name} of shape {slot.shape}, found {tuple(tensor.shape)}"
            )
        view.copy_(tensor)
    if missing:
        raise WeightSyncError(
            f"expected all tensors of the layout, found {len(missing)} missing: "
            f"{sorted(missing)[:5]}"
        )


def _reclaim(directory: Path) -> None:
    """Remove files whose publisher is gone: the kernel dropped its lock, however it died."""
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            with path.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue
