"""Which parts the storage holds, which are in use, and which may be removed.

Two threads send parts, of files and of checkpoints, while parts that no head lists are removed. A
part that is needed again at that moment is neither taken for one that is there nor removed.
"""

import threading
from collections.abc import Set

from envs.errors import InfraError

_FILES = ""
_REMOVAL_S = 600.0
"""Seconds that a removal of one part may take until the next attempt."""


class PartKeys:
    """Keys of the parts of one mirror."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._there: set[str] = set()
        self._garbage: set[str] = set()
        """Keys that the head no longer lists; readers of the head before it may still want them."""
        self._removing: set[str] = set()
        self._sending: dict[str, set[str]] = {}
        """Keys that the next head is to list, by the bundle they belong to; `""` for files."""

    def start(self, there: Set[str], garbage: Set[str]) -> None:
        """Begin with these parts."""
        with self._changed:
            self._there, self._garbage, self._sending = set(there), set(garbage), {}

    def use(self, key: str, owner: str) -> bool:
        """Keep `key` for the bundle `owner`; return whether the storage holds it already.

        Raises InfraError where it is being removed and that does not end.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: key not in self._removing, _REMOVAL_S):
                raise InfraError(f"the removal of {key} did not end within {_REMOVAL_S:g} s")
            self._sending.setdefault(owner, set()).add(key)
            return key in self._there

    def add(self, key: str) -> None:
        """Note that the storage holds `key` now."""
        with self._changed:
            self._there.add(key)

    def begin_bundle(self, owner: str) -> None:
        """Send the bundle `owner` from now on: what was sent of another one has been given up."""
        with self._changed:
            for other in self._sending.keys() - {_FILES, owner}:
                self._garbage |= self._sending.pop(other)

    def end_files(self) -> None:
        """Note that the head lists the files that were sent."""
        with self._changed:
            self._sending.pop(_FILES, None)

    def discard(self, keys: Set[str]) -> None:
        """Remove these keys at the next removal, unless they are in use then."""
        with self._changed:
            self._garbage |= keys

    def begin_removal(self, used: Set[str]) -> set[str]:
        """Return the keys to remove: those discarded that are neither in `used` nor being sent."""
        with self._changed:
            kept = set(used).union(*self._sending.values())
            self._removing = self._garbage - kept
            self._garbage = set()
            self._there -= self._removing
            return set(self._removing)

    def end_removal(self, *, done: bool) -> None:
        """Note that the removal is over; where it failed, the next one does what is left."""
        with self._changed:
            self._garbage |= set() if done else self._removing
            self._removing = set()
            self._changed.notify_all()


def size_in(key: str) -> int:
    """Return the size that the name of a part states; -1 for a name that is none of ours."""
    words = key.rpartition("/")[2].split("-")
    return int(words[1]) if len(words) == 3 and words[1].isdigit() else -1
