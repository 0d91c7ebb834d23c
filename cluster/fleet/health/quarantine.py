"""Nodes on which workers fail often get no new ones for a while."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass

from cluster.fleet.health.losses import LossKind

_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinePolicy:
    """When a node is in quarantine, and for how long."""

    losses: int = 3
    """Losses within the window that put a node into quarantine; 0 turns it off."""
    window_s: float = 600.0
    for_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A node that gets no new workers."""

    node: str
    kinds: tuple[LossKind, ...]
    """Of the losses that led to it, the oldest first."""
    reason: str
    """The last loss, in words."""
    until: float
    """When it ends, on the clock of the quarantine."""

    def describe(self, now: float) -> str:
        """Return the quarantine in one line."""
        kinds = ", ".join(self.kinds[-_REASONS_SHOWN:])
        return (
            f"node {self.node} is in quarantine for {max(self.until - now, 0):.0f} s more: it lost "
            f"{len(self.kinds)} workers ({kinds}; the last: {self.reason})"
        )


class Quarantine:
    """The losses of workers by node, and the nodes that are in quarantine because of them."""

    def __init__(
        self, policy: QuarantinePolicy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy or QuarantinePolicy()
        self._clock = clock
        self._losses: dict[str, deque[tuple[float, LossKind]]] = defaultdict(deque)
        self._quarantined: dict[str, Quarantined] = {}

    @property
    def nodes(self) -> list[Quarantined]:
        """The nodes in quarantine now; one whose time is over is no longer among them."""
        now = self._clock()
        for node in [n for n, found in self._quarantined.items() if found.until <= now]:
            del self._quarantined[node]
        return list(self._quarantined.values())

    def lost(
        self, node: str, kind: LossKind, reason: str, usable: Sequence[Set[str]]
    ) -> Quarantined | None:
        """Note that a worker on `node` was lost; return the quarantine that begins with it.

        `usable` has for each kind of worker the nodes that could run one. The last node that is
        left of any of them is never put into quarantine.
        """
        if not node or not kind.blames_node or not self._policy.losses:
            return None
        now = self._clock()
        losses = self._losses[node]
        losses.append((now, kind))
        while losses[0][0] < now - self._policy.window_s:
            losses.popleft()
        closed = {found.node for found in self.nodes}
        if len(losses) < self._policy.losses or node in closed or _is_last(node, usable, closed):
            return None
        found = Quarantined(
            node=node,
            kinds=tuple(kind for _, kind in losses),
            reason=reason,
            until=now + self._policy.for_s,
        )
        self._quarantined[node] = found
        losses.clear()  # after its release it starts anew
        return found

    def describe(self) -> list[str]:
        """Return a line for every node in quarantine."""
        now = self._clock()
        return [found.describe(now) for found in self.nodes]


def _is_last(node: str, usable: Sequence[Set[str]], closed: Collection[str]) -> bool:
    """Whether some kind of worker could run nowhere else; also where nobody knows."""
    concerned = [nodes for nodes in usable if node in nodes or not nodes]
    return not usable or any(nodes - set(closed) <= {node} for nodes in concerned)
