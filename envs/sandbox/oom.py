"""Whether the kernel killed a process for want of memory: the one death that is not a tool's."""

import time
from collections.abc import Callable
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
_NAME = "oom_kill "


def kernel_kills() -> int | None:
    """Return how many processes the kernel has killed for want of memory; None if it does not say.

    `/proc/vmstat` counts them for the whole machine, those in containers included. Where it lacks
    them, the counter of this process's own memory cgroup is read.
    """
    for path in (_VMSTAT, _CGROUP_EVENTS):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(_NAME):
                return int(line.removeprefix(_NAME))
    return None


class OomWatch:
    """Remembers when the kernel last killed something for want of memory."""

    def __init__(self, kills: Callable[[], int | None] = kernel_kills) -> None:
        self._read = kills
        self._kills = kills()
        self._moved_at = float("-inf")

    def look(self) -> None:
        """Read the counter; a change since the last look counts as of now."""
        kills = self._read()
        if kills != self._kills:
            self._kills, self._moved_at = kills, time.monotonic()

    def moved_since(self, at: float) -> bool:
        """Whether something was killed after `at`, a time of `time.monotonic`."""
        self.look()
        return self._moved_at >= at
