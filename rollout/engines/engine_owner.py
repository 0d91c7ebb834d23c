"""Engine processes that end with the process that they sample for.

vLLM's engine core notices that its client has ended only if the client had time to say so. Where
the client is killed, the core computes on for ever and holds its memory, which on a GPU is most of
it: the worker that replaces the killed one could not start there.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

from envs.process_watch import when_readable

_OWNER = "TRIALRUN_ENGINE_OWNER"
"""The number of the owner's process; engine processes inherit it."""


def own_engines() -> None:
    """Make this process the owner of all engines that it starts from now on."""
    os.environ[_OWNER] = str(os.getpid())


def end_with_owner() -> None:
    """In an engine's process: end it when the owner ends; elsewhere nothing happens.

    A worker of vLLM that is not its engine core's own process ends the core, too.
    """
    owner = int(os.environ.get(_OWNER, os.getpid()))
    if owner == os.getpid():
        return
    core = _core(owner)
    try:
        owned = os.pidfd_open(owner)
    except ProcessLookupError:
        _end(core)
    else:
        when_readable((owned,), lambda: _end(core))


def _core(owner: int) -> int | None:
    """Return a descriptor of this process's parent if that belongs to the same owner.

    It may be anything else: the owner itself, or who takes over the children of an owner that has
    ended, such as a raylet.
    """
    parent = os.getppid()
    try:
        found = os.pidfd_open(parent)
        variables = Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return found if f"{_OWNER}={owner}".encode() in variables else None


def _end(core: int | None) -> None:
    if core is not None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(core, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
