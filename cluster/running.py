"""Running a command's coroutine to its end, also under SIGTERM."""

import asyncio
import ctypes
import gc
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

from envs.errors import TrialrunError, first_cause

Result = TypeVar("Result")
_YOUNG = 1
"""The generation of objects that have survived one collection at most."""
_COLLECT_AFTER = (5_000, 10, 100)
"""New objects per collection of the youngest, and younger collections per older one. With Python's
own (700, 10, 10) and thousands of episodes in flight, a full collection came every few seconds and
stopped the event loop for half a second or more; episodes leave no cycles behind that need it.
"""


def run_async(main: Coroutine[None, None, Result]) -> Result:
    """Run `main` to its end; SIGTERM cancels it as Ctrl-C does, so that everything is closed.

    Raises TrialrunError where SIGTERM ended it.
    """

    async def cancellable() -> Result:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        with _rare_collections():
            return asyncio.run(cancellable())
    except BaseExceptionGroup as errors:
        raise first_cause(errors) from errors
    except asyncio.CancelledError:
        raise TrialrunError(
            "stopped on request (SIGTERM); finished work is stored: the same command resumes it "
            "(train, sft and collect with --requeue, eval with --run)"
        ) from None


def free_memory() -> None:
    """Give back to the system what allocators keep of freed episodes; for the end of a step.

    It collects young garbage only. A full collection walks over everything that thousands of
    episodes in flight hold, and stops the event loop for up to half a second.
    """
    gc.collect(_YOUNG)
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Leave what exists now, the imported modules above all, out of garbage collections, and make
    full ones rare.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
