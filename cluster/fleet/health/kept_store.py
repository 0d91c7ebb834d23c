"""Finished turns of the episodes in progress, in the driver's memory, within a bound."""

from collections.abc import Iterable

from rollout.episode import Lease
from rollout.kept_turns import KeptTurns, SealedPart

_START = (0, 0)


class KeptStore:
    """The turns that workers have reported, by episode; opened only if they are needed."""

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` of 0 keeps nothing. Beyond it, episodes that report more are forgotten."""
        self._limit = limit_bytes
        self._kept: dict[str, list[SealedPart]] = {}
        self.nbytes = 0
        """Bytes kept."""

    def add(self, parts: Iterable[SealedPart]) -> None:
        """Add what workers have reported; a part of another attempt begins anew, and an episode of
        which a part is missing is forgotten.
        """
        for part in parts:
            kept = self._kept.get(part.episode, [])
            if kept and kept[-1].attempt != part.attempt:
                self.forget(part.episode)
                kept = []
            follows = part.before == (kept[-1].after if kept else _START)
            if not follows or self.nbytes + len(part.content) > self._limit:
                self.forget(part.episode)
                continue
            self._kept.setdefault(part.episode, kept).append(part)
            self.nbytes += len(part.content)

    def take(self, lease: Lease) -> KeptTurns | None:
        """Return, once, what is kept of an attempt; None if that is nothing."""
        parts = self._kept.get(lease.episode, [])
        self.forget(lease.episode)
        if not parts or parts[0].attempt != lease.attempt:
            return None
        kept = KeptTurns(lease.attempt)
        for part in parts:
            kept.add(part.opened())
        return kept

    def forget(self, episode: str) -> None:
        """Forget an episode, which has ended or starts anew."""
        self.nbytes -= sum(len(part.content) for part in self._kept.pop(episode, []))
