"""Makes the engine of a rollout worker on vLLM."""

from cluster.fleet.engine_plan import EnginePlan
from rollout.engine import Engine
from rollout.engines.vllm_engine import VllmEngine, VllmSpec
from rollout.template import ChatTemplate


def make_engine(template: ChatTemplate, plan: EnginePlan) -> Engine:
    """Return an engine that is not started yet; it stops at the template's end of turn."""
    return VllmEngine(
        VllmSpec(
            plan.model_path,
            plan.model,
            plan.engine,
            (template.eos_token_id,),
            plan.seed,
            "cuda" if plan.gpu else "cpu",
            "cuda_ipc" if plan.transport == "cuda_ipc" else "shm",
            deterministic=plan.deterministic,
        )
    )
