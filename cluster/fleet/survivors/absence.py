"""Ends an actor of Ray that nobody has spoken to for a while: its driver is gone for good."""

import threading
import time

import ray

_LOOKS_PER_LIMIT = 20
_LONGEST_LOOK_S = 5.0


class DriverAbsence:
    """Counts the seconds since the driver was last heard, in a thread, so that a busy event loop
    of the actor delays nothing.
    """

    def __init__(self, limit_s: float) -> None:
        """End this process's actor after `limit_s` seconds without `heard`."""
        self._limit_s = limit_s
        self._last = time.monotonic()
        self._actor = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, name="driver-absence", daemon=True).start()

    def heard(self) -> None:
        """Note that the driver has called."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        every_s = min(self._limit_s / _LOOKS_PER_LIMIT, _LONGEST_LOOK_S)
        before = time.monotonic()
        while time.monotonic() - self._last < self._limit_s:
            time.sleep(every_s)
            now = time.monotonic()
            # A process that was stopped, or a machine that slept, could hear nobody.
            self._last += max(now - before - 2 * every_s, 0.0)
            before = now
        ray.kill(self._actor)
