"""`trialrun estimate`: memory that a recipe needs, from its model's architecture alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.checks.known_models import KNOWN_MODELS
from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from envs.errors import ConfigError, MissingError
from envs.tools import JsonObject
from learner.config import OptimizerSection
from learner.memory import (
    GIB,
    EngineMemory,
    ModelShape,
    States,
    TrainingPlan,
    activations,
    adapter_parameters,
    engine_memory,
    logits_chunk,
    model_states,
    shape_of,
)
from learner.packed.policy import CHUNK_LOGITS
from learner.pretrained.architecture import BROKEN_CONFIG
from learner.pretrained.resolve import TINY, check_context, resolve_model

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OFFLOADED = "offloaded states of all ranks"
LOADING = "ranks while they load the model"
RANKS = "learner ranks"
ENGINES = "engines"
"""Names of `Estimate.host`. What a name says of all ranks or engines is the sum over them."""
_CONTEXT = int(1.5 * GIB)
"""CUDA context, NCCL's buffers and what the allocator cannot use."""
_REMEDIES = (
    ("activation_checkpointing", True),
    ("zero_stage", 3),
    ("offload_optimizer", "cpu"),
    ("offload_params", "cpu"),
)
"""Tried in this order, each in addition to the ones before, if a rank does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes of one learner rank in its longest micro-batch of `tokens`."""

    tokens: int
    states: States
    reference: int
    activations: int
    other_activations: int
    """The same pass with the other setting of activation_checkpointing."""
    logits: int

    @property
    def device(self) -> int:
        """Bytes on the device at the peak, context included."""
        held = self.states.device + self.reference + self.activations + self.logits
        return held + _CONTEXT


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory that a recipe needs, in bytes."""

    shape: ModelShape
    trainable: int
    ranks: Mapping[str, RankMemory]
    """By section: `learner` and `sft`."""
    engines: Mapping[str, EngineMemory]
    """One engine of each group of workers."""
    gpu: int
    """Memory of one GPU; 0 for a run on the CPU."""
    push: int
    """Of one published version."""
    host: Mapping[str, int]
    problems: tuple[str, ...]


def run_estimate(
    config: RunConfig, gpu_memory_gib: float, model_config: Path | None
) -> tuple[Estimate, JsonObject]:
    """Return the estimate and its JSON form.

    Raises MissingError where the architecture is not known, ConfigError for a recipe that cannot
    run with it.
    """
    architecture = _architecture(config, model_config)
    check_context(architecture, config.model.max_model_len)
    shape = shape_of(architecture, _parameters(architecture))
    estimate = _estimate(config, shape, int(gpu_memory_gib * GIB))
    return estimate, {
        "model": config.model.path,
        "fits": not estimate.problems,
        **{key: value for key, value in asdict(estimate).items() if key != "problems"},
        "device_bytes": {name: rank.device for name, rank in estimate.ranks.items()},
        "problems": list(estimate.problems),
    }


def _architecture(config: RunConfig, given: Path | None) -> Mapping[str, Any]:
    ref = config.model.path
    folder = Path(ref).expanduser()
    if given is None and ref == TINY:
        given = resolve_model(TINY, Path(config.run.models_dir), config.run.seed) / "config.json"
    if given is None and (folder / "config.json").is_file():
        given = folder / "config.json"
    if given is not None:
        try:
            return json.loads(given.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MissingError(f"expected a model's config.json at {given}: {error}") from None
    if folder.name in KNOWN_MODELS:
        return KNOWN_MODELS[folder.name]
    raise MissingError(
        f"expected the architecture of {ref!r}, found neither a config.json in that folder nor its "
        f"name among {', '.join(KNOWN_MODELS)}: give the file with --model-config"
    )


def _parameters(architecture: Mapping[str, Any]) -> int:
    """Count parameters by building the model on the meta device, without memory."""
    options = {key: value for key, value in architecture.items() if key != "model_type"}
    try:
        described = AutoConfig.for_model(architecture["model_type"], **options)
    except BROKEN_CONFIG as error:
        told = " ".join(str(error).split())
        raise ConfigError(
            f"expected a config.json that transformers knows, found: {told}"
        ) from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described)
    return sum(parameter.numel() for parameter in model.parameters())


def _estimate(config: RunConfig, shape: ModelShape, gpu: int) -> Estimate:
    item = _ITEM_BYTES[config.model.dtype]
    lora = config.model.lora
    trainable = (
        adapter_parameters(shape, lora.rank, lora.target_modules) if lora.rank else shape.parameters
    )
    on_gpu = config.cluster.gpus_per_rank > 0
    ranks = {
        name: _rank(config, section, shape, trainable)
        for name, section in (("learner", config.learner), ("sft", config.sft))
    }
    kinds = {name: kind for name, kind in config.worker_kinds().items() if kind.rollouts.workers}
    engines = {name: _engine(kind, shape, gpu) for name, kind in kinds.items()}
    push = item * trainable
    host = {"two published versions (shared memory)": 2 * push}
    offloaded = max(rank.states.host for rank in ranks.values()) * config.learner.ranks
    if offloaded:
        host[OFFLOADED] = offloaded
    if on_gpu:
        host[LOADING] = item * shape.parameters * config.learner.ranks
    else:
        host[RANKS] = config.learner.ranks * max(rank.device for rank in ranks.values())
    for name, kind in kinds.items():
        if kind.cluster.gpus_per_worker <= 0:
            worker = host_bytes(engines[name])
            host[ENGINES] = host.get(ENGINES, 0) + kind.rollouts.workers * worker
    problems = [*_rank_problems(config, shape, ranks, gpu)] if on_gpu else []
    for name, kind in kinds.items():
        prefix = "" if name == DEFAULT_GROUP else f"[rollouts.groups.{name}] "
        problems += [prefix + problem for problem in _engine_problems(kind, engines[name])]
    return Estimate(
        shape, trainable, ranks, engines, gpu if on_gpu else 0, push, host, tuple(problems)
    )


def host_bytes(engine: EngineMemory) -> int:
    """Return what an engine on the CPU takes of its node's memory."""
    return engine.weights + engine.activations + engine.cache


