"""Which rank trains on which episode, and packs: whole episodes without padding or repetition."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batch import EpisodeBatch

_PIECES = 8
"""A rank's work comes in pieces of at most this fraction of it, or single episodes."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Episodes as a tree of U tokens, each computed once, and the P tokens that the loss predicts.

    Episodes that begin alike share the tokens of their common beginning. `paths_T` holds S
    episodes in a row as indices into the tree, `lengths_S` long; the last `owned_S` tokens of each
    are the tree's in its order, those before are shared with an earlier episode. `predict_Q` is
    where the Q different predicted tokens are predicted from, `scores_P` which of them a target
    is, `sources_P` the target's index in the batch, `segments_P` its episode within the pack.
    """

    token_ids_U: Tensor
    positions_U: Tensor
    paths_T: Tensor
    lengths_S: tuple[int, ...]
    owned_S: tuple[int, ...]
    predict_Q: Tensor
    targets_Q: Tensor
    temperatures_Q: Tensor
    scores_P: Tensor
    segments_P: Tensor
    sources_P: NDArray[np.int64]

    def to(self, device: torch.device) -> "Pack":
        """Return the pack with its tensors on `device`."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            token_ids_U=self.token_ids_U.to(device),
            positions_U=self.positions_U.to(device),
            paths_T=self.paths_T.to(device),
            predict_Q=self.predict_Q.to(device),
            targets_Q=self.targets_Q.to(device),
            temperatures_Q=self.temperatures_Q.to(device),
            scores_P=self.scores_P.to(device),
            segments_P=self.segments_P.to(device),
        )


