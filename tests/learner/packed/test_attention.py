"""What flash attention is told about a pack, checked on the CPU against attention per episode."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.utils.import_utils import is_flash_attn_2_available

from envs.errors import LearnerError
from learner.packed.attention import (
    PACKED_FLASH,
    PACKED_SDPA,
    PACKED_VARLEN,
    UNPACKED,
    VariableLengths,
    attention_arguments,
    attention_for,
    packed_sdpa,
)
from learner.packed.packing import Pack

HEADS, KEY_HEADS, DIM = 4, 2, 8


def tree() -> Pack:
    """Lengths 100, 10, 70 and 98; the second shares 4 tokens of the first, the last 90 of it."""
    lengths, owned, shared = (100, 10, 70, 98), (100, 6, 70, 8), (0, 4, 0, 90)
    starts = np.cumsum([0, *owned])
    paths = [
        torch.cat([torch.arange(part), torch.arange(start, start + own)])
        for start, own, part in zip(starts[:-1], owned, shared, strict=True)
    ]
    nothing = torch.empty(0, dtype=torch.int64)
    return Pack(
        token_ids_U=torch.zeros(int(starts[-1]), dtype=torch.int64),
        positions_U=torch.cat([path[-own:] for path, own in zip(paths, owned, strict=True)]),
        paths_T=torch.cat(paths),
        lengths_S=lengths,
        owned_S=owned,
        predict_Q=nothing,
        targets_Q=nothing,
        temperatures_Q=torch.empty(0),
        scores_P=nothing,
        segments_P=nothing,
        sources_P=np.empty(0, dtype=np.int64),
    )


def inputs(pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    tokens = len(pack.token_ids_U)
    return (
        torch.randn(1, HEADS, tokens, DIM),
        torch.randn(1, KEY_HEADS, tokens, DIM),
        torch.randn(1, KEY_HEADS, tokens, DIM),
    )


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, lengths: VariableLengths, window: int = 10**6
) -> Tensor:
    """Flash attention's contract: queries are the last of their keys, causal from the end.

    A query sees at most `window` keys, its own included.
    """
    outputs = []
    query_bounds, key_bounds = lengths.query_bounds.tolist(), lengths.key_bounds.tolist()
    repeated = HEADS // KEY_HEADS
    for number in range(len(query_bounds) - 1):
        q = query[0, :, query_bounds[number] : query_bounds[number + 1]]
        path = lengths.paths_T[key_bounds[number] : key_bounds[number + 1]]
        k = key[0, :, path].repeat_interleave(repeated, 0)
        v = value[0, :, path].repeat_interleave(repeated, 0)
        scores = q @ k.transpose(1, 2) / DIM**0.5
        own = len(path) - q.shape[1]
        later = torch.ones(scores.shape[1:]).triu(own + 1).bool()
        earlier = torch.ones(scores.shape[1:]).tril(own - window).bool()
        outputs.append(scores.masked_fill(later | earlier, -torch.inf).softmax(-1) @ v)
    return torch.cat(outputs, 1).transpose(0, 1)[None]


@pytest.mark.parametrize("implementation", [PACKED_FLASH, PACKED_VARLEN])
def test_sdpa_and_flash_are_told_the_same(implementation: str) -> None:
    pack = tree()
    query, key, value = inputs(pack)
    lengths = attention_arguments(implementation, pack)["packed_rows"]
    assert (lengths.longest_query, lengths.longest_key) == (100, 100)
    assert lengths.query_bounds.dtype == lengths.key_bounds.dtype == torch.int32
    found, _ = packed_sdpa(
        nn.Module(), query, key, value, None, **attention_arguments(PACKED_SDPA, pack)
    )
    torch.testing.assert_close(found, by_definition(query, key, value, lengths))


def test_episodes_of_like_length_are_attended_in_one_call() -> None:
    rows = attention_arguments(PACKED_SDPA, tree())["packed_rows"]
    assert rows.shapes == ((2, 100), (1, 70), (1, 10))


def test_flash_attention_is_for_16_bits_on_cuda() -> None:
    cuda: Any = SimpleNamespace(type="cuda")
    flash = PACKED_FLASH if is_flash_attn_2_available() else PACKED_VARLEN
    assert attention_for(torch.device("cpu"), torch.bfloat16) == PACKED_SDPA
    assert attention_for(cuda, torch.float32) == PACKED_SDPA
    assert attention_for(cuda, torch.bfloat16) == flash


@pytest.mark.parametrize("window", [1, 7, 50, 99, 100, 1000])
def test_a_sliding_window_is_attended_as_defined(window: int) -> None:
    pack = tree()
    query, key, value = inputs(pack)
    lengths = attention_arguments(PACKED_VARLEN, pack)["packed_rows"]
    options = attention_arguments(PACKED_SDPA, pack)
    found, _ = packed_sdpa(nn.Module(), query, key, value, None, sliding_window=window, **options)
    expected = by_definition(query, key, value, lengths, window)
    torch.testing.assert_close(found, expected)
    everything = by_definition(query, key, value, lengths)
    assert torch.allclose(found, everything, atol=1e-5) == (window >= 100)


@pytest.mark.parametrize("change", ["softcap", "s_aux", "position_bias"])
def test_attention_that_packs_do_not_compute_is_refused(change: str) -> None:
    pack = tree()
    options = attention_arguments(PACKED_SDPA, pack) | {change: 30.0}
    with pytest.raises(LearnerError, match=f"without {change}"):
        packed_sdpa(nn.Module(), *inputs(pack), None, **options)


def test_a_model_of_one_episode_per_pass_takes_no_pack_of_several() -> None:
    with pytest.raises(LearnerError, match="one episode per pass of this model, found 4"):
        attention_arguments(UNPACKED, tree())
