"""What a recipe resolves to before anything starts: its model's folder and its environment."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig
from envs.config import EnvConfig
from envs.errors import ConfigError
from envs.tasks import Environment
from learner.packed.policy import load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.architecture import check_trained
from learner.pretrained.resolve import check_folder_context, resolve_model
from rollout.store.run_layout import RunLayout
from rollout.template import ChatTemplate
from rollout.weights.model_folder import layer_kinds, read_architecture, text_section, weight_files

_NEEDS_TORCHVISION = "qwen3_5"
"""Start of the model types for which vLLM has one module for text and images."""
_PROBED = 512 << 20
"""Bytes of weights up to which a model is loaded and scored before a run starts: seconds."""


@dataclass(frozen=True, slots=True)
class RunInputs:
    """A recipe with its model and environment; made once per command and passed down."""

    config: RunConfig
    model: Path
    environment: Environment


def resolve_inputs(config: RunConfig) -> RunInputs:
    """Find or build the model of a recipe, and make its environment.

    An environment may ask servers for their tools. Raises MissingError, ConfigError,
    DataFileError, and InfraError where a server does not answer.
    """
    return RunInputs(config, find_model(config), make_environment(config.env))


def find_model(config: RunConfig) -> Path:
    """Return the folder of the recipe's model, which is built if need be.

    Raises MissingError, also where there are no safetensors, and ConfigError for a context or a
    chat template that does not fit.
    """
    path = resolve_model(config.model.path, Path(config.run.models_dir), config.run.seed)
    weight_files(path)
    check_folder_context(path, config.model.max_model_len)
    ChatTemplate.load(path)
    return path.resolve()


def check_training(config: RunConfig, model: Path) -> str:
    """Check, before anything starts, that the learner can train `model`; return a note or "".

    A model of at most 512 MiB is also loaded, to compare its logprobs in a pack, alone and in
    plain transformers; the learner does that for one of any size when it has loaded it. Raises
    ConfigError with the reason and the way out, MissingError, DataFileError.
    """
    trained = check_trained(model, config.model)
    if sum(file.stat().st_size for file in weight_files(model)) <= _PROBED:
        check_logprobs(load_policy(str(model), torch.float32, torch.device("cpu")))
    if not trained.mixing:
        return ""
    return (
        f"one episode per pass of the learner: {', '.join(trained.mixing)} in this model would mix "
        "packed episodes"
    )


def check_serving(config: RunConfig, model: Path) -> None:
    """Raise ConfigError where vLLM would start with `model` and then fail."""
    architecture = read_architecture(model)
    kind = str(text_section(architecture).get("model_type", ""))
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
    on_cpu, dtype = config.cluster.gpus_per_worker <= 0, config.model.dtype
    if on_cpu and dtype != "bfloat16" and "linear_attention" in layer_kinds(model):
        raise ConfigError(
            f"expected model.dtype = 'bfloat16' for {model}, found {dtype}: vLLM computes linear "
            "attention on a CPU in bfloat16 only; set it, or use GPUs"
        )


class Environments:
    """Environments of several recipes of one command; equal `[env]` sections share one."""

    def __init__(self, make: Callable[[EnvConfig], Environment] = make_environment) -> None:
        self._make = make
        self._made: dict[str, Environment] = {}

    def of(self, section: EnvConfig) -> Environment:
        """Return the environment of `section`. Raises as `make_environment` does."""
        key = section.model_dump_json()
        if key not in self._made:
            self._made[key] = self._make(section)
        return self._made[key]


def with_recording(config: RunConfig, run: Path) -> RunConfig:
    """Return `config` with the folder of its tool record filled in, where `tools.record` is set:
    the one that it names, or else `tool_traffic` in the run directory `run`.
    """
    if not config.tools.record:
        return config
    folder = Path(config.tools.record_dir or RunLayout(run).tool_traffic).resolve()
    tools = config.tools.model_copy(update={"record_dir": str(folder)})
    return config.model_copy(update={"tools": tools})
