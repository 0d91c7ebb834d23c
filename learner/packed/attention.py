"""Attention over packed episodes: causal within each episode, none between episodes, no mask."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_flash_attention_utils import (
    _flash_attention_forward,  # pyright: ignore[reportPrivateUsage]
)
from transformers.utils.import_utils import is_flash_attn_2_available

from envs.errors import LearnerError
from learner.packed.attention_kind import (
    PACKED_FLASH,
    PACKED_SDPA,
    PACKED_VARLEN,
    UNPACKED,
    attention_kind,
)
from learner.packed.packing import Pack

_LIKE = 0.8  # one call attends to episodes of at least this fraction of the longest length
_NOT_PACKED = ("softcap", "s_aux", "position_bias", "indices", "block_indices")
"""Arguments by which a model changes attention in a way that the functions here do not follow."""
_SHORT = 64  # tokens below which one more call costs more than the padding that it saves


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """How SDPA reads a pack: X tokens in blocks of `shapes` (episodes, longest length).

    Shorter episodes are padded with their last token. `gather_X` are indices into the pack's tree;
    `own_U` is, for each token of the tree, its place among the X.
    """

    shapes: tuple[tuple[int, int], ...]
    gather_X: Tensor
    own_U: Tensor


@dataclass(frozen=True, slots=True)
class VariableLengths:
    """How flash attention reads a pack: each query once, keys and values along every path."""

    paths_T: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_key: int


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend per episode on any device: [1, heads, U, dim] to [1, U, heads, dim].

    Padding is at the end of a row, where causal attention never sees it: no mask is needed.
    """
    rows: PaddedRows = options["packed_rows"]
    window = _window(attention_mask, options)
    sizes = [count * length for count, length in rows.shapes]
    grouped = key.shape[1] != query.shape[1]
    parts = [
        tensor[0].transpose(0, 1).index_select(0, rows.gather_X).split(sizes)
        for tensor in (query, key, value)
    ]
    outputs = []
    for shape, *tensors in zip(rows.shapes, *parts, strict=True):
        q, k, v = (tensor.view(*shape, *tensor.shape[1:]).transpose(1, 2) for tensor in tensors)
        attended = _causal(q, k, v, window, scale=options.get("scaling"), enable_gqa=grouped)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, rows.own_U)[None], None


def packed_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As `packed_sdpa` with torch's own flash kernel, for 16-bit models on CUDA."""
    lengths: VariableLengths = options["packed_rows"]
    window = _window(attention_mask, options)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attended = varlen_attn(
        q.contiguous(),
        k.index_select(0, lengths.paths_T),
        v.index_select(0, lengths.paths_T),
        lengths.query_bounds,
        lengths.key_bounds,
        lengths.longest_query,
        lengths.longest_key,
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None], None