@dataclass(frozen=True, slots=True)
class _Family:
    """Episodes of one group in the order of their tokens, and how much each adds to the last."""

    episodes: tuple[int, ...]
    lengths: tuple[int, ...]
    added: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.lengths[0] + sum(self.added[1:])

    def within(self, limit: float) -> "list[_Family]":
        """Halve until a part has at most `limit` tokens or one episode."""
        count = len(self.episodes)
        if self.tokens <= limit or count == 1:
            return [self]
        halves = (slice(0, count // 2), slice(count // 2, count))
        return [
            part
            for half in halves
            for part in _Family(self.episodes[half], self.lengths[half], self.added[half]).within(
                limit
            )
        ]


def balance(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal items to ranks, longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        tokens, rank = heapq.heappop(heap)
        shares[rank].append(item)
        heapq.heappush(heap, (tokens + lengths[item], rank))
    return shares


def fill(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Fill bins of at most `limit` tokens, first fit, longest first; a longer item stands alone."""
    bins: list[list[int]] = []
    space: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fit = next((slot for slot, free in enumerate(space) if free >= lengths[item]), None)
        if fit is None:
            bins.append([])
            space.append(limit)
            fit = len(bins) - 1
        bins[fit].append(item)
        space[fit] -= lengths[item]
    return bins


def share_of_rank(
    batch: EpisodeBatch, indices: Sequence[int], ranks: int, rank: int, limit: int
) -> list[list[int]]:
    """Return the episodes of each micro-batch of `rank`; all ranks get as many, some empty.

    Groups stay together where that keeps ranks balanced: their loads, in tokens to compute, differ
    by at most an eighth of the mean or by the longest episode.
    """
    families = _families(batch, indices)
    if ranks > 1:
        piece = sum(family.tokens for family in families) / (_PIECES * ranks)
        families = [part for family in families for part in family.within(piece)]
    bins_by_rank: list[list[list[int]]] = []
    for share in balance([family.tokens for family in families], ranks):
        episodes = [episode for item in share for episode in families[item].episodes]
        parts = [part for whole in _families(batch, episodes) for part in whole.within(limit)]
        bins = fill([part.tokens for part in parts], limit)
        bins_by_rank.append([[e for item in items for e in parts[item].episodes] for items in bins])
    count = max(len(bins) for bins in bins_by_rank)
    return bins_by_rank[rank] + [[] for _ in range(count - len(bins_by_rank[rank]))]


def pack(batch: EpisodeBatch, indices: Sequence[int], loss_N: NDArray[np.bool_]) -> Pack:
    """Pack episodes; `loss_N` says which tokens are predicted, never the first of an episode.

    No episodes make a dummy of two tokens without targets: it keeps a rank in step with the others.
    """
    order = _in_token_order(batch, indices)
    if not order:
        return _dummy()
    rows = [batch.rows(index) for index in order]
    added = _added(batch, order)
    paths: list[NDArray[np.int64]] = []
    size = 0
    for row, new in zip(rows, added, strict=True):
        shared = row.stop - row.start - new
        own = np.arange(size, size + new)
        paths.append(np.concatenate([paths[-1][:shared], own]) if shared else own)
        size += new
    sources = [np.flatnonzero(loss_N[row]) for row in rows]
    targets_P = _joined([path[source] for path, source in zip(paths, sources, strict=True)])
    parents_P = _joined([path[source - 1] for path, source in zip(paths, sources, strict=True)])
    counts = [len(source) for source in sources]
    temperatures = batch.temperatures_B[list(order)]
    temperatures_P = np.repeat(np.where(temperatures > 0, temperatures, 1.0), counts)
    targets_Q, first_Q, scores_P = np.unique(targets_P, return_index=True, return_inverse=True)
    fresh = [slice(row.stop - new, row.stop) for row, new in zip(rows, added, strict=True)]
    token_ids_U = _joined([batch.token_ids_N[part] for part in fresh]).astype(np.int64)
    attended = [number for number, new in enumerate(added) if new]
    return Pack(
        token_ids_U=torch.from_numpy(token_ids_U),
        positions_U=torch.from_numpy(
            _joined(
                [
                    np.arange(part.start, part.stop) - row.start
                    for part, row in zip(fresh, rows, strict=True)
                ]
            )
        ),
        paths_T=torch.from_numpy(_joined([paths[number] for number in attended])),
        lengths_S=tuple(len(paths[number]) for number in attended),
        owned_S=tuple(added[number] for number in attended),
        predict_Q=torch.from_numpy(parents_P[first_Q]),
        targets_Q=torch.from_numpy(token_ids_U[targets_Q]),
        temperatures_Q=torch.from_numpy(temperatures_P[first_Q].astype(np.float32)),
        scores_P=torch.from_numpy(scores_P.reshape(-1)),
        segments_P=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        sources_P=_joined([source + row.start for source, row in zip(sources, rows, strict=True)]),
    )


def _joined(parts: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    return np.concatenate(parts).astype(np.int64, copy=False)


def _families(batch: EpisodeBatch, indices: Sequence[int]) -> list[_Family]:
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(batch.groups_B[index], []).append(index)
    families = []
    for members in groups.values():
        order = _in_token_order(batch, members)
        if order:
            lengths = tuple(int(batch.lengths_B[index]) for index in order)
            families.append(_Family(tuple(order), lengths, _added(batch, order)))
    return families


def _in_token_order(batch: EpisodeBatch, indices: Sequence[int]) -> list[int]:
    """Sort by temperature, then tokens: none shares more with an earlier one than with the last."""

    def key(index: int) -> tuple[float, bytes, int]:
        token_ids = batch.token_ids_N[batch.rows(index)].astype(">u4")
        return float(batch.temperatures_B[index]), token_ids.tobytes(), index

    return sorted((index for index in indices if batch.lengths_B[index]), key=key)


def _added(batch: EpisodeBatch, order: Sequence[int]) -> tuple[int, ...]:
    """Return per episode the tokens that follow what it shares with the one before."""
    added: list[int] = []
    last = batch.token_ids_N[:0]
    temperature = np.float32(np.nan)
    for index in order:
        token_ids = batch.token_ids_N[batch.rows(index)]
        shared = 0
        if batch.temperatures_B[index] == temperature:
            common = min(len(last), len(token_ids))
            differ = np.flatnonzero(last[:common] != token_ids[:common])
            shared = int(differ[0]) if len(differ) else common
        added.append(len(token_ids) - shared)
        last, temperature = token_ids, batch.temperatures_B[index]
    return tuple(added)


def _dummy() -> Pack:
    nothing = torch.empty(0, dtype=torch.int64)
    return Pack(
        token_ids_U=torch.zeros(2, dtype=torch.int64),
        positions_U=torch.arange(2),
        paths_T=torch.arange(2),
        lengths_S=(2,),
        owned_S=(2,),
        predict_Q=nothing,
        targets_Q=nothing,
        temperatures_Q=torch.empty(0),
        scores_P=nothing,
        segments_P=nothing,
        sources_P=np.empty(0, dtype=np.int64),
    )
