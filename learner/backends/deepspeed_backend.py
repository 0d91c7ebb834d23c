"""The DeepSpeed backend: ZeRO 0 to 3 over one process per rank; the only importer of deepspeed."""

import atexit
import hashlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment
from torch import Tensor, nn

from envs.errors import ConfigError, LearnerError, NonFiniteError
from learner.backends.checkpoint_files import check_files
from learner.backends.lora import PEFT, adapters_off, is_factor, merged, saved_name
from learner.backends.optimizers import build_optimizer
from learner.config import OptimizerSection
from learner.packed.packing import Pack
from learner.packed.policy import PREFIX, PolicyModule, load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.names import checkpoint_names
from learner.trainer_setup import TrainerSetup

_TAG = "state"
_OWN_STATE = (
    *(DynamicLossScaler, LossScaler, ZeroStageEnum, OffloadDeviceEnum),
    *(fragment_address, tensor_fragment),
)
"""Classes of DeepSpeed whose objects its checkpoints hold."""
_PERSISTENT_ELEMENTS = 10_000  # smaller parameters (norms) stay whole on every rank under ZeRO 3


class DeepSpeedBackend:
    """One rank. Implements learner.backends.backend.Backend."""

    def __init__(self, setup: TrainerSetup) -> None:
        config, dtype, lora = setup.sft or setup.learner, setup.model.dtype, setup.model.lora
        _refuse_impossible(dtype, config)
        self.rank, self.world_size = setup.rank, setup.world_size
        self._config = config
        self._device = torch.device("cuda:0" if setup.device == "cuda" else "cpu")
        self._dtype: torch.dtype = getattr(torch, dtype)
        _join(setup, config.collective_timeout_s)
        packing = config.packing == "auto"
        module = load_policy(setup.model_path, self._dtype, self._device, packing=packing)
        check_logprobs(module)
        self.packs = module.packs
        module.entropy_gradient = config.entropy_gradient
        self._lora = lora
        if lora.rank:
            resolve_name(f"{PEFT}:add_adapters")(module.policy, lora)
        if config.activation_checkpointing:
            module.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.fingerprint = _fingerprint(module)
        # With adapters the reference is the policy with its adapters off: no second copy.
        needs_copy = setup.sft is None and setup.learner.kl_coef > 0 and not lora.rank
        self._reference = (
            load_policy(setup.model_path, self._dtype, self._device, packing=packing).eval()
            if needs_copy
            else None
        )
        embeddings = [
            parameter
            for layer in (
                module.policy.get_input_embeddings(),
                module.policy.get_output_embeddings(),
            )
            if layer is not None
            for parameter in layer.parameters()
        ]
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, embeddings, config),
            config=_engine_config(dtype, config, setup.world_size, setup.device),
        )
        self._engine: Any = engine
        self._module = module
        self._plain = _is_plain(dtype, config)
        self._rates = [group["lr"] for group in self._engine.optimizer.param_groups]

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        self._engine.train()
        return self._engine(pack.to(self._device))

    def score(self, pack: Pack, *, reference: bool = False) -> tuple[Tensor, Tensor]:
        bare = reference and self._lora.rank > 0
        scorer: Any = self._reference if reference and not bare else self._engine
        if scorer is None:
            raise LearnerError("expected learner.kl_coef above 0 for reference scores, found 0")
        self._engine.eval()
        with torch.no_grad(), adapters_off(self._module) if bare else nullcontext():
            return scorer(pack.to(self._device))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        # DeepSpeed averages over ranks, the loss is a sum. A NaN reaches every rank with the
        # gradients, which an exception on one rank would not.
        factor = float(self.world_size) if torch.isfinite(loss) else math.nan
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * factor)
        if not last:
            self._engine.step()

    def step(self, lr_scale: float) -> float:
        for group, rate in zip(self._engine.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * lr_scale
        norm = self._clip_and_step() if self._plain else self._sharded_step()
        if not math.isfinite(norm):
            raise NonFiniteError(
                "expected finite logits, losses and gradients on every rank, found NaN or "
                "infinity: the step was skipped and the weights are as before"
            )
        return norm

    def _sharded_step(self) -> float:
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is None or getattr(self._engine.optimizer, "overflow", False):
            return math.inf
        return float(norm)  # 0 where every advantage is 0: a valid step

    def _clip_and_step(self) -> float:
        # ZeRO 0 in float32 runs torch's optimizer directly: DeepSpeed would apply a NaN.
        limit = self._config.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self._module.parameters(), limit))
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        for layer in self._layers():
            whole = merged(layer, self._lora) if self._lora.rank else layer
            yield from checkpoint_names(self._module.policy, whole)

    def pushed_weights(self) -> Iterator[tuple[str, Tensor]]:
        if not self._lora.rank:
            yield from self.named_weights()
            return
        for layer in self._layers(factors_only=True):
            for name, tensor in layer:
                yield saved_name(name), tensor

    def _layers(self, *, factors_only: bool = False) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield the parameters layer by layer; they are gathered until the next is requested."""
        named = [
            (name.removeprefix(PREFIX), parameter)
            for name, parameter in self._module.named_parameters()
            if is_factor(name) or not factors_only
        ]
        for _, members in groupby(named, key=lambda item: _layer_of(item[0])):
            layer = list(members)
            with self._whole([parameter for _, parameter in layer]):
                yield [(name, parameter.detach()) for name, parameter in layer]

    def save_state(self, path: Path) -> None:
        self._engine.save_checkpoint(
            str(path), tag=_TAG, exclude_frozen_parameters=self._lora.rank > 0
        )

    def load_state(self, path: Path) -> None:
        check_files(path, _OWN_STATE)
        found, _ = self._engine.load_checkpoint(
            str(path), tag=_TAG, load_module_strict=self._lora.rank == 0
        )
        if found is None:
            raise LearnerError(f"expected a DeepSpeed checkpoint in {path}, found none")

    def close(self) -> None:
        # The process group stays until the process ends: DeepSpeed keeps references to it.
        self._engine.destroy()

    def _whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        if self._config.zero_stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(parameters)


def _refuse_impossible(dtype: str, config: OptimizerSection) -> None:
    if dtype == "float16":
        raise ConfigError(
            "expected model.dtype float32 or bfloat16 in the learner, found float16: its gradients "
            "underflow"
        )
    if config.optimizer == "muon" and dtype != "float32":
        raise ConfigError(
            f"expected model.dtype = 'float32' with optimizer = 'muon', found {dtype}: DeepSpeed "
            f"flattens the matrices of low-precision models"
        )


def _join(setup: TrainerSetup, timeout_s: float) -> None:
    """Join the process group; DeepSpeed reads a rank's number from the environment."""
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (setup.rank, setup.world_size):
            raise LearnerError(
                f"expected this process to stay rank {dist.get_rank()} of {dist.get_world_size()}, "
                f"found rank {setup.rank} of {setup.world_size}: new ranks need new processes"
            )
        return
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    os.environ.update(
        MASTER_ADDR=setup.master_addr,
        MASTER_PORT=str(setup.master_port),
        RANK=str(setup.rank),
        WORLD_SIZE=str(setup.world_size),
        LOCAL_RANK="0",
    )
    if setup.device == "cpu":
        # Otherwise DeepSpeed spends a minute compiling a collective that no ZeRO stage uses.
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    deepspeed.init_distributed(
        dist_backend="nccl" if setup.device == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
        rank=setup.rank,
        world_size=setup.world_size,
    )
    # Threads of gloo that outlive the interpreter abort the process.
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _offload(config: OptimizerSection, *, pinned: bool) -> dict[str, Any]:
    """Return the parts of `zero_optimization` that keep state in host memory."""
    places = {
        "offload_optimizer": config.offload_optimizer,
        "offload_param": config.offload_params,
    }
    return {
        key: {"device": "cpu", "pin_memory": pinned}
        for key, place in places.items()
        if place == "cpu"
    }


def _engine_config(
    dtype: str, config: OptimizerSection, world_size: int, device: str
) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Counts are 1: `backward` marks the last pass."""
    plain = _is_plain(dtype, config)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": 0.0 if plain else config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": _PERSISTENT_ELEMENTS,
            **_offload(config, pinned=device == "cuda"),
        },
        "steps_per_print": None,
    }


def _is_plain(dtype: str, config: OptimizerSection) -> bool:
    return config.zero_stage == 0 and dtype == "float32"


def _fingerprint(module: PolicyModule) -> str:
    lines = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in module.named_parameters()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _layer_of(name: str) -> str:
    """Return the name up to its layer number: the key by which a layer is gathered at once."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])
