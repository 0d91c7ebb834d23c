"""Finished turns of the episodes in progress, in the driver's memory, within a bound."""

from collections.abc import Iterable

from rollout.episode import Lease
from rollout.kept_turns import KeptTurns, TurnsPart


class KeptStore:
    """The turns that workers have reported, by episode."""

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` of 0 keeps nothing. Beyond it, episodes that report more are forgotten."""
        self._limit = limit_bytes
        self._kept: dict[str, KeptTurns] = {}
        self.nbytes = 0
        """About what is kept."""

    def add(self, parts: Iterable[TurnsPart]) -> None:
        """Add what workers have reported; a part of an attempt that is over begins a new one."""
        for part in parts:
            kept = self._kept.get(part.episode)
            if kept is None or kept.attempt != part.attempt:
                self.forget(part.episode)
                kept = KeptTurns(part.attempt)
            if self.nbytes + part.nbytes > self._limit or not kept.add(part):
                self.forget(part.episode)
                continue
            self._kept[part.episode] = kept
            self.nbytes += part.nbytes

    def take(self, lease: Lease) -> KeptTurns | None:
        """Return, once, what is kept of an attempt; None if that is nothing."""
        kept = self._kept.get(lease.episode)
        self.forget(lease.episode)
        return kept if kept is not None and kept.attempt == lease.attempt else None

    def forget(self, episode: str) -> None:
        """Forget an episode, which has ended or starts anew."""
        if (kept := self._kept.pop(episode, None)) is not None:
            self.nbytes -= kept.nbytes
