"""The learner's side of a weight push: trained tensors become a published policy version."""

import base64
import pickle
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch.multiprocessing.reductions import reduce_tensor

from envs.errors import WeightSyncError
from rollout.weights.files import WeightFile, WeightFiles
from rollout.weights.manifest import TensorSlot, WeightLayout, WeightManifest, checksum

NamedWeights = Iterable[tuple[str, torch.Tensor]]
Views = list[tuple[TensorSlot, torch.Tensor]]


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
    """

    def __init__(self, directory: Path, layout: WeightLayout, carried: NamedWeights = ()) -> None:
        """`carried` are tensors of the layout that never change; the others are published."""
        self._layout = layout
        self._sender = _new_sender()
        self._files = WeightFiles(directory, layout.nbytes)
        views = {file.path: self._views_of(file) for file in self._files.both}
        kept = _carry(list(views.values()), carried)
        self._views = {
            path: [(slot, view) for slot, view in of_file if slot.name not in kept]
            for path, of_file in views.items()
        }

    def publish(self, version: int, named_weights: NamedWeights) -> WeightManifest:
        """Write `named_weights` and return where they lie; a failed call spoils no older one."""
        file = self._files.next
        _fill(self._views[file.path], named_weights)
        self._files.turn()
        found = checksum(memoryview(file.map))
        return WeightManifest(
            version=version,
            layout=self._layout,
            transport="shm",
            path=str(file.path),
            checksum=found,
            sender=self._sender,
        )

    def close(self) -> None:
        """Remove the files; engines that still map one keep its memory until they let go."""
        self._views.clear()
        self._files.close()

    def _views_of(self, file: WeightFile) -> Views:
        flat = torch.frombuffer(file.map, dtype=torch.uint8)
        return [(slot, _typed(flat, slot)) for slot in self._layout.slots]


class CudaIpcPublisher:
    """Copies versions into two buffers on `device` in turn; engines on the same GPU map them.

    Not exercised without a GPU. As with files, a buffer is written again two versions later.
    """

    def __init__(
        self, device: torch.device, layout: WeightLayout, carried: NamedWeights = ()
    ) -> None:
        self._device = device
        self._layout = layout
        self._sender = _new_sender()
        self._buffers = [
            torch.empty(layout.nbytes, dtype=torch.uint8, device=device) for _ in range(2)
        ]
        views = [self._views_of(buffer) for buffer in self._buffers]
        self._carried = _carry(views, carried)
        self._next = 0

    def publish(self, version: int, named_weights: NamedWeights) -> WeightManifest:
        """Copy `named_weights` on the device and return handles to the copy."""
        buffer = self._buffers[self._next]
        views = self._views_of(buffer)
        _fill([(s, view) for s, view in views if s.name not in self._carried], named_weights)
        torch.cuda.synchronize(self._device)
        gpu = str(torch.cuda.get_device_properties(self._device).uuid)
        handles = [{gpu: reduce_tensor(view)[1]} for _, view in views]
        self._next = 1 - self._next
        pickled = base64.b64encode(pickle.dumps(handles)).decode()
        return WeightManifest(
            version=version,
            layout=self._layout,
            transport="cuda_ipc",
            path="",
            checksum="",
            handles=pickled,
            sender=self._sender,
        )

    def close(self) -> None:
        """Free the buffers once no engine maps them."""
        self._buffers.clear()
        torch.cuda.ipc_collect()

    def _views_of(self, buffer: torch.Tensor) -> Views:
        return [(slot, _typed(buffer, slot)) for slot in self._layout.slots]


def _new_sender() -> str:
    return secrets.token_hex(8)


def _typed(buffer: torch.Tensor, slot: TensorSlot) -> torch.Tensor:
    flat = buffer[slot.offset : slot.offset + slot.nbytes]
    return flat.view(getattr(torch, slot.dtype)).view(slot.shape)


@torch.no_grad()
def _carry(buffers: list[Views], carried: NamedWeights) -> frozenset[str]:
    """Copy tensors of the layout into every buffer; return their names."""
    names = set()
    for name, tensor in carried:
        names.add(name)
        for views in buffers:
            _fill([(slot, view) for slot, view in views if slot.name == name], [(name, tensor)])
    return frozenset(names)


@torch.no_grad()
def _fill(views: Views, named_weights: NamedWeights) -> None:
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
