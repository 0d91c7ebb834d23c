"""How every rollout worker's engine is started, and by what; imports no engine itself."""

from dataclasses import dataclass

from rollout.config import EngineConfig, ModelConfig

VLLM = "cluster.fleet.vllm_factory:make_engine"
"""The factory of real engines, by name: only the worker's own process imports vLLM, which takes
seconds.
"""


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """`factory` is a `module:function` from (template, plan) to an Engine."""

    model_path: str
    model: ModelConfig
    engine: EngineConfig
    seed: int
    gpu: bool
    transport: str
    factory: str = VLLM
    deterministic: bool = False
