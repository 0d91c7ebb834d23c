"""Ending a process with the one that it serves, also where that is killed and cannot say so."""

import select
import threading
from collections.abc import Callable, Iterable


def when_readable(descriptors: Iterable[int], then: Callable[[], None]) -> None:
    """Call `then` in a thread as soon as something can be read from one of `descriptors`.

    A descriptor of a process (`os.pidfd_open`) can be read from when the process has ended, and
    that of a pipe when its other end is closed.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)

    def watch() -> None:
        poll.poll()
        then()

    threading.Thread(target=watch, name="process-watch", daemon=True).start()
