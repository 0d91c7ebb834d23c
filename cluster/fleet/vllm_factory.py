"""Makes the engine of a rollout worker on vLLM."""

from rollout.engine import Engine
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_engine import VllmEngine
from rollout.template import ChatTemplate


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Engine:
    """Return an engine, not started, that stops a turn at one of the template's ends of a turn."""
    return VllmEngine(spec, stop_token_ids=sorted(template.end_token_ids))
