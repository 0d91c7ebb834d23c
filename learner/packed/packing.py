"""Assignment of episodes to ranks, and packs: complete episodes, unpadded, prefixes shared."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batch import EpisodeBatch

_PIECES = 8
"""Groups are split for balancing into pieces of at most 1/8 of a rank's tokens, or one episode."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Episodes as a prefix tree of U tokens, each computed once, and the P tokens to predict.

    Episodes with a common prefix share its tokens. An episode that forks is several sequences, as
    the policy saw it. `paths_T` is the concatenation of S sequences, of `lengths_S` tokens each, as
    indices into the tree. The last `owned_S` tokens of a sequence are new in the tree and lie there
    in order; the tokens before them belong to an earlier one.

    Of the P predicted tokens Q are different nodes of the tree. `predict_Q` is the node whose
    hidden state predicts the token, `targets_Q` the token's id. Per predicted token, `scores_P` is
    its index among the Q, `sources_P` its index in the batch, `segments_P` its episode within the
    pack.
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
class _Sequence:
    """A part of an episode that the policy saw as one context: all of it, unless it forks."""

    episode: int
    row: slice


@dataclass(frozen=True, slots=True)
class _Family:
    """Episodes of one group sorted by tokens, and how many tokens each adds to the one before.

    What an episode shares is counted for its first sequence only, so a fork may turn out cheaper.
    """

    episodes: tuple[int, ...]
    lengths: tuple[int, ...]
    added: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.lengths[0] + sum(self.added[1:])

    def within(self, limit: float) -> "list[_Family]":
        """Split in halves until each part has at most `limit` tokens or one episode.

        Halves of a sorted family keep its longest common prefixes together.
        """
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
    """Assign items to ranks, longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        tokens, rank = heapq.heappop(heap)
        shares[rank].append(item)
        heapq.heappush(heap, (tokens + lengths[item], rank))
    return shares


def fill(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Fill bins of at most `limit` tokens, first fit, longest first; a longer item is alone."""
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
    """Return the episodes of each micro-batch of `rank`; all ranks get equally many, some empty.

    A group stays on one rank, where its prefix is computed once, as far as balance allows: loads,
    in tokens to compute, differ by at most an eighth of the mean or by the longest episode.
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
    # Every forward pass is a collective under ZeRO 3: a rank with fewer micro-batches would hang
    # the others, so it gets empty ones.
    count = max(len(bins) for bins in bins_by_rank)
    return bins_by_rank[rank] + [[] for _ in range(count - len(bins_by_rank[rank]))]


def pack(batch: EpisodeBatch, indices: Sequence[int], loss_N: NDArray[np.bool_]) -> Pack:
    """Pack episodes; `loss_N` marks the predicted tokens, never the first of an episode.

    Without episodes it returns two dummy tokens without targets, which keep a rank in step with
    the others.
    """
    order = _in_token_order(
        batch, [_Sequence(index, row) for index in indices for row in batch.sequences(index)]
    )
    if not order:
        return _dummy()
    rows = [sequence.row for sequence in order]
    added = _added(batch, order)
    # In sorted order a sequence shares no longer prefix with any earlier one than with the one
    # just before, so each path is a prefix of that path plus new nodes: no tree search is needed.
    paths: list[NDArray[np.int64]] = []
    size = 0
    for row, new in zip(rows, added, strict=True):
        shared = row.stop - row.start - new
        own = np.arange(size, size + new)
        paths.append(np.concatenate([paths[-1][:shared], own]) if shared else own)
        size += new
    # A token is predicted from the hidden state of its parent on the path. Paths are needed for
    # that: the parent of an episode's first own token may belong to an earlier episode.
    sources = [np.flatnonzero(loss_N[row]) for row in rows]
    targets_P = _joined([path[source] for path, source in zip(paths, sources, strict=True)])
    parents_P = _joined([path[source - 1] for path, source in zip(paths, sources, strict=True)])
    counts = [len(source) for source in sources]
    temperatures = batch.temperatures_B[[sequence.episode for sequence in order]]
    numbers = {index: n for n, index in enumerate(dict.fromkeys(s.episode for s in order))}
    temperatures_P = np.repeat(np.where(temperatures > 0, temperatures, 1.0), counts)
    # A shared token is a target of several episodes, each with its own advantage, but its logits
    # are the same: score each node once (Q) and look the P results up. One temperature per node is
    # enough, because episodes of different temperatures share no tokens (see _added).
    targets_Q, first_Q, scores_P = np.unique(targets_P, return_index=True, return_inverse=True)
    # New tokens are the end of each episode: what it shares comes before.
    fresh = [slice(row.stop - new, row.stop) for row, new in zip(rows, added, strict=True)]
    token_ids_U = _joined([batch.token_ids_N[part] for part in fresh]).astype(np.int64)
    # An episode that equals the one before adds no node, and attention has nothing to compute for
    # it; its targets above refer to the nodes of that one.
    attended = [number for number, new in enumerate(added) if new]
    return Pack(
        token_ids_U=torch.from_numpy(token_ids_U),
        positions_U=torch.from_numpy(_joined(_positions(fresh, rows))),
        paths_T=torch.from_numpy(_joined([paths[number] for number in attended])),
        lengths_S=tuple(len(paths[number]) for number in attended),
        owned_S=tuple(added[number] for number in attended),
        predict_Q=torch.from_numpy(parents_P[first_Q]),
        targets_Q=torch.from_numpy(token_ids_U[targets_Q]),
        temperatures_Q=torch.from_numpy(temperatures_P[first_Q].astype(np.float32)),
        scores_P=torch.from_numpy(scores_P.reshape(-1)),
        segments_P=torch.from_numpy(
            np.repeat([numbers[sequence.episode] for sequence in order], counts)
        ),
        sources_P=_joined([source + row.start for source, row in zip(sources, rows, strict=True)]),
    )


def _positions(parts: Sequence[slice], rows: Sequence[slice]) -> list[NDArray[np.int64]]:
    """Return the positions of parts within their sequences."""
    return [
        np.arange(part.start, part.stop) - row.start for part, row in zip(parts, rows, strict=True)
    ]


def _joined(parts: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    return np.concatenate(parts).astype(np.int64, copy=False)


def _families(batch: EpisodeBatch, indices: Sequence[int]) -> list[_Family]:
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(batch.groups_B[index], []).append(index)
    families = []
    for members in groups.values():
        order = _in_token_order(
            batch, [_Sequence(index, batch.sequences(index)[0]) for index in members]
        )
        if order:
            episodes = tuple(first.episode for first in order)
            lengths = tuple(int(batch.lengths_B[index]) for index in episodes)
            added = tuple(
                new + length - (first.row.stop - first.row.start)
                for first, length, new in zip(order, lengths, _added(batch, order), strict=True)
            )
            families.append(_Family(episodes, lengths, added))
    return families


def _in_token_order(batch: EpisodeBatch, sequences: Sequence[_Sequence]) -> list[_Sequence]:
    """Sort by temperature, then by tokens.

    No sequence then shares a longer prefix with an earlier one than with the one before it.
    Big-endian bytes compare like the sequence of token ids.
    """

    def key(sequence: _Sequence) -> tuple[float, bytes, int, int]:
        token_ids = batch.token_ids_N[sequence.row].astype(">u4")
        temperature = float(batch.temperatures_B[sequence.episode])
        return temperature, token_ids.tobytes(), sequence.episode, sequence.row.start

    return sorted((one for one in sequences if one.row.stop > one.row.start), key=key)


def _added(batch: EpisodeBatch, order: Sequence[_Sequence]) -> tuple[int, ...]:
    """Return per sequence how many tokens follow the prefix it shares with the one before it."""
    added: list[int] = []
    last = batch.token_ids_N[:0]
    temperature = np.float32(np.nan)
    for sequence in order:
        token_ids = batch.token_ids_N[sequence.row]
        shared = 0
        if batch.temperatures_B[sequence.episode] == temperature:
            common = min(len(last), len(token_ids))
            differ = np.flatnonzero(last[:common] != token_ids[:common])
            shared = int(differ[0]) if len(differ) else common
        added.append(len(token_ids) - shared)
        last, temperature = token_ids, batch.temperatures_B[sequence.episode]
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