def packed_flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As `packed_sdpa` with the package flash-attn, for 16-bit models on CUDA."""
    lengths: VariableLengths = options["packed_rows"]
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    attended = _flash_attention_forward(
        q,
        k.index_select(1, lengths.paths_T),
        v.index_select(1, lengths.paths_T),
        None,
        query_length=q.shape[1],
        is_causal=True,
        softmax_scale=options.get("scaling"),
        sliding_window=_window(attention_mask, options),
        cu_seq_lens_q=lengths.query_bounds,  # pyright: ignore[reportArgumentType]
        cu_seq_lens_k=lengths.key_bounds,  # pyright: ignore[reportArgumentType]
        max_length_q=lengths.longest_query,
        max_length_k=lengths.longest_key,
        attn_implementation="flash_attention_2",
    )
    return attended.view(1, *q.shape[1:]), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionInterface.register(PACKED_VARLEN, packed_varlen)
AttentionInterface.register(PACKED_FLASH, packed_flash)


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """Return the attention implementation for a model of that device and precision."""
    return attention_kind(
        cuda=device.type == "cuda",
        sixteen_bit=dtype != torch.float32,
        flash_attn=is_flash_attn_2_available(),
    )


def attention_arguments(implementation: str, pack: Pack) -> dict[str, Any]:
    """Return the arguments that the model's forward passes to `implementation`.

    Raises LearnerError for a pack of several episodes where it takes one.
    """
    if implementation == UNPACKED:
        if len(pack.lengths_S) != 1:
            raise LearnerError(
                f"expected one episode per pass of this model, found {len(pack.lengths_S)}"
            )
        return {}
    device = pack.paths_T.device
    if implementation == PACKED_SDPA:
        return {"packed_rows": _padded_rows(pack, device)}
    return {
        "packed_rows": VariableLengths(
            paths_T=pack.paths_T,
            query_bounds=_bounds(pack.owned_S, device),
            key_bounds=_bounds(pack.lengths_S, device),
            longest_query=max(pack.owned_S),
            longest_key=max(pack.lengths_S),
        )
    }


def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _window(attention_mask: Tensor | None, options: dict[str, Any]) -> int | None:
    """Return how many tokens a query sees, itself included; None for all before it.

    Raises LearnerError for a change to attention that packs do not make: transformers makes no mask
    for the functions here, so one that is there is the model's own.
    """
    changes = [name for name in _NOT_PACKED if options.get(name) is not None]
    changes += ["attention_mask"] * (attention_mask is not None)
    changes += ["dropout"] * ((options.get("dropout") or 0.0) > 0)
    if changes:
        raise LearnerError(
            f"expected attention without {changes[0]}, found it in this model: packed attention "
            "does not compute it; set learner.packing and sft.packing to 'off', or choose another "
            "model"
        )
    return options.get("sliding_window")


def _causal(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any
) -> Tensor:
    """Attend within rows [count, heads, length, dim]; with a window, block by block.

    A block of `window` queries sees at most itself and the block before, so time and memory grow
    with length times window.
    """
    length = query.shape[2]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    outputs = []
    for start in range(0, length, window):
        end = min(start + window, length)
        first = max(0, start - window + 1)
        ahead = (
            torch.arange(start, end, device=query.device)[:, None]
            - torch.arange(first, end, device=query.device)[None]
        )
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=(ahead >= 0) & (ahead < window),
                **options,
            )
        )
    return torch.cat(outputs, dim=2)


def _padded_rows(pack: Pack, device: torch.device) -> PaddedRows:
    starts_S = np.cumsum([0, *pack.lengths_S[:-1]])
    owned_before_S = np.cumsum([0, *pack.owned_S[:-1]])
    own_U = np.empty(len(pack.token_ids_U), dtype=np.int64)
    gathers: list[NDArray[np.int64]] = []
    shapes = []
    filled = 0
    for members in _alike(pack.lengths_S):
        longest = pack.lengths_S[members[0]]
        lengths = np.array([pack.lengths_S[member] for member in members])
        columns = np.minimum(np.arange(longest), lengths[:, None] - 1)
        gathers.append((starts_S[members][:, None] + columns).reshape(-1))
        shapes.append((len(members), longest))
        for number, member in enumerate(members):
            end = filled + number * longest + pack.lengths_S[member]
            first, owned = owned_before_S[member], pack.owned_S[member]
            own_U[first : first + owned] = np.arange(end - owned, end)
        filled += len(members) * longest
    gather_X = torch.from_numpy(np.concatenate(gathers)).to(device)
    return PaddedRows(
        tuple(shapes), pack.paths_T.index_select(0, gather_X), torch.from_numpy(own_U).to(device)
    )


def _alike(lengths: tuple[int, ...]) -> list[list[int]]:
    """Group episodes of similar length, longest first."""
    members: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not members or (lengths[index] < _LIKE * longest and longest > _SHORT):
            members.append([])
            longest = lengths[index]
        members[-1].append(index)
    return members
