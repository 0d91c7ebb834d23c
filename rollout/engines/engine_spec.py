"""What an engine is started with; importable without vLLM, which takes seconds to import."""

from dataclasses import dataclass
from typing import Literal

from rollout.config import EngineConfig, ModelConfig
from rollout.weights.manifest import Transport

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """All that is the same for every engine of a run."""

    model_path: str
    """Hugging Face folder; its weights are policy version 0."""
    model: ModelConfig
    engine: EngineConfig
    seed: int
    device: Device = "cpu"
    transport: Transport = "shm"
    deterministic: bool = False
    """A request's tokens and logprobs do not depend on what else is computed at the time. On the
    CPU this replaces vLLM's linear layers; on a GPU the process also needs `VLLM_BATCH_INVARIANT`.
    """
