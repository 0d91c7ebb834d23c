"""Tiny random models of the families that people train: two layers, a tokenizer of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

from learner.pretrained.tiny_model import build_tokenizer

WINDOW = 16
"""Tokens of a sliding window: less than the episodes of the tests."""
MAX_LEN = 256

_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,  # the only size of vLLM's kernel on CPUs
    "linear_value_head_dim": 128,
}
_GEMMA = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 32,
}
_GEMMA_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 1,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a tiny model of a family is made, and what is expected of it."""

    model: str
    """Name of its class in transformers; `<model>Config` or what `config` says is its config."""
    config: str
    text: dict[str, Any]
    vision: dict[str, Any] | None = None
    outer: dict[str, Any] | None = None
    """Keys beside `text_config`, where there is one."""
    stands_for: str
    refused: str = ""
    """Part of the message with which it is refused; empty for a model that is right."""
    unserved: str = ""
    """Part of the message that says that vLLM cannot serve it on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which vLLM serves it on a CPU."""


def _tokens(name: str) -> int:
    return int(build_tokenizer().get_vocab()[name])


def build_family(family: Family, folder: Path, seed: int = 0) -> Path:
    """Write a random model of `family` and a tokenizer into `folder`; return it."""
    tokenizer = build_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": MAX_LEN,
        "tie_word_embeddings": False,
        "pad_token_id": _tokens("<|pad|>"),
        "bos_token_id": None,
        "eos_token_id": _tokens("<|end|>"),
        "initializer_range": 0.2,
        **family.text,
    }
    describe: Callable[..., Any] = getattr(transformers, family.config)
    if family.vision is not None:
        config = describe(text_config=text, vision_config=family.vision, **(family.outer or {}))
    else:
        config = describe(**text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make: Callable[[Any], PreTrainedModel] = getattr(transformers, family.model)
        model = make(config).float()
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # zero at first, and not after training
                buffer.normal_(std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_MIXING = {"conv", "linear_attention"}


def _causal(name: str, stands_for: str, **text: Any) -> Family:
    return Family(
        model=f"{name}ForCausalLM",
        config=f"{name}Config",
        text=text,
        stands_for=stands_for,
        unserved="other log-probabilities" if set(text.get("layer_types", ())) & _MIXING else "",
        dtype="bfloat16" if "linear_num_value_heads" in text else "float32",
    )


ONE_BY_ONE = frozenset({"LFM2", "Qwen3-Next", "Qwen3.5"})
"""Families that are trained with one episode per pass."""

FAMILIES: dict[str, Family] = {
    "Qwen2": _causal("Qwen2", "Qwen2.5"),
    "Qwen3": _causal("Qwen3", "Qwen3 0.6B to 32B", tie_word_embeddings=True),
    "Qwen3-MoE": _causal("Qwen3Moe", "Qwen3-30B-A3B", num_experts=4, **_MOE),
    "Llama": _causal("Llama", "Llama 3, SmolLM2"),
    "Mistral": _causal("Mistral", "Mistral 7B v0.1", sliding_window=WINDOW),
    "Phi-3": _causal("Phi3", "Phi-3-mini, Phi-4", sliding_window=WINDOW),
    "Gemma 3, text": Family(
        model="Gemma3ForCausalLM",
        config="Gemma3TextConfig",
        text=_GEMMA | {"tie_word_embeddings": True},
        stands_for="Gemma 3 1B",
    ),
    "Gemma 3": Family(
        model="Gemma3ForConditionalGeneration",
        config="Gemma3Config",
        text=_GEMMA | {"tie_word_embeddings": True},
        vision=_GEMMA_VISION,
        outer={
            "mm_tokens_per_image": 1,
            "boi_token_index": 60,
            "eoi_token_index": 61,
            "image_token_index": 62,
        },
        stands_for="Gemma 3 4B to 27B",
    ),
    "GLM-4.5-MoE": _causal(
        "Glm4Moe",
        "GLM-4.5, GLM-4.5-Air",
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        **_MOE,
    ),
    "LFM2": _causal(
        "Lfm2",
        "LFM2, LFM2.5",
        layer_types=["conv", "full_attention"],
        block_ff_dim=96,
        block_multiple_of=32,
        conv_L_cache=3,
        tie_word_embeddings=True,
    ),
    "Qwen3-Next": _causal(
        "Qwen3Next",
        "Qwen3-Next-80B-A3B",
        num_experts=4,
        shared_expert_intermediate_size=32,
        decoder_sparse_step=1,
        **_MOE,
        **_LINEAR,
    ),
    "Qwen3.5": Family(
        model="Qwen3_5ForConditionalGeneration",
        config="Qwen3_5Config",
        text=_LINEAR,
        vision=_QWEN_VISION,
        stands_for="Qwen3.5, Qwen3.6",
        unserved="torchvision",
    ),
    "Gemma 2": Family(
        model="Gemma2ForCausalLM",
        config="Gemma2Config",
        text={"query_pre_attn_scalar": 32, "sliding_window": WINDOW},
        stands_for="Gemma 2",
        refused="final_logit_softcapping",
    ),
    "Granite": Family(
        model="GraniteForCausalLM",
        config="GraniteConfig",
        text={"logits_scaling": 8.0},
        stands_for="Granite 3",
        refused="logits_scaling",
    ),
    "Cohere": Family(
        model="CohereForCausalLM",
        config="CohereConfig",
        text={},
        stands_for="Command R, Aya",
        refused="logit_scale",
    ),
}
