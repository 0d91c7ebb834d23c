"""Which rank trains on which episode, and packs: whole episodes in a row, without padding."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batch import EpisodeBatch


@dataclass(frozen=True, slots=True)
class Pack:
    """T tokens of S whole episodes one after the other, and the P of them that the loss predicts.

    `predict_P` is the position before a target; `sources_P` is the target's index in the batch;
    `segments_P` numbers its episode within the pack.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    lengths_S: tuple[int, ...]
    predict_P: Tensor
    targets_P: Tensor
    temperatures_P: Tensor
    segments_P: Tensor
    sources_P: NDArray[np.int64]

    def to(self, device: torch.device) -> "Pack":
        """Return the pack with its tensors on `device`."""
        if device.type == "cpu":
            return self
        return Pack(
            self.token_ids_T.to(device),
            self.positions_T.to(device),
            self.lengths_S,
            self.predict_P.to(device),
            self.targets_P.to(device),
            self.temperatures_P.to(device),
            self.segments_P.to(device),
            self.sources_P,
        )


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
    """Return the episodes of each micro-batch of `rank`; all ranks get as many, some empty."""
    lengths = [int(batch.lengths_B[index]) for index in indices]
    bins_by_rank = [
        [
            [indices[share[item]] for item in items]
            for items in fill([lengths[i] for i in share], limit)
        ]
        for share in balance(lengths, ranks)
    ]
    count = max(len(bins) for bins in bins_by_rank)
    return bins_by_rank[rank] + [[] for _ in range(count - len(bins_by_rank[rank]))]


def pack(batch: EpisodeBatch, indices: Sequence[int], loss_N: NDArray[np.bool_]) -> Pack:
    """Pack episodes; `loss_N` says which tokens are predicted, never the first of an episode.

    No episodes make a dummy of two tokens without targets: it keeps a rank in step with the others.
    """
    if not indices:
        return _dummy()
    rows = [batch.rows(index) for index in indices]
    lengths = [row.stop - row.start for row in rows]
    starts = np.cumsum([0, *lengths[:-1]])
    sources = [np.flatnonzero(loss_N[row]) for row in rows]
    temperatures = batch.temperatures_B[list(indices)]
    counts = [len(source) for source in sources]
    return Pack(
        token_ids_T=torch.from_numpy(
            np.concatenate([batch.token_ids_N[row] for row in rows]).astype(np.int64)
        ),
        positions_T=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        lengths_S=tuple(lengths),
        predict_P=torch.from_numpy(
            np.concatenate(
                [source + start - 1 for source, start in zip(sources, starts, strict=True)]
            )
        ),
        targets_P=torch.from_numpy(
            np.concatenate(
                [batch.token_ids_N[row][source] for row, source in zip(rows, sources, strict=True)]
            ).astype(np.int64)
        ),
        temperatures_P=torch.from_numpy(
            np.repeat(np.where(temperatures > 0, temperatures, 1.0).astype(np.float32), counts)
        ),
        segments_P=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        sources_P=np.concatenate(
            [source + row.start for source, row in zip(sources, rows, strict=True)]
        ),
    )


def _dummy() -> Pack:
    nothing = torch.empty(0, dtype=torch.int64)
    return Pack(
        token_ids_T=torch.zeros(2, dtype=torch.int64),
        positions_T=torch.arange(2),
        lengths_S=(2,),
        predict_P=nothing,
        targets_P=nothing,
        temperatures_P=torch.empty(0),
        segments_P=nothing,
        sources_P=np.empty(0, dtype=np.int64),
    )