def _rank(
    config: RunConfig, section: OptimizerSection, shape: ModelShape, trainable: int
) -> RankMemory:
    item = _ITEM_BYTES[config.model.dtype]
    tokens = max(section.micro_batch_tokens, config.model.max_model_len)
    chosen = section.activation_checkpointing
    penalised = section is config.learner and config.learner.kl_coef > 0
    copied = penalised and not config.model.lora.rank
    return RankMemory(
        tokens=tokens,
        states=model_states(shape, TrainingPlan(section, config.learner.ranks, item, trainable)),
        reference=item * shape.parameters if copied else 0,
        activations=activations(shape, item, tokens, checkpointing=chosen),
        other_activations=activations(shape, item, tokens, checkpointing=not chosen),
        logits=logits_chunk(shape, item, tokens, CHUNK_LOGITS),
    )


def _engine(config: RunConfig, shape: ModelShape, gpu: int) -> EngineMemory:
    section, item = config.engine, _ITEM_BYTES[config.model.dtype]
    length, parallel = config.model.max_model_len, section.tensor_parallel_size
    if config.cluster.gpus_per_worker > 0:
        budget = int(gpu * section.gpu_memory_utilization)
        return engine_memory(shape, item, budget, length, parallel)
    bare = engine_memory(shape, item, 0, length)
    cache = section.kv_cache_mib << 20
    sequences = cache / (bare.cache_per_token * length)
    return EngineMemory(
        weights=bare.weights,
        activations=bare.activations,
        cache=cache,
        cache_per_token=bare.cache_per_token,
        sequences=sequences,
    )


def _rank_problems(
    config: RunConfig, shape: ModelShape, ranks: Mapping[str, RankMemory], gpu: int
) -> list[str]:
    shared = config.cluster.gpus_per_rank + config.cluster.gpus_per_worker <= 1
    taken = int(gpu * config.engine.gpu_memory_utilization) if shared else 0
    problems = []
    if config.cluster.transport == "cuda_ipc" and not shared:
        problems.append(
            "cluster.transport = 'cuda_ipc' needs learner and engine on one GPU: set "
            "cluster.gpus_per_rank and gpus_per_worker to 0.5, or transport to 'shm'"
        )
    for name, rank in ranks.items():
        room = gpu - taken
        if rank.device <= room:
            continue
        what = f" next to an engine that uses {taken / GIB:.1f}" if taken else ""
        problems.append(
            f"[{name}] a rank needs {rank.device / GIB:.1f} GiB, the GPU has "
            f"{gpu / GIB:.0f}{what}: {_remedy(config, name, shape, room)}"
        )
    return problems


def _remedy(config: RunConfig, name: str, shape: ModelShape, room: int) -> str:
    """Return advice: the changes that make a rank fit into `room`, the cheapest first."""
    section: OptimizerSection = getattr(config, name)
    lora = config.model.lora
    trainable = (
        adapter_parameters(shape, lora.rank, lora.target_modules) if lora.rank else shape.parameters
    )
    changes: list[str] = []
    for key, value in _REMEDIES:
        if getattr(section, key) == value:
            continue
        section = section.model_copy(update={key: value})
        changes.append(f"{name}.{key}={str(value).lower()}")
        changed = config.model_copy(update={name: section})
        needed = _rank(changed, section, shape, trainable).device
        if needed <= room:
            return f"{' '.join(changes)} brings it to {needed / GIB:.1f} GiB"
    return (
        "raise learner.ranks, lower model.max_model_len and micro_batch_tokens, or train adapters "
        "with model.lora.rank=32"
    )


def _engine_problems(config: RunConfig, engine: EngineMemory) -> list[str]:
    if engine.sequences >= 1:
        return []
    if config.cluster.gpus_per_worker <= 0:
        return [
            f"the KV cache holds {engine.sequences:.2f} sequences of {config.model.max_model_len} "
            "tokens: raise engine.kv_cache_mib or lower model.max_model_len"
        ]
    return [
        f"the engine's KV cache holds {engine.sequences:.2f} sequences of "
        f"{config.model.max_model_len} tokens: raise engine.gpu_memory_utilization or "
        "engine.tensor_parallel_size (with cluster.gpus_per_worker), or lower model.max_model_len"
    ]
