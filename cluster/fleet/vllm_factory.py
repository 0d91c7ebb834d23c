"""Makes the engine of a rollout worker on vLLM."""

from rollout.chat.template import ChatTemplate
from rollout.engine import Engine
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_engine import VllmEngine


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Engine:
    """Return an engine, not started, that stops a turn at every token that ends one: those of the
    template, of the tokenizer and of the model's generation config.
    """
    return VllmEngine(spec, stop_token_ids=template.stop_token_ids)
