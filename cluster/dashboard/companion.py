"""A dashboard beside a run: `python -m cluster.dashboard.companion`, started by the run's command.

The first line of its input is a CompanionOrder. When its input ends, or its parent is another
process, the command has ended, and so does it. The run never waits for it: it gets less of the
CPU than the run, and what it prints is one line, its address.
"""

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cluster.dashboard.serve import Wanted, run_dashboard

_LOOK_S = 1.0
_NICER = 19
"""By how much its priority is lower than the run's."""


class CompanionOrder(BaseModel):
    """What to show."""

    model_config = ConfigDict(frozen=True)

    root: Path
    """Run directory, or folder of runs; it may not exist yet."""
    parent: int
    """Process id of the command."""
    user: str
    version: str


def main() -> None:
    """Serve until the command has ended."""
    order = CompanionOrder.model_validate_json(sys.stdin.buffer.readline())
    _give_way()
    threading.Thread(target=_end_with, args=(order.parent,), daemon=True).start()
    run_dashboard(
        Wanted(
            roots=(order.root,),
            may_come=True,
            as_json=True,
            environ=dict(os.environ),
            user=order.user,
            version=order.version,
        )
    )


def _give_way() -> None:
    """Let the run have the CPU first.

    Many kernels share the CPU between sessions (autogroup), and there a process is nicer to those
    of its own session alone: this one has a session of its own, whose share is lowered, too.
    Source: sched(7), "The autogroup feature".
    """
    os.nice(_NICER)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a kernel without autogroups
            Path("/proc/self/autogroup").write_text(str(_NICER))


def _end_with(parent: int) -> None:
    """End this process once nobody holds its input, or `parent` is gone."""
    ended = False
    while not ended and os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], _LOOK_S)
        ended = bool(readable) and not os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
