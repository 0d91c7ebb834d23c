"""Attention over packed episodes: causal within each, blind to the others, without a mask."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.utils.import_utils import is_flash_attn_2_available

from envs.errors import LearnerError

PACKED_SDPA = "packed_sdpa"


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend per segment: [1, heads, T, dim] to [1, T, heads, dim]; `segment_lengths` sum to T."""
    lengths: tuple[int, ...] = options["segment_lengths"]
    window = options.get("sliding_window")
    if window is not None and max(lengths) > window:
        raise LearnerError(
            f"expected sequences within the model's attention window of {window} tokens, found "
            f"{max(lengths)}: packed attention has no sliding window"
        )
    grouped = key.shape[1] != query.shape[1]
    outputs = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=options.get("scaling"), enable_gqa=grouped
        ).transpose(1, 2)
        for q, k, v in zip(
            query.split(lengths, dim=2),
            key.split(lengths, dim=2),
            value.split(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """Return what a model is loaded with: flash attention where it runs, else per-segment SDPA."""
    if device.type == "cuda" and dtype != torch.float32 and is_flash_attn_2_available():
        return "flash_attention_2"
    return PACKED_SDPA


def attention_arguments(
    implementation: str, lengths: tuple[int, ...], device: torch.device
) -> dict[str, Any]:
    """Return what the model's forward passes on to `implementation` so that segments stay apart."""
    if implementation == PACKED_SDPA:
        return {"segment_lengths": lengths}
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
