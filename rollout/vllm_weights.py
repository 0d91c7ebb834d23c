"""The worker's side of a weight push: vLLM weight-transfer engine that reads shared memory."""

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rollout.weights import TensorSlot, checksum

BACKEND = "trialrun_shm"
REFUSED = "weights refused"
"""Starts the message of an update that was turned down before any byte of it was used."""
_KEPT_MAPPINGS = 2


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every update names its file."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One published version; `slots` are the fields of TensorSlot, in order."""

    path: str
    nbytes: int
    checksum: str
    slots: list[tuple[str, str, list[int], int, int]]


class SharedMemoryWeightEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads a whole policy version from a file that every worker of the node maps.

    Mappings are kept between updates, for the sender alternates two files and mapping fresh pages
    costs more than copying them. The sender must leave a file alone until the update has finished.
    """

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._mappings: dict[tuple[int, int], mmap.mmap] = {}
        """By device and inode, least recently used first."""

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Do nothing: there is no rendezvous."""

    def start_weight_update(self) -> None:
        """Do nothing: layers are opened only once the update has been verified."""

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load one version; the base class would ask for an accelerator, which a CPU lacks."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Verify the file, then load every tensor through vLLM's layerwise reload.

        Raises ValueError starting with `REFUSED` while the old weights are still whole.
        """
        buffer = self._verified(update_info)
        slots = [
            TensorSlot(name, dtype, tuple(shape), offset, nbytes)
            for name, dtype, shape, offset, nbytes in update_info.slots
        ]
        initialize_layerwise_reload(self.model)
        model = cast(_TakesCheckpoint, self.model)
        model.load_weights((slot.name, _view(buffer, slot)) for slot in slots)

    def finish_weight_update(self) -> None:
        """Finalise the layers; on CPU repack a tied `lm_head`, which the reload leaves stale."""
        finalize_layerwise_reload(self.model, self.model_config)
        if (
            self.device.type == "cpu"
            and self.model_config.hf_config.get_text_config().tie_word_embeddings
        ):
            dispatch_cpu_unquantized_gemm(self.model.get_submodule("lm_head"), remove_weight=False)

    def shutdown(self) -> None:
        """Forget the mappings; the files are the sender's."""
        self._mappings.clear()

    def _verified(self, update_info: SharedMemoryUpdateInfo) -> mmap.mmap:
        try:
            buffer = self._mapping(update_info.path, update_info.nbytes)
        except (OSError, ValueError) as error:
            raise ValueError(f"{REFUSED}: cannot map {update_info.path}: {error}") from error
        found = checksum(memoryview(buffer)[: update_info.nbytes])
        if found != update_info.checksum:
            raise ValueError(
                f"{REFUSED}: expected checksum {update_info.checksum} of {update_info.path}, "
                f"found {found}"
            )
        return buffer

    def _mapping(self, path: str, nbytes: int) -> mmap.mmap:
        """Map `path` privately; a mapping of the same file is used again."""
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < nbytes:
                raise ValueError(f"expected at least {nbytes} bytes, found {status.st_size}")
            key = (status.st_dev, status.st_ino)
            kept = self._mappings.pop(key, None)
            buffer = kept or mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._mappings[key] = buffer
        while len(self._mappings) > _KEPT_MAPPINGS:
            del self._mappings[next(iter(self._mappings))]
        return buffer


class WorkerExtension:
    """Named in the engine's arguments so that every vLLM worker process imports this module."""


class _TakesCheckpoint(Protocol):
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> object: ...


def _view(buffer: mmap.mmap, slot: TensorSlot) -> torch.Tensor:
    dtype = getattr(torch, slot.dtype)
    count = slot.nbytes // dtype.itemsize
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=slot.offset).view(slot.shape)


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeightEngine)
