"""Architectures by the name of their folder, so that a recipe can be estimated before a download.

The numbers are those of the models' own config.json (Qwen2.5: arXiv 2412.15115, table 1; SmolLM2:
arXiv 2502.02737).
"""

from collections.abc import Mapping
from typing import Any

KNOWN_MODELS: Mapping[str, Mapping[str, Any]] = {
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4_864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8_192,
        "tie_word_embeddings": True,
    },
}
