"""The stacks of a process that is given up, which say what it waited for."""

import faulthandler
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_SIGNAL = signal.SIGUSR2
_STDERR = 2
_WRITE_S = 0.2
"""Enough for a process that is scheduled; one that is not is ended without its stacks."""


def write_stacks_on_request() -> None:
    """Let this process write the stacks of its threads to its standard error on a signal.

    Of a Ray actor, that is `worker-*PID.err` in the logs of Ray's session, on the actor's node.
    """
    faulthandler.register(_SIGNAL, file=_STDERR, all_threads=True)


def request_stacks(pid: int) -> None:
    """Let the process `pid` write its stacks, if it has said that it does so, and wait shortly."""
    if _handles(pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, _SIGNAL)
            time.sleep(_WRITE_S)


def _handles(pid: int) -> bool:
    """Whether the process has a handler; without one the signal would end it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = next((line for line in lines.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (_SIGNAL - 1) & 1)
