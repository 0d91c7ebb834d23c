"""Weight pushes in vLLM's terms: a transfer engine that reads shared memory."""

import mmap
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from vllm.config import LoadConfig, ModelConfig, VllmConfig, WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rollout.engines.engine_owner import end_with_owner
from rollout.engines.vllm_text import text_weights
from rollout.weights.manifest import TensorSlot, checksum
from rollout.weights.model_folder import weight_files

BACKEND = "trialrun_shm"
LOAD_FORMAT = "trialrun_folder"
"""vLLM's name for the loader of the initial weights."""
REFUSED = "weights refused"
"""Start of the message of an update that was refused before any byte of it was used."""
ADAPTER_ID = 1
"""vLLM's number of the one adapter; every request names it."""

_KEPT_MAPPINGS = 2


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Empty: every update names its file, so there is nothing to agree on beforehand."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One published version; `slots` are the fields of TensorSlot, in order."""

    path: str
    nbytes: int
    checksum: str
    slots: list[tuple[str, str, list[int], int, int]]


class _PublishedFiles:
    """Versions in files of shared memory, verified before they are read.

    Mappings are kept between updates, because the sender alternates between two files and mapping
    fresh pages costs more than copying them.
    """

    def __init__(self) -> None:
        self._mappings: dict[tuple[int, int], mmap.mmap] = {}
        """By device and inode, least recently used first."""

    def tensors(self, info: SharedMemoryUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield views of the version's tensors; the check comes before the first.

        Raises ValueError starting with `REFUSED`.
        """
        buffer = self._verified(info)
        for name, dtype, shape, offset, nbytes in info.slots:
            yield name, _view(buffer, TensorSlot(name, dtype, tuple(shape), offset, nbytes))

    def clear(self) -> None:
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


class SharedMemoryWeightEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads a policy version from a file that every worker of the node maps.

    The sender must not change a file until the update has finished.
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
        self._files = _PublishedFiles()

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Do nothing: there is no rendezvous."""

    def start_weight_update(self) -> None:
        """Do nothing: layers are opened only once the update has been verified."""

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load one version; the base class would require an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Verify the file, then load every tensor through vLLM's layerwise reload.

        Raises ValueError starting with `REFUSED` if it is refused; the old weights are intact then.
        """
        tensors = self._files.tensors(update_info)
        first = next(tensors)
        if self.device.type == "cpu":
            _let_experts_pack_again(self.model)
        initialize_layerwise_reload(self.model)
        named = text_weights(
            chain([first], tensors), self.model_config.model, self.model_config.hf_config
        )
        cast(_TakesCheckpoint, self.model).load_weights(named)

    def finish_weight_update(self) -> None:
        """Finalise the layers; on CPU repack a tied `lm_head`, which the reload leaves stale."""
        finalize_layerwise_reload(self.model, self.model_config)
        if (
            self.device.type == "cpu"
            and self.model_config.hf_config.get_text_config().tie_word_embeddings
        ):
            _repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Drop the mappings; the files belong to the sender."""
        self._files.clear()


@register_model_loader(LOAD_FORMAT)
class FolderLoader(DefaultModelLoader):
    """Reads the files that hold the weights of a folder, as the learner does, and no others.

    vLLM reads every safetensors file where there is no index, and prefers Mistral's own format.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="safetensors"))

    def _prepare_weights(self, *arguments: Any, **options: Any) -> Any:
        folder, _, *others = super()._prepare_weights(*arguments, **options)
        return folder, [str(file) for file in weight_files(Path(folder))], *others

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor]]:
        named = super().get_all_weights(model_config, model)
        yield from text_weights(named, model_config.model, model_config.hf_config)


end_with_owner()


class WorkerExtension:
    """Extension of every vLLM worker; naming it makes each worker import this module."""

    model_runner: Any
    model_config: Any
    _files: _PublishedFiles | None = None

    def load_adapter(
        self, peft: dict[str, Any], shapes: list[tuple[str, str, list[int]]], update: dict[str, Any]
    ) -> None:
        """Replace the adapter by the one of `update`, or by zeros if `update` is empty.

        `peft` is PEFT's configuration; `shapes` are (name, dtype, shape) in its names. Raises
        ValueError starting with `REFUSED` if it is refused; the old adapter is intact then.
        """
        if update:
            self._files = self._files or _PublishedFiles()
            found = self._files.tensors(SharedMemoryUpdateInfo(**update))
            tensors = {name: view.clone() for name, view in found}
        else:
            tensors = {
                name: torch.zeros(shape, dtype=getattr(torch, dtype))
                for name, dtype, shape in shapes
            }
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = LoRAModel.from_lora_tensors(
            ADAPTER_ID,
            tensors,
            PEFTHelper.from_dict(peft),
            device="cpu",
            dtype=self.model_runner.lora_config.lora_dtype,
        )
        manager.remove_adapter(ADAPTER_ID)
        manager.add_adapter(adapter)
        manager.activate_adapter(ADAPTER_ID)


class _TakesCheckpoint(Protocol):
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> object: ...


def _let_experts_pack_again(model: torch.nn.Module) -> None:
    """Forget the kernels of experts, so that a reload packs their new weights as the first did.

    With a kernel in place vLLM copies plain weights to where the CPU's grouped kernel expects
    packed ones, and says nothing.
    """
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Give `lm_head` the packed weight of the embedding that it is tied to."""
    head = model.get_submodule("lm_head")
    for layer in model.modules():
        if layer is not head and getattr(layer, "weight", None) is head.weight:
            head.cpu_linear = layer.cpu_linear  # packed by the reload just now
            return
    dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def _view(buffer: mmap.mmap, slot: TensorSlot) -> torch.Tensor:
    dtype = getattr(torch, slot.dtype)
    count = slot.nbytes // dtype.itemsize
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=slot.offset).view(slot.shape)


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeightEngine)
