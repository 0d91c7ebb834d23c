"""Whether a run's model can be trained and served: checked before anything starts."""

from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cluster.config.run_config import RunConfig
from envs.errors import ConfigError
from learner.config import OptimizerSection
from learner.packed.policy import load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.architecture import check_trained
from rollout.weights.layout import HEAD, tensor_shapes
from rollout.weights.model_folder import (
    mixing_layers,
    read_architecture,
    text_section,
    weight_files,
)

_NEEDS_TORCHVISION = "qwen3_5"
"""Start of the model types for which vLLM has one module for text and images."""
_ALWAYS_TIED = ("lfm2", "zamba2")
"""Start of the model types whose class in vLLM takes the embedding as head, whatever it is told."""
_PROBED = 512 << 20
"""Bytes of weights up to which a model is loaded and scored before a run starts: seconds."""


def check_model(config: RunConfig, model: Path) -> None:
    """Check `model` for SFT, RL and vLLM alike, as a command that does all three needs it.

    Raises as `check_training` and `check_serving` do.
    """
    check_serving(config, model)
    check_training(config, config.learner, model)
    check_training(config, config.sft, model)


def check_training(config: RunConfig, section: OptimizerSection, model: Path) -> str:
    """Check, before anything starts, that the learner can train `model`; return a note or "".

    `section` is `[learner]` or `[sft]`, the one that is used.
    A model of at most 512 MiB is also loaded, to compare its logprobs in a pack, alone and in
    plain transformers; the learner does that for one of any size when it has loaded it. Raises
    ConfigError with the reason and the way out, MissingError, DataFileError.
    """
    trained = check_trained(model, config.model)
    if trained.mixing or section.packing == "off":
        _check_no_forks(config, model)
    if sum(file.stat().st_size for file in weight_files(model)) <= _PROBED:
        cpu, packing = torch.device("cpu"), section.packing == "auto"
        check_logprobs(load_policy(str(model), torch.float32, cpu, packing=packing))
    if not trained.mixing:
        return ""
    return (
        f"one episode per pass of the learner: {', '.join(trained.mixing)} in this model would mix "
        "packed episodes"
    )


def _check_no_forks(config: RunConfig, model: Path) -> None:
    """Refuse episodes that show the policy a conversation anew: each is several sequences."""
    episode = config.episode
    for key, found in (("thoughts", episode.thoughts), ("experience", episode.experience)):
        if found in ("drop", "dropped"):
            raise ConfigError(
                f"expected episodes that only append where the learner takes one per pass ({model} "
                f"mixes packed ones, or packing is 'off'), found episode.{key} = {found!r}: keep "
                "them, or train a model of attention alone with packing = 'auto'"
            )


def check_serving(config: RunConfig, model: Path) -> None:
    """Raise ConfigError where vLLM would fail with `model`, or compute something else."""
    architecture = read_architecture(model)
    kind = str(text_section(architecture).get("model_type", ""))
    if kind.startswith(_ALWAYS_TIED) and HEAD in tensor_shapes(model):
        raise ConfigError(
            f"expected tied embeddings in {model} (model_type {kind}), found a {HEAD} of its own: "
            "vLLM would use the embedding in its place; choose another model"
        )
    if config.cluster.gpus_per_worker <= 0 and (
        kind.startswith(_NEEDS_TORCHVISION)
        or ("text_config" in architecture and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    ):
        raise ConfigError(
            f"expected GPUs for {model} (model_type {kind}), found workers on CPUs: vLLM's class "
            "for it needs torchvision, which the CPU installation cannot have"
        )
    if config.cluster.transport == "cuda_ipc" and "text_config" in architecture:
        raise ConfigError(
            f"expected cluster.transport = 'shm' for {model}, a model for images and text, found "
            "'cuda_ipc': vLLM's own transport does not know the names of its checkpoint"
        )
    mixing = mixing_layers(architecture)
    if config.cluster.gpus_per_worker <= 0 and mixing:
        raise ConfigError(
            f"expected GPUs for {model} (layers with {', '.join(mixing)}), found workers on CPUs: "
            "vLLM's CPU kernels for them give other log-probabilities than transformers"
        )
