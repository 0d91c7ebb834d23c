"""What looks at the processes of learner ranks have found: a rank that computes answers no call."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cluster.fleet.health.vitals import Sign, Vital

LOOKS = 3
"""Looks in a row that must find the same before a rank counts as lost."""


class RankSigns:
    """The last looks at every rank."""

    def __init__(self, places: Sequence[tuple[str, int]]) -> None:
        """`places` has node and process of each rank."""
        self._places = places
        self._bad: dict[int, list[str]] = defaultdict(list)
        """What the last looks in a row have found wrong, by rank."""

    @property
    def nodes(self) -> Mapping[str, list[int]]:
        """The processes of ranks by node."""
        found: dict[str, list[int]] = defaultdict(list)
        for node, pid in self._places:
            found[node].append(pid)
        return found

    def note(self, node: str, vitals: Sequence[Vital] | None) -> None:
        """Note a look at the processes on `node`, in the order of `nodes`; None is no answer."""
        ranks = [rank for rank, place in enumerate(self._places) if place[0] == node]
        for index, rank in enumerate(ranks):
            wrong = _UNSEEN if vitals is None else _WRONG.get(vitals[index].sign, "")
            if not wrong:
                self._bad[rank].clear()
            else:
                self._bad[rank].append(wrong)

    def describe(self, node: str, pid: int, index: int, vitals: Sequence[Vital] | None) -> str:
        """Return what a look at `node` found of the process `pid`, its number `index` there."""
        rank = self._places.index((node, pid))
        where = f"rank {rank} (process {pid} on node {node})"
        if vitals is None:
            return f"{where}: {_UNSEEN}"
        vital = vitals[index]
        does = "computes" if vital.at_work else "waits, and computes nothing"
        return f"{where}: {_WRONG.get(vital.sign, does)}, {vital.cpu_s:.0f} s of CPU time so far"

    def lost(self) -> str:
        """Return which rank is lost and why, empty if none is."""
        for rank, wrong in sorted(self._bad.items()):
            if len(wrong) >= LOOKS and len(set(wrong[-LOOKS:])) == 1:
                node, pid = self._places[rank]
                return f"rank {rank} (process {pid} on node {node}): {wrong[-1]}"
        return ""


_UNSEEN = "neither it nor its node answers"
_WRONG = {Sign.GONE: "its process ended", Sign.STOPPED: "its process is stopped"}
