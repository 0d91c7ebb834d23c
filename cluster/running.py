"""Running a command's coroutine to its end, also under SIGTERM."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import TypeVar

from envs.errors import TrialrunError, first_cause

Result = TypeVar("Result")


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
        return asyncio.run(cancellable())
    except BaseExceptionGroup as errors:
        raise first_cause(errors) from errors
    except asyncio.CancelledError:
        raise TrialrunError(
            "stopped on request (SIGTERM); finished work is stored: the same command resumes it "
            "(train, sft and collect with --requeue, eval with --run)"
        ) from None
